"""Several sequences in one row (segment ids), one sequence in several parts (merging partial results), and a prefix
that all entries of a batch share (cascade attention)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .api import attention
from .autodiff.call import wanted_lse
from .common.errors import wrong
from .common.scalars import evaluated, listed, shown, traced, whole
from .problem.problem import MAX_LENGTH

CUMULATIVE, CASCADE = "cumulative_segments", "cascade"  # the functions' names in their errors
FOR_BOTH_PARTS = ("scale", "stream")  # options of a cascade that are the same for the prefix and the rest


def segments(lengths: Sequence[int] | Sequence[Sequence[int]], length: int | None = None) -> tuple[mx.array, mx.array]:
    """The `segments` argument of ``attention`` for sequences of these lengths: ``segments=segments([120, 80, 56])``.

    Args:
        lengths: the lengths of the sequences of a row, in order, or one such list for each batch entry. Lists, numpy
            arrays or integer arrays.
        length: the length of the row, where padding follows the sequences; None: the sum of `lengths`. Padding has the
            id -1, so that no sequence sees it.

    Returns:
        (ids, ids), int32 [length] or [B, length]: queries and keys of one sequence share the number of the sequence.

    Raises:
        ValueError: lengths that are not whole numbers of at least 0, or that exceed `length`, or rows of different
            lengths.
    """
    rows = listed(lengths)
    if length is not None and (whole(length) is None or whole(length) < 0):
        raise wrong("length", "a whole number of at least 0, or None", shown(length), "Pass an int.", "segments")
    batched = bool(rows) and all(isinstance(row, (list, tuple)) for row in rows)
    ids = [_row(row, whole(length)) for row in (rows if batched else [lengths if rows is None else rows])]
    if len({len(row) for row in ids}) > 1:
        raise wrong(
            "lengths", "rows of one length", f"rows of {[len(row) for row in ids]}", "Pass length=...", "segments"
        )
    ids = mx.array(np.stack(ids) if batched else ids[0])
    return ids, ids


def _row(lengths, length: int | None) -> np.ndarray:
    # As Python's integers: a sum of numpy's small ones could overflow.
    counts = [whole(one) for one in listed(lengths) or ()]
    if not counts or any(count is None or count < 0 for count in counts):
        raise wrong("lengths", "whole numbers of at least 0, at least one", shown(lengths), "Pass a list.", "segments")
    total = sum(counts)
    if max(total, length or 0) >= MAX_LENGTH:
        remedy = "Split the row."
        raise wrong("lengths, length", f"fewer than {MAX_LENGTH} rows", max(total, length or 0), remedy, "segments")
    if length is not None and total > length:
        raise wrong("length", f"at least the sum of lengths, {total}", length, "Leave sequences out.", "segments")
    ids = np.full(total if length is None else length, -1, np.int32)
    ids[:total] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return ids


def cumulative_segments(
    q_offsets: mx.array, k_offsets: mx.array | None = None, *, q_length: int | None = None, k_length: int | None = None
) -> tuple[mx.array, mx.array]:
    """The `segments` argument of ``attention`` from cumulative lengths, the `cu_seqlens` of flash-attn's and PyTorch's
    varlen functions: sequence n of the packed row is rows offsets[n] to offsets[n + 1].

    Their packed arrays [total, heads, D] are one row here: ``q.swapaxes(0, 1)[None]``. Positions count from each
    sequence's own end, as there::

        ids = cumulative_segments(mx.array([0, 20, 50, 64]))  # sequences of 20, 30 and 14 tokens
        out = attention(q, k, v, causal=True, segments=ids)

    Args:
        q_offsets: integers [sequences + 1], not decreasing, of which the first is 0.
        k_offsets: the same for keys; None where queries and keys are packed alike.
        q_length, k_length: the lengths of the rows, where padding follows the sequences, or where the offsets have no
            values yet; None: the last offset, which is then read.

    Returns:
        (q_ids, k_ids), int32 [length] each, one array twice where queries and keys are packed alike; padding has the id
        -1. Sequences may be empty.

    Raises:
        ValueError: offsets that are not integer arrays [at least 2] of equal size, or a wrong length.
    """
    pairs = [("q_offsets", q_offsets, "q_length", q_length)]
    if k_offsets is None and k_length is not None:
        raise wrong("k_length", "None without k_offsets", shown(k_length), "Pass k_offsets, or q_length.", CUMULATIVE)
    if k_offsets is not None and (k_offsets is not q_offsets or whole(k_length) != whole(q_length)):
        pairs.append(("k_offsets", k_offsets, "k_length", k_length))
    ids = [_ids_of(*pair) for pair in pairs]
    if len(ids) == 2 and len(q_offsets) != len(k_offsets):
        remedy = "Give both the same sequences, empty ones too."
        raise wrong("k_offsets", f"{len(q_offsets)} numbers as in q_offsets", len(k_offsets), remedy, CUMULATIVE)
    return ids[0], ids[-1]


def _ids_of(name: str, offsets, length_name: str, length: int | None) -> mx.array:
    if isinstance(offsets, (np.ndarray, list, tuple)):
        numbers = [whole(one) for one in listed(offsets) or ()]
        offsets = offsets if None in numbers else mx.array(np.array(numbers, np.int64))
    integers = isinstance(offsets, mx.array) and mx.issubdtype(offsets.dtype, mx.integer)
    if not integers or offsets.ndim != 1 or offsets.size < 2:
        remedy = "Pass the cumulative lengths."
        raise wrong(name, "integers [sequences + 1], two at least", shown(offsets), remedy, CUMULATIVE)
    known = not traced(offsets)
    if known and (offsets[0].item() != 0 or (offsets[1:] < offsets[:-1]).any().item()):
        remedy = "Pass the cumulative lengths."
        raise wrong(name, "offsets that begin with 0 and never fall", shown(offsets.tolist()), remedy, CUMULATIVE)
    if length is None:
        if not known:
            raise wrong(length_name, "the length of the row inside mx.compile", "None", "Pass it.", CUMULATIVE)
        length = int(offsets[-1].item())
    given, length = length, whole(length)
    if length is None or not 0 <= length < MAX_LENGTH:
        expected = f"a whole number of at least 0, less than {MAX_LENGTH}, or None"
        raise wrong(length_name, expected, shown(given), "Pass an int.", CUMULATIVE)
    ends = mx.clip(offsets[1:].astype(mx.int32), 0, length)
    numbers = mx.cumsum(mx.zeros((length + 1,), mx.int32).at[ends].add(1))[:length]
    return evaluated(mx.where(numbers < offsets.size - 1, numbers, -1))  # for every thread


def merge(outputs: Sequence[mx.array], lses: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
    """The attention over the union of disjoint sets of keys, from the attention over each: exact and differentiable.

    Args:
        outputs: arrays [B, H, L, Dv] of ``attention(..., return_lse=True)``, one per set of keys.
        lses: their LSEs, float32 [B, H, L]; or their two parts from ``return_lse="split"``, float32 [2, B, H, L], which
            stay exact where all scores of a row are shifted far away.

    Returns:
        (output, lse) as one call over all keys would, with the lse in two parts if any of ``lses`` is. Rows that saw no
        key in any part give zeros and -inf.

    Raises:
        ValueError: no parts, different numbers of outputs and lses, other types than mx.array, or shapes that do not
            match.
    """
    outputs, lses = (_parts(name, values) for name, values in (("outputs", outputs), ("lses", lses)))
    _check_parts(outputs, lses)
    rows = tuple(outputs[0].shape[:-1])
    split = [tuple(lse.shape) != rows for lse in lses]
    lses = [lse.astype(mx.float32) for lse in lses]
    largest = mx.stack([lse[0] if parts else lse for lse, parts in zip(lses, split)])
    logs = mx.stack([lse[1] if parts else mx.zeros_like(lse) for lse, parts in zip(lses, split)])
    # Any reference cancels. The largest keeps the exponentials in range; it is a constant for gradients.
    most = mx.stop_gradient(largest.max(0))
    reference = mx.where(most == -math.inf, 0, most)
    # The difference of the large numbers comes first, where it is exact, so that the logarithms keep every digit.
    parts = mx.where(largest == -math.inf, 0, mx.exp((largest - reference) + logs))
    total = parts.sum(0)
    empty = total == 0
    safe = mx.where(empty, 1, total)
    values = mx.stack(outputs).astype(mx.float32)
    output = (values * (parts / safe)[..., None]).sum(0).astype(outputs[0].dtype)
    if any(split):
        return output, mx.stack([mx.where(empty, -math.inf, reference), mx.log(safe)])
    return output, mx.where(empty, -math.inf, mx.log(safe) + reference)


def _parts(name: str, values) -> list:
    try:
        return list(values)
    except (TypeError, ValueError, IndexError):  # MLX's arrays without axes raise ValueError, in 0.32.0 IndexError
        expected = "a list of arrays, one of each attention call"
        raise wrong(name, expected, type(values).__name__, "Pass [first, second].", "merge") from None


def _check_parts(outputs: list, lses: list) -> None:
    for part in (*outputs, *lses):
        if not isinstance(part, mx.array) or not mx.issubdtype(part.dtype, mx.floating):
            got = f"dtype {part.dtype}" if isinstance(part, mx.array) else type(part).__name__
            remedy = "Convert numpy arrays with mx.array(...)."
            raise wrong("outputs, lses", "mlx.core.arrays of a float type", got, remedy, "merge")
    if not outputs or len(outputs) != len(lses):
        raise wrong(
            "outputs, lses", "as many outputs as lses, at least one", f"{len(outputs)} and {len(lses)}",
            "Pass both results of each attention call.", "merge",
        )  # fmt: skip
    rows = tuple(outputs[0].shape[:-1])
    for output, lse in zip(outputs, lses):
        if output.shape != outputs[0].shape or tuple(lse.shape) not in (rows, (2, *rows)):
            raise wrong(
                "outputs, lses", f"shapes {outputs[0].shape} and {rows} or {(2, *rows)}",
                f"{output.shape} and {lse.shape}", "All parts share one set of queries.", "merge",
            )  # fmt: skip


def cascade(
    q: mx.array, prefix: dict, rest: dict, *, sinks: mx.array | None = None, return_lse: bool | str = False, **options
) -> mx.array | tuple[mx.array, mx.array]:
    """Attention of every batch entry over a common prefix and the entry's own keys, which follow it.

    The queries of all entries become those of a single entry, which sees the whole prefix, and the two results are
    merged. Each key of the prefix is read once per threadgroup, for all rows of it: ceil(B G Lq / rows) times in
    decoding instead of B times::

        out = cascade(q, prefix={"k": k[:1], "v": v[:1]}, rest={"k": k, "v": v, "causal": True})

    Args:
        q: [B, Hq, Lq, D].
        prefix: arguments of `attention` for the prefix: k and v [1, Hk, Lp, D], with pages [1, n], lengths [1],
            value_dim, softcap where needed.
        rest: arguments of `attention` for the other keys: k and v [B, Hk, Lk, D], with pages, lengths, mask, causal,
            window (which must not reach into the prefix), alibi_slopes, softcap where needed.
        sinks, return_lse: as in `attention`.
        options: scale and stream, for both parts.

    Returns:
        As `attention` over keys of both parts one after the other.

    Raises:
        ValueError: an argument is wrong, or the prefix has a batch.
    """
    for name in options:
        if name not in FOR_BOTH_PARTS:
            remedy = "Put it into rest, whose keys it is about."
            raise wrong(name, f"one of {', '.join(FOR_BOTH_PARTS)}", name, remedy, CASCADE)
    for name, part in (("prefix", prefix), ("rest", rest)):
        if not isinstance(part, dict) or not isinstance(part.get("k"), mx.array):
            expected = "a dict with the arguments k and v of attention"
            raise wrong(name, expected, shown(part), "Pass {'k': k, 'v': v}.", CASCADE)
    if not isinstance(q, mx.array) or q.ndim != 4:
        raise wrong("q", "an mlx.core.array [B, Hq, Lq, D]", shown(q), "Reshape or convert it.", CASCADE)
    return_lse = wanted_lse(return_lse)
    paged, keys = prefix.get("pages"), prefix["k"]
    if (keys.shape[0] if paged is None else paged.shape[0]) != 1:
        raise wrong("prefix", "one batch entry, which all share", f"shape {keys.shape}", "Pass it once.", CASCADE)
    batch, heads, queries, dimension = q.shape
    together = q.swapaxes(0, 1).reshape(1, heads, batch * queries, dimension)
    out, lse = attention(together, **prefix, **options, return_lse="split")
    shape = (heads, batch, queries)
    first = out.reshape(*shape, -1).swapaxes(0, 1), lse.reshape(2, *shape).swapaxes(1, 2)
    second = attention(q, **rest, **options, sinks=sinks, return_lse="split")
    out, lse = merge(*zip(first, second))
    if not return_lse:
        return out
    return out, lse if return_lse == "split" else lse.sum(0)
