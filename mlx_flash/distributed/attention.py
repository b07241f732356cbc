"""Attention whose sequence several ranks share, as one differentiable function of their shards."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import mlx.core as mx

from .. import api
from ..autodiff.call import Call, prepared
from ..autodiff.learned import numbers_of
from ..autodiff.operands import operands
from ..backends import current_backend
from ..common.errors import UnsupportedProblem, wrong
from ..common.scalars import shown, whole
from ..masks import BlockMask
from ..problem.problem import Problem, sized
from ..problem.variants import check_lengths
from ..transforms.trace import trace
from .checks import described
from .collectives import agree, group_of
from .cost import METHODS, chosen_method, key_heads_at_once
from .layout import PIECES, Layout, layout_of
from .parallel import ContextParallel


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
    sent.

    Args:
        q: [B, Hq, N / P, D], this rank's queries, as `shard` cuts them. Rotary embeddings need the rows' own
            `positions`.
        k, v: [B, Hk, N / P, D] and [B, Hk, N / P, Dv], its keys and values.
        group: of mx.distributed; None: the global one.
        layout: "zigzag" (the same work for every rank where attention is causal) or "contiguous".
        method: "exact" gathers keys and values, and in the backward pass queries too, and has the bits of one process
            where the pieces of the sequence are multiples of the kernels' blocks; "reduce" sums partial dK and dV in
            float32 instead, which sends fewer bytes where many query heads share a key head; "auto": whichever sends
            fewer. `explain(..., group_size=)` tells which.
        heads: key heads that are gathered at once, a divisor of Hk: fewer need less memory. None: as many as keep what
            is gathered below this rank's output in the forward pass, and in the backward pass below half of what it
            holds anyhow: q, k, v, the output, and their gradients.
        mask: None, "causal", or an array for the whole sequence, [B, Hq, N, N] or broadcast to it, on every rank.
        scale, causal, window, softcap, alibi_slopes, sinks, return_lse, stream: as in `attention`.
        segments: (q_ids, k_ids) of this rank's rows, [B, N / P] or [N / P]; the sequence's own ids, cut by `shard`.

    Returns:
        [B, Hq, N / P, Dv] in q's dtype; with return_lse also float32 [B, Hq, N / P], with "split" float32
        [2, B, Hq, N / P].

    Raises:
        ValueError: as `attention`; rows that do not divide into the layout's pieces; shapes or options that differ
            between ranks, which all ranks find out together.
        UnsupportedProblem: dropout, a BlockMask, mx.vmap, mx.export_function, derivatives beyond the first.
        RuntimeError: MLX's own, where a peer is lost. A peer that hangs is waited for without limit.

    What is differentiated is the sum of the ranks' losses: gradients of q, k and v are complete; those of what all
    ranks hold alike (sinks, mask, a learned scale) are this rank's part, to be summed over ranks as those of weights.
    """
    options = {
        "scale": scale, "mask": mask, "causal": causal, "window": window, "softcap": softcap,
        "alibi_slopes": alibi_slopes, "sinks": sinks, "segments": segments,
    }  # fmt: skip
    group = group_of(group, "attention")
    placement = _placement(q, layout, group.size(), method, heads)
    if group.size() == 1:
        return api.attention(q, k, v, **options, return_lse=return_lse, stream=stream)
    agree(described(q, k, v, options | {"layout": layout, "method": method, "heads": heads}), group, "attention")
    _check_trace()
    if isinstance(mask, BlockMask):
        raise UnsupportedProblem("[mlx_flash.distributed.attention] mask: a BlockMask is not available. Pass an array.")
    q, options = numbers_of(q, options, stream)
    call = prepared(q, k, v, current_backend(), stream, return_lse, options)
    problem = _checked(call, q, k, v, placement, options)
    if problem.empty:
        return api.attention(q, k, v, **options | {"mask": None}, return_lse=return_lse, stream=stream)
    extras = operands(problem, **options)
    call_parallel = _parallel(call, tuple(extras), group, placement, *_method_and_heads(problem, group, method, heads))
    out, L = call_parallel(*call.inputs(q, k, v), *extras.values())
    value = call.pads[1]
    out = out[..., :-value] if value else out
    return (out, call.lse(L, options["sinks"])) if return_lse else out


def _placement(q, layout, ranks: int, method, heads) -> Layout:
    """Checks what belongs to sharing; that q, k and v fit each other is checked later."""
    placement = layout_of(layout, ranks)
    if method not in METHODS:
        raise wrong("method", '"exact", "reduce" or "auto"', shown(method), "Check the spelling.", NAME)
    if heads is not None and (whole(heads) is None or whole(heads) < 1):
        raise wrong("heads", "a whole number of key heads, or None", shown(heads), "Pass a divisor of them.", NAME)
    return placement


NAME = "distributed.attention"


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


def _method_and_heads(problem: Problem, group, method: str, heads: int | None) -> tuple[str, tuple[int, int]]:
    key_heads, chosen = problem.key_heads, chosen_method(problem, group.size(), method)
    if heads is None:
        return chosen, key_heads_at_once(problem, group.size(), chosen)
    if key_heads % whole(heads):
        raise wrong("heads", f"a divisor of the {key_heads} key heads", heads, "Pass None to have it chosen.", NAME)
    return chosen, (whole(heads),) * 2


def _parallel(call: Call, names, group, placement: Layout, method: str, heads: tuple[int, int]) -> ContextParallel:
    variants = call.inner.variants
    # Pieces of queries meet keys of the whole sequence: their rows' positions are given by arrays.
    positions = variants.causal or variants.window is not None or variants.alibi
    signature = replace(call.inner, variants=replace(variants, shifts=positions))
    own_ids = variants.shifts  # queries and keys have segment ids of their own
    return _made(
        signature, names, call.backend, call.stream, bool(call.return_lse), group, placement, method, heads, own_ids
    )


_made = lru_cache(maxsize=64)(ContextParallel)
