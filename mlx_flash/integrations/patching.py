"""mlx_flash in place of mx.fast.scaled_dot_product_attention, for every model that looks it up when called."""

from __future__ import annotations

import logging
import threading
from collections import Counter

import mlx.core as mx

from ..attention import attention

LOGGER = logging.getLogger("mlx_flash")
FLOATS = (mx.float32, mx.float16, mx.bfloat16)

_lock = threading.RLock()
_active: list[patch] = []
_built_in = None


class patch:
    """Replaces ``mx.fast.scaled_dot_product_attention`` by `attention`, for a block or until `undo`.

    ``with mlx_flash.patch() as report: ...`` or ``report = mlx_flash.patch(); ...; report.undo()``. Serves
    ``mlx.nn.MultiHeadAttention`` and mlx-lm's models, which look the function up when they call it. Patches nest: the
    innermost counts. Calls that `attention` cannot serve, wrong ones included, go to the built-in function, which
    answers or raises as ever.

    Args:
        min_queries: calls with fewer queries go to the built-in, which has a kernel of its own for decoding; there is
            none here yet. 1 sends all calls here.

    Attributes: ours, the number of calls served here; built_in, a Counter of the reasons of the others. They are
    logged on leaving (logger "mlx_flash", level INFO); ``print(report)`` shows them.

    One difference from the built-in: a query that sees no key gives zeros.
    """

    def __init__(self, min_queries: int = 9):
        if not isinstance(min_queries, int) or isinstance(min_queries, bool) or min_queries < 1:
            raise ValueError(
                f"[mlx_flash.patch] min_queries: expected a whole number of at least 1, got {min_queries!r}. "
                "Pass 1 to serve every call."
            )
        self.min_queries, self.ours, self.built_in = min_queries, 0, Counter()
        global _built_in
        with _lock:
            if not _active:
                _built_in = mx.fast.scaled_dot_product_attention
                mx.fast.scaled_dot_product_attention = _dispatch
            _active.append(self)

    def __enter__(self) -> patch:
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def undo(self) -> None:
        """Takes this patch back; the built-in returns with the last one. A second call does nothing."""
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            if not _active and mx.fast.scaled_dot_product_attention is _dispatch:
                mx.fast.scaled_dot_product_attention = _built_in
        LOGGER.info("%s", self)

    def __str__(self) -> str:
        others = "".join(f"\n  {count} to the built-in: {reason}" for reason, count in self.built_in.most_common())
        return f"mlx_flash served {self.ours} of {self.ours + sum(self.built_in.values())} attention calls{others}"

    def _count(self, reason: str | None) -> None:
        with _lock:
            if reason is None:
                self.ours += 1
            else:
                self.built_in[reason] += 1


def unpatch() -> None:
    """Takes every patch back."""
    with _lock:
        for one in list(reversed(_active)):
            one.undo()


def _dispatch(q, k, v, *, scale, mask=None, sinks=None, force_fused=False, stream=None):
    """What stands in place of the built-in, with its signature."""
    with _lock:
        innermost = _active[-1] if _active else None
    if innermost is not None:
        out, reason = _attempt(innermost.min_queries, q, k, v, scale, mask, sinks, stream)
        innermost._count(reason)
        if reason is None:
            return out
    return _built_in(q, k, v, scale=scale, mask=mask, sinks=sinks, force_fused=force_fused, stream=stream)


def _attempt(min_queries, q, k, v, scale, mask, sinks, stream):
    """(result, None), or (None, why not)."""
    arrays = (q, k, v)
    if not all(isinstance(array, mx.array) and array.ndim == 4 for array in arrays):
        return None, "q, k and v are not arrays of 4 axes"
    if q.shape[2] < min_queries:
        return None, f"fewer than {min_queries} queries"
    dtype = mx.result_type(*arrays)
    if dtype not in FLOATS:
        return None, f"dtype {dtype}"
    try:
        arrays = (array.astype(dtype) for array in arrays)
        return attention(*arrays, scale=scale, mask=mask, sinks=sinks, stream=stream), None
    except ValueError as error:  # wrong arguments, or a problem the backend cannot serve
        return None, str(error)
