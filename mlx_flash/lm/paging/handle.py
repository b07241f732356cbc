"""Handles that a paged cache gives a model in place of keys and values, and the attention over them."""

from __future__ import annotations

import mlx.core as mx

from ...api import attention, quantized_attention
from ...integrations.handles import Handle
from ...sequences import merge
from .errors import PagePoolError


class CausalMask(str):
    """The word "causal", as mlx-lm's models pass it on, with the window that the model asked for."""

    window: int | None = None


def causal(window: int | None) -> CausalMask:
    mask = CausalMask("causal")
    mask.window = window
    return mask


class PagedKeys(Handle):
    """The keys of one step, good until the next step of its cache.

    `rows`: (stored, tokens in the dense arrays, queries that exist, tokens dropped) of every row, before the step in
    pages and with it in `dense`, the new tokens' own keys and values or the tail.
    """

    def __init__(self, cache, layer, table: mx.array | None, rows: list[tuple[int, ...]], dense, queries: int):
        longest = max((sum(row[:2]) for row in rows), default=0)
        super().__init__((len(rows), layer.heads, longest, layer.dims[0]), layer.dtype)
        self._cache, self._layer, self._table, self._dense, self._queries = cache, layer, table, dense, queries
        self._step, self._rows = cache.step, rows

    def attend(self, q: mx.array, values: Handle, *, scale: float, mask, sinks) -> mx.array:
        with self._cache.pool.entered():
            self._check(q, values, mask)
            stored, dense, new, _ = (list(column) for column in zip(*self._rows))
            window, reach = self._window(mask)
            full = set(new) == {q.shape[2]} and set(dense) == {self._dense[0].shape[2]}
            ends = None if full else (mx.array(new), mx.array(dense))
            whole = attention(
                q, *self._cast(q), scale=scale, causal=True, window=window and (window - 1, 0), sinks=sinks,
                lengths=ends, mask=self._within(reach, new, dense), return_lse="split" if any(stored) else False,
            )  # fmt: skip
            if not any(stored):
                return whole
            older = self._older(q, scale, window, reach, mx.array(new), mx.array(stored))
            return merge(*zip(older, whole))[0]

    def _window(self, mask) -> tuple[int | None, int | None]:
        """(the keys that a query sees, its own included; how many of the step's first query's, itself included, the
        cache would hold, where these are fewer). None: all.

        As in mlx-lm: a model's mask decides over several queries, and what its cache still holds over one.
        """
        asked, held = getattr(mask, "window", None), self._layer.window
        if asked is None or held is None or self._queries == 1:
            return min((one for one in (asked, held) if one is not None), default=None), None
        return asked, held if asked > held else None

    def _within(self, reach: int | None, new: list[int], dense: list[int]) -> mx.array | None:
        """bool [B, 1, 1, dense keys]: which of the dense tokens the cache would hold, or None for all."""
        if reach is None or all(count - queries < reach for count, queries in zip(dense, new)):
            return None
        gone = mx.array([count - queries - reach + 1 for count, queries in zip(dense, new)])
        return (mx.arange(self._dense[0].shape[2]) >= gone[:, None])[:, None, None]

    def _cast(self, q: mx.array) -> list[mx.array]:
        return [one.astype(q.dtype) for one in self._dense]

    def _older(self, q, scale, window, reach, new: mx.array, stored: mx.array):
        """Over the tokens in pages: all of them come before every query."""
        options = {
            "scale": scale, "lengths": (new, stored), "pages": self._table, "return_lse": "split",
            "mask": None if window is None else self._inside(window, reach, q.shape[2], new, stored),
        }  # fmt: skip
        k, v = self._layer.operands()
        form = self._layer.quantization
        if form is None:
            return attention(q, k.astype(q.dtype), v.astype(q.dtype), **options)
        return quantized_attention(q, k, v, group_size=form.group_size, bits=form.bits, mode=form.mode, **options)

    def _inside(self, window: int, reach: int | None, queries: int, new: mx.array, stored: mx.array) -> mx.array:
        """bool [B, 1, Lq, keys in pages]: which of them a window reaches. Positions count from the first stored one."""
        dense = mx.array([row[1] for row in self._rows])
        first = (stored + dense - new)[:, None]
        keys = mx.arange(self._table.shape[1] * self._layer.page)
        inside = keys > (first + mx.arange(queries))[..., None] - window
        return (inside if reach is None else inside & (keys > first[..., None] - reach))[:, None]

    def _check(self, q, values, mask) -> None:
        self._cache.check_open()
        if self._cache.step != self._step:
            raise PagePoolError("[mlx_flash.PagePool] a handle of an earlier step: pass on the ones of this step")
        if not isinstance(values, Values) or values.keys is not self:
            raise PagePoolError("[mlx_flash.PagePool] keys and values of different steps or caches")
        if mask is not None and not isinstance(mask, str):
            raise PagePoolError("[mlx_flash.PagePool] an array mask over pages: pass on the mask that the cache made")
        if q.shape[0] != len(self._rows) or q.shape[2] != self._queries:
            raise PagePoolError(f"[mlx_flash.PagePool] queries of another step: shape {q.shape}")


class Values(Handle):
    """The values that belong to `keys`."""

    def __init__(self, keys: PagedKeys, dimension: int):
        super().__init__((*keys.shape[:3], dimension), keys.dtype)
        self.keys = keys
