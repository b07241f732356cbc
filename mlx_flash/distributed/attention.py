"""Attention over a sequence that several ranks share, as one differentiable function of their shards."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from .. import api
from ..autodiff.call import Call, prepared
from ..autodiff.learned import numbers_of
from ..autodiff.operands import operands
from ..backends import current_backend
from ..common.errors import UnsupportedProblem, wrong
from ..common.scalars import shown, whole, word
from ..problem.masks import BlockMask
from ..problem.problem import Problem, sized
from ..problem.variants import check_lengths
from ..transforms.trace import trace
from .checks import described
from .collectives import agree, group_of
from .cost import METHODS, chosen_method, key_heads_at_once
from .layout import PIECES, Layout, layout_of
from .parallel import ContextParallel

NAME = "distributed.attention"


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    group: mx.distributed.Group | None = None,
    layout: str = "zigzag",
    method: str = "exact",
    heads: int | None = None,
    scale: float | None = None,
    mask: str | mx.array | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: mx.array | None = None,
    sinks: mx.array | None = None,
    segments: tuple[mx.array, mx.array] | None = None,
    return_lse: bool | str = False,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """Exact self-attention over a sequence of N rows, N / P of them on each of the group's P ranks; with gradients.

    Every rank must make the same calls in the same order. With one rank it is `mlx_flash.attention`, and nothing is
    sent. Gradients are those of the sum of the ranks' losses: complete for q, k and v; for arguments that all ranks
    hold alike (sinks, mask, a learned scale) this rank's part, to be summed over ranks as those of weights are::

        out = distributed.attention(*(distributed.shard(array, axis=2) for array in (q, k, v)), causal=True)

    Args:
        q: [B, Hq, N / P, D], this rank's queries, as `shard` cuts them. Rotary embeddings need the rows' `positions`.
        k, v: [B, Hk, N / P, D] and [B, Hk, N / P, Dv], its keys and values.
        group: of mx.distributed; None: the global one.
        layout: "zigzag" (the same work for every rank where attention is causal) or "contiguous".
        method: "exact" gathers keys and values, in the backward pass queries too, and has the bits of one process where
            the pieces of the sequence are multiples of the kernels' blocks. "reduce" sums partial dK and dV in float32,
            which sends fewer bytes where many query heads share a key head. "auto": the one that sends fewer, as
            `explain` tells with group_size.
        heads: key heads gathered at once, a divisor of Hk; fewer need less memory. All keys and values are gathered
            where they take no more than the output. None: as many as fit beside the tensors that this rank holds anyway
            (`cost.key_heads_at_once`).
        mask: None, "causal", or an array for the whole sequence, [B, Hq, N, N] or broadcast to it, on every rank.
        segments: (q_ids, k_ids) of this rank's rows, [B, N / P] or [N / P]: the sequence's ids, cut by `shard`.
        scale, causal, window, softcap, alibi_slopes, sinks, return_lse, stream: as in `attention`.

    Returns: [B, Hq, N / P, Dv] in q's dtype; with return_lse also float32 [B, Hq, N / P], with "split"
        [2, B, Hq, N / P].
    Raises: ValueError as `attention`, on all ranks together where shapes or options differ between them. RuntimeError
        where a peer is lost; one that hangs is waited for without limit. UnsupportedProblem for dropout, a BlockMask,
        mx.vmap, mx.export_function, and derivatives beyond the first.
    """
    options = {
        "scale": scale, "mask": mask, "causal": causal, "window": window, "softcap": softcap,
        "alibi_slopes": alibi_slopes, "sinks": sinks, "segments": segments,
    }  # fmt: skip
    group = group_of(group, NAME)
    sharing = _sharing(group, layout, method, heads)
    if group.size() == 1:
        return api.attention(q, k, v, **options, return_lse=return_lse, stream=stream)
    agree(described(q, k, v, options | {"layout": layout, "method": method, "heads": heads}), group, NAME)
    return _attend(q, k, v, options, sharing, return_lse, stream)


class _Sharing(NamedTuple):
    """The checked arguments that attention of one process does not have."""

    group: mx.distributed.Group
    placement: Layout
    method: str
    heads: int | None


def _sharing(group, layout, method, heads) -> _Sharing:
    """Raises ValueError for a layout, a method or a number of heads that does not exist."""
    placement = layout_of(layout, group.size(), NAME)
    word("method", method, METHODS, NAME, '"exact", "reduce" or "auto"')
    if heads is not None and (whole(heads) is None or whole(heads) < 1):
        raise wrong("heads", "a whole number of key heads, or None", shown(heads), "Pass a divisor of them.", NAME)
    return _Sharing(group, placement, method, heads)


def _attend(q, k, v, options: dict, sharing: _Sharing, return_lse, stream):
    """Attention of several ranks that have agreed on their arguments."""
    _check_trace()
    if isinstance(options["mask"], BlockMask):
        raise UnsupportedProblem("[mlx_flash.distributed.attention] mask: a BlockMask is not available. Pass an array.")
    q, options = numbers_of(q, options, stream)
    call = prepared(q, k, v, current_backend(stream), stream, return_lse, options)
    problem = _checked(call, q, k, v, sharing.placement, options)
    if problem.empty:
        return api.attention(q, k, v, **options | {"mask": None}, return_lse=return_lse, stream=stream)
    extras = operands(problem, **options)
    parallel = _parallel(call, tuple(extras), problem, sharing)
    out, L = parallel(*call.inputs(q, k, v), *extras.values())
    value = call.pads[1]
    out = out[..., :-value] if value else out
    return (out, call.lse(L, options["sinks"])) if return_lse else out


def _checked(call: Call, q, k, v, placement: Layout, options: dict) -> Problem:
    """The problem of this rank's rows among its own keys, with the mask of the whole sequence. Raises ValueError."""
    rows, pieces = q.shape[2], PIECES[placement.name]
    if k.shape[2] != rows:
        raise wrong("k", f"{rows} rows as in q: self-attention", k.shape[2], "Shard q, k and v alike.", NAME)
    if rows % pieces:
        remedy = "Pad the sequence, with a segment of its own, before shard cuts it."
        raise wrong("q", f"an even number of rows, one half for each piece of {placement.name}", rows, remedy, NAME)
    local = replace(call.signature, variants=replace(call.signature.variants, mask=None, shifts=False))
    problem = sized(local, q.shape, k.shape, v.shape, None, options["segments"])
    variants, total = call.signature.variants, rows * placement.ranks
    shape = (*q.shape[:2], total, total)
    mask_shape = check_lengths(replace(variants, segments=False), shape, options["mask"], None)
    own = replace(local, variants=replace(variants, shifts=False))
    return Problem(own, problem.batch, rows, rows, mask_shape)


def _check_trace() -> None:
    if trace.batched is not None or trace.export is not None:
        what = "vmap" if trace.batched is not None else "export_function"
        raise UnsupportedProblem(f"[mlx_flash.{NAME}] {what} is not available: collectives have no rule for it.")


def _parallel(call: Call, names: tuple[str, ...], problem: Problem, sharing: _Sharing) -> ContextParallel:
    group, placement, method, heads = sharing
    method = chosen_method(problem, group.size(), method)
    chosen = None if heads is None else whole(heads)
    if chosen and problem.key_heads % chosen:
        expected = f"a divisor of the {problem.key_heads} key heads"
        raise wrong("heads", expected, heads, "Pass None to have it chosen.", NAME)
    at_once = key_heads_at_once(problem, group.size(), method, chosen)
    variants = call.inner.variants
    # Pieces of queries meet keys of the whole sequence: their rows' positions are given by arrays.
    positions = variants.causal or variants.window is not None or variants.alibi
    signature = replace(call.inner, variants=replace(variants, shifts=positions))
    own_ids = variants.shifts  # queries and keys have segment ids of their own
    return _made(
        signature, names, call.backend, call.stream, bool(call.return_lse), group, placement, method, at_once, own_ids
    )


_made = lru_cache(maxsize=64)(ContextParallel)
