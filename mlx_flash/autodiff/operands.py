"""The arrays of a call besides q, k and v, in the shapes and dtypes that every backend reads."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import mlx.core as mx

from ..common.errors import wrong
from ..common.mlx_private import contiguous as contiguous_by_views
from ..common.scalars import shown, traced
from ..kernels.launch import constant
from ..kernels.split_kv import QUERIES
from ..problem.formulas.score import Text, Visible, visited_as_a_whole
from ..problem.kinds import BACKWARD_MASK, COMBINE, DECODE, DELTA, KernelKind
from ..problem.masks import BlockMask
from ..problem.problem import Problem, Signature, new
from ..problem.rows import check_form, pair
from ..problem.variants import Variants, check_segments
from ..transforms.trace import mapped_array
from .learned import is_exported, without_gradient
from .tables import SUM, stand_in

WIDE = (mx.uint32, mx.int64, mx.uint64)  # integer types with values that int32 does not hold


def contiguous(array: mx.array) -> mx.array:
    """The array, copied unless it is contiguous, by operations that can be mapped and exported."""
    if mapped_array() is not None:  # mx.vmap is wrong for views of another dtype along their last axis
        return mx.concatenate([array[..., :0], array], axis=-1)
    return contiguous_by_views(array)


def operands(
    problem: Problem,
    *,
    mask=None,
    alibi_slopes=None,
    sinks=None,
    segments=None,
    lengths=None,
    pages=None,
    key=None,
    score=None,
    visible=None,
    repeats: bool = False,
    **_,
) -> dict[str, mx.array]:
    """The arrays of the variants that are on, by name, from the checked arguments of `attention`. `repeats`: as in
    BlockMask.layers."""
    variants, arrays = problem.variants, {}
    if variants.mask:
        arrays["attention_mask"] = mask.reshape(problem.mask_shape)
    if variants.alibi:
        remedy = 'Learn them by score=Score("s - slope[h] * abs(q - k)", slope=...)'
        arrays["slopes"] = without_gradient("alibi_slopes", alibi_slopes, remedy).astype(mx.float32)
    if variants.sinks:
        arrays["sinks"] = sinks.astype(mx.float32)
    if variants.segments:
        lengths = (problem.query_length, problem.key_length)
        for name, ids, length in zip(("q_segments", "k_segments"), segments, lengths):
            # Kernels step between batch entries by the stride, so shared ids need no copies.
            arrays[name] = mx.broadcast_to(contiguous(_int32(name, ids)), (problem.batch, length))
    if variants.shifts:
        arrays["shifts"] = segment_shifts(arrays["q_segments"], arrays["k_segments"])
    if variants.lengths:
        arrays["lengths"] = row_lengths(problem, lengths)
    if variants.page:
        arrays["pages"] = mx.broadcast_to(contiguous(pages), (problem.batch, pages.shape[1]))
    for text in (score, visible):
        if text is not None:
            arrays |= text_operands(problem, text)
    if visible is not None and variants.block:
        mask = blocks_of(problem, visible)
    if variants.block:
        arrays |= mask.layers(problem.batch, problem.query_heads, repeats)
    if variants.dropout:
        # A weight survives if its random word is at least dropout * 2^32.
        threshold = mx.array([min(round(variants.dropout * 2**32), 2**32 - 1)], mx.uint32)
        arrays["dropout_key"] = mx.concatenate([key, threshold])
    return arrays


def text_operands(problem: Problem, text: Text) -> dict[str, mx.array]:
    """The arrays of a text. Each float array of a score is accompanied by a stand-in, through which it gets its
    gradient (tables.py); other arrays have none."""
    formula, found = text.formula, {}
    for one in formula.arrays:
        array, operand = text.arrays[one.name], formula.operand(one.name)
        if formula.owner == "Score" and one.type == "float":
            found[SUM + operand] = stand_in(problem, formula, one.name, text.arrays)
            array = mx.stop_gradient(array)
        found[operand] = array
    return found


def blocks_of(problem: Problem, visible: Visible) -> BlockMask:
    """The blocks that the text shows, where they can be found in advance; else all blocks, which only takes longer."""
    lengths = problem.query_length, problem.key_length
    variants = problem.variants
    regular = not variants.shifts and not variants.lengths and "segment" not in visible.formula.names
    if regular and problem.query_length > QUERIES and visible.known:
        return visible.block_mask(*lengths, problem.batch, problem.query_heads)
    return visited_as_a_whole(*lengths, visible.block)


def text_data(variants: Variants, arrays: dict[str, mx.array], stream=None) -> mx.array:
    """The data of a call's texts, as 32-bit patterns in one buffer: for each text its numbers, then its arrays, each
    behind its extents."""
    parts = []
    for text in variants.texts:
        parts += [constant(text.bits)] if text.bits else []
        for name in text.operands:
            array = arrays[name]
            parts += [constant(tuple(array.shape))] if array.ndim else []
            parts.append(mx.view(mx.reshape(array, (-1,), stream=stream), mx.int32, stream=stream))
    parts = parts or [constant((0,))]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, stream=stream)


def _int32(name: str, ids) -> mx.array:
    """Segment ids as int32. Values of wider types are checked, since truncation could make two ids equal."""
    ids = ids if isinstance(ids, mx.array) else mx.array(ids)
    if ids.dtype in WIDE and ids.size:
        remedy = "Cast the ids to mx.int32, or renumber them."
        if traced(ids):
            raise wrong(f"segments {name[0]}_ids", "int32 where values are not known yet", shown(ids), remedy)
        least, most = ids.min().item(), ids.max().item()
        if least < -(2**31) or most >= 2**31:
            raise wrong(f"segments {name[0]}_ids", "ids that fit 32 signed bits", f"{least} to {most}", remedy)
    return ids.astype(mx.int32)


def row_lengths(problem: Problem, lengths) -> mx.array:
    """The numbers of queries and keys that exist in every batch entry, int32 [B, 2]."""
    queries, keys = pair(lengths)
    queries = mx.full((problem.batch,), problem.query_length, mx.int32) if queries is None else queries
    return mx.stack(
        [(one if isinstance(one, mx.array) else mx.array(one)).astype(mx.int32) for one in (queries, keys)], 1
    )


def ended_segments(q, arguments: dict, stream) -> dict:
    """The arguments of `attention` with `lengths` turned into `segments`: queries and keys behind the end of their
    batch entry get two different ids, the smallest of 32 bits, so that they match nothing."""
    check_segments(arguments["segments"])
    check_form(arguments["lengths"], None)
    found = []
    sides = zip(("q_segments", "k_segments"), arguments["segments"], pair(arguments["lengths"]))
    for number, (name, ids, ends) in enumerate(sides):
        ids = _int32(name, ids)
        if ends is not None:
            ends = ends if isinstance(ends, mx.array) else mx.array(ends)
            if ends.shape != q.shape[:1]:
                expected = f"shape [B] = [{q.shape[0]}]"
                raise wrong(f"lengths {name[0]}_lengths", expected, f"{ends.shape}", "Give one for each entry.")
            exists = mx.arange(ids.shape[-1]) < ends[:, None]
            ids = mx.where(exists, ids, number - 2**31, stream=stream)
        found.append(ids)
    return arguments | {"segments": tuple(found), "lengths": None}


def without_ended(result, lengths, stream):
    """The result of a call whose lengths became segments. Queries behind the end of their batch entry match no key, but
    see sinks like all others: here they see nothing, and no gradient comes from them."""
    ends = pair(lengths)[0]
    if ends is None:
        return result
    out, *lse = result if isinstance(result, tuple) else (result,)
    exists = (mx.arange(out.shape[2]) < mx.array(ends)[:, None])[:, None]
    out = existing(out, exists[..., None], mx.array(0, out.dtype), stream)
    if not lse:
        return out
    nothing = mx.array(-math.inf)
    if lse[0].ndim == 4:  # in two parts, of which the second is 0
        nothing = mx.array([-math.inf, 0.0]).reshape(2, 1, 1, 1)
    return out, existing(lse[0], exists, nothing, stream)


def existing(array: mx.array, exists: mx.array, nothing: mx.array, stream) -> mx.array:
    """mx.where, whose own gradient multiplies by the condition, so that a NaN of what does not exist would stay one."""
    if is_exported():
        return mx.where(exists, array, nothing, stream=stream)
    chosen = mx.custom_function(lambda *given: mx.where(given[1], given[0], given[2], stream=stream))
    chosen.vjp(lambda primals, d, _: (mx.where(primals[1], d, 0), *map(mx.zeros_like, primals[1:])))
    return chosen(array, exists, nothing)


def segment_shifts(q_ids: mx.array, k_ids: mx.array) -> mx.array:
    """The shift from rows of queries to positions among the keys, int32 [B, Lq + Lk]: of each query's segment, then of
    each key's. The last query of a segment has the position of the segment's last key."""
    queries, ids = q_ids.shape[1], mx.concatenate([q_ids, k_ids], axis=1)
    order = mx.argsort(ids, axis=1)
    ordered = mx.take_along_axis(ids, order, axis=1)
    begins = mx.concatenate([mx.zeros_like(ids[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).astype(mx.int32)], axis=1)
    # The number of each row's segment, from 0 on, in the order of the rows.
    numbers = mx.take_along_axis(mx.cumsum(begins, axis=1), mx.argsort(order, axis=1), axis=1)
    batch = mx.arange(ids.shape[0])[:, None]
    last_query, last_key = (
        mx.zeros_like(ids).at[batch, part].maximum(mx.arange(part.shape[1], dtype=mx.int32)[None])
        for part in (numbers[:, :queries], numbers[:, queries:])
    )
    return mx.take_along_axis(last_key - last_query, numbers, axis=1)


def array_inputs(kind: KernelKind) -> tuple[str, ...]:
    """The inputs of a kind of kernel that are arrays; the others are numbers."""
    return tuple(name for name in kind.inputs if name not in ("scale", "extents", "decode_params"))


def problem_of_arrays(signature: Signature, arrays: dict[str, mx.array]) -> Problem:
    """The problem with these operands, by name; batch and lengths are read off the arrays."""
    if "Q" in arrays:
        batch, queries, keys = arrays["Q"].shape[-4], _rows(arrays["Q"]), _rows(arrays["K"])
        keys *= arrays["pages"].shape[1] if "pages" in arrays else 1
    else:
        batch, _, queries, _ = arrays["dO"].shape
        keys = 0  # delta sums rows of dO and O, without keys
    mask = arrays.get(SUM + signature.variants.seeded if signature.variants.seed else "attention_mask")
    return new(Problem, (signature, batch, queries, keys, None if mask is None else tuple(mask.shape)))


def _rows(array: mx.array) -> int:
    """The rows of a sequence, whose shards may lie along an axis in front."""
    return array.shape[-2] * (array.shape[0] if array.ndim == 5 else 1)


def kernel_inputs(kind: KernelKind, problem: Problem, arrays: dict[str, mx.array], stream=None) -> dict:
    """Everything that one kernel reads, by name: the call's arrays as this kind of kernel needs them, and numbers."""
    if kind is DELTA or kind is COMBINE:
        return arrays
    signature = problem.signature
    inputs = {**arrays, "scale": signature.scale}
    if not signature.variants.plain:
        _add_variants(kind, problem, inputs, stream)
    if kind is BACKWARD_MASK:
        inputs["extents"] = problem.mask_shape
    if kind is DECODE and problem.query_length > 1:
        rows = (problem.batch, signature.key_heads, signature.group * problem.query_length, signature.head_dim)
        inputs["Q"] = mx.reshape(inputs["Q"], rows, stream=stream)
    return inputs


def _add_variants(kind: KernelKind, problem: Problem, inputs: dict, stream) -> None:
    """Puts the arrays and numbers of the variants that are on into `inputs`, as this kind of kernel needs them."""
    variants = problem.signature.variants
    if variants.score or variants.visible:
        inputs["formula_data"] = text_data(variants, inputs, stream)
    if variants.mask:
        full = (problem.batch, problem.query_heads, problem.query_length, problem.key_length)
        inputs["attention_mask"] = mx.broadcast_to(inputs["attention_mask"], full)
    if variants.block:
        # A kernel that owns keys traverses the lists of query blocks, one for each column of blocks.
        for name in ("block_lists", "block_counts"):
            by_column = inputs.pop(f"{name}_t")
            inputs[name] = by_column if kind.over_keys else inputs[name]
    if variants.shifts and variants.segments:
        inputs["q_segments"] = mx.concatenate([inputs["q_segments"], inputs.pop("shifts")], axis=1, stream=stream)
    elif variants.shifts:
        inputs["shifts"] = inputs["shifts"].flatten(stream=stream)
    if variants.lengths:
        inputs["lengths"] = inputs["lengths"].flatten(stream=stream)
    if variants.window:
        inputs["window"] = variants.window
    if variants.softcap:
        inputs["softcap"] = variants.softcap
    if variants.dropout:
        inputs["survivor_scale"] = 1 / (1 - variants.dropout)


def dequantized(signature: Signature, names: tuple[str, ...], arrays: dict[str, mx.array], stream) -> tuple:
    """(signature, names and arrays) of the same attention over the values of quantized K and V. `names`: the operands
    after Q, K and V; `arrays`: all of them."""
    quantization = signature.variants.quantization
    signature = replace(signature, variants=replace(signature.variants, quantization=None))
    names, dtype = tuple(name for name in names if name not in quantization.inputs), getattr(mx, signature.dtype)
    parts = [[arrays[one] for one in (name, *quantization.inputs_of(name))] for name in "KV"]
    with mx.stream(stream) if stream is not None else nullcontext():
        values = [quantization.dequantized(slice(None), dtype, *one) for one in parts]
    return signature, names, (arrays["Q"], *values, *(arrays[name] for name in names))
