"""One kernel on a tiny problem: does it compile, end, and agree with the reference?"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from math import prod

import mlx.core as mx
import numpy as np

from ...autodiff.operands import SUM, array_inputs, operands
from ...autodiff.tables import sum_shape
from ...autodiff.turns import of_kept
from ...autodiff.vjp import attend
from ...backends import CAPABILITIES, Backend, backend
from ...backends.metal import run
from ...kernels.devices import Family
from ...kernels.plan import plan_of
from ...kernels.source import Kernel
from ...kernels.split_kv import LEAST, QUERIES
from ...problem.formulas.program import Formula
from ...problem.formulas.score import visited_as_a_whole
from ...problem.formulas.syntax import Item, Name, expressions
from ...problem.kinds import (
    BACKWARD_QUERY,
    COMBINE,
    DECODE,
    DECODING,
    DELTA,
    FORWARD,
    KEPT_KINDS,
    KINDS,
    KernelKind,
)
from ...problem.latent import code_columns_of
from ...problem.masks import BlockMask
from ...problem.problem import Problem, Signature
from ...problem.shards import in_shards, traversed_operands

# Errors relative to the largest magnitude, far above those of a right kernel; `check` measures accuracy.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
LENGTHS = (83, 147)  # queries and keys: several blocks of every table row, and a partial one
SHORT = (24, 40)
CHARACTERS = 600  # kept of a compiler's message


def trial(name: str, signature: Signature, family: Family, rows: int, kernel: Kernel) -> dict:
    """The fields of an Answer (backends/prober.py) about one kernel: kind, signature, family and rows of its plan."""
    kind = (KINDS | {kind.name: kind for kind in KEPT_KINDS})[name]
    metal = Backend("metal", family, run, **CAPABILITIES["metal"])
    try:
        problem, arrays, names, want = task(kind, signature, family, rows)
    except Exception as error:  # a defect of this package, which another version may not have
        return {"reason": f"it could not be tried: {_said(error)}", "lasting": False}
    # Tries the text of the request, in case this process would generate another one.
    vars(plan_of(kind, problem, family))["kernel"] = kernel
    start = time.perf_counter()
    try:
        got = outputs(kind, problem, arrays, names, metal)
        mx.eval(got)
    except Exception as error:
        return failure(error, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    error = max(map(relative_error, got, want))
    wrong = error > TOLERANCE[signature.dtype]
    reason = f"its numbers are wrong, by {error:.2g} of the largest magnitude" if wrong else ""
    return {"reason": reason, "error": min(error, 1e300), "seconds": seconds}


def task(kind: KernelKind, signature: Signature, family: Family, rows: int):
    """(the problem, its arrays, their names as `tensors` has them, the reference's outputs), evaluated.

    A text may have no value for some numbers, such as the logarithm of a negative one, and none for positions that its
    tables do not reach, where it may hide all keys too: then its arrays are positive, and at last the lengths short, so
    that there is something to compare.
    """
    for lengths, positive in ((LENGTHS, False), (LENGTHS, True), (SHORT, True)):
        problem = tiny(kind, signature, family, rows, lengths)
        arrays, names = tensors(problem, positive)
        want = outputs(kind, problem, arrays, names, backend("reference"))
        mx.eval(want, *arrays.values())
        if not problem.variants.texts or (want[0].any().item() and not any(mx.isnan(one).any().item() for one in want)):
            break
    return problem, arrays, names, want


def failure(error: Exception, seconds: float) -> dict:
    """The fields of an Answer about a kernel that raised."""
    # Compilers' errors, and those of launches, come as these two; others are of this installation.
    lasting = isinstance(error, (RuntimeError, ValueError))
    return {"reason": _said(error), "seconds": seconds, "lasting": lasting}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:CHARACTERS]}"


def tiny(
    kind: KernelKind, signature: Signature, family: Family, rows: int, lengths: tuple[int, int] = LENGTHS
) -> Problem:
    """A problem of the kernel: one batch entry and key head, several blocks along both sequences where these lengths
    are LENGTHS."""
    variants, group = signature.variants, signature.group
    if kind in DECODING:
        queries, keys = 1, 2 * LEAST + 67 if lengths == LENGTHS else lengths[1]  # the keys in two parts
        window = (2 * LEAST, 2)
    else:
        block = variants.block or 0
        queries, keys = (max(length, 2 * block + 19) for length in lengths)
        group, window = min(group, 2), (40, 2)
    if kind is COMBINE:
        variants = replace(variants, window=None)
    if variants.window:
        variants = replace(variants, window=window)
    if variants.quantization:
        keys += keys % 2  # mx.quantize wants whole pairs of nvfp4's groups on the CPU
    if variants.page:
        keys = -(-keys // variants.page) * variants.page
    if variants.pieces:
        queries, keys = (-(-length // prod(variants.pieces)) * prod(variants.pieces) for length in (queries, keys))
    inner = replace(
        signature, query_heads=group, key_heads=1, scale=1 / math.sqrt(signature.head_dim), variants=variants
    )
    problem = Problem(inner, 1, queries, keys, (1, group, queries, keys) if variants.mask else None)
    return _filling(problem, family, rows) if kind is DECODE else problem


def _filling(problem: Problem, family: Family, rows: int) -> Problem:
    """The problem with as many queries as give a threadgroup these rows, since a kernel needs its own number of
    threads."""
    for queries in range(1, QUERIES + 1):
        shape = problem.mask_shape and (*problem.mask_shape[:2], queries, problem.key_length)
        found = problem._replace(query_length=queries, mask_shape=shape)
        if plan_of(DECODE, found, family).rows == rows:
            return found
    raise ValueError(f"no call has {rows} rows of queries, {problem.query_heads // problem.key_heads} heads a key head")


def tensors(problem: Problem, positive: bool = False) -> tuple[dict[str, mx.array], tuple[str, ...]]:
    """(every array a kernel of the problem may read, by name; names of those besides Q, K, V and the gradients').
    `positive`: the arrays of texts are."""
    variants, dtype, group = problem.variants, getattr(mx, problem.dtype), problem.query_heads
    queries, keys = problem.query_length, problem.key_length

    def normal(seed: int, *shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
        return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)

    # Keys in pages lie in a pool, in another order, with one page that nobody reads.
    pages = keys // variants.page if variants.page else 0
    held = (pages + 1, 1, variants.page) if pages else (1, 1, keys)
    arrays = {
        "Q": normal(1, 1, group, queries, problem.head_dim, dtype=dtype),
        "K": normal(2, *held, problem.head_dim, dtype=dtype),
        "V": normal(3, *held, problem.value_dim, dtype=dtype),
        "dO": normal(4, 1, group, queries, problem.value_dim, dtype=dtype),
    }
    if variants.latent:
        arrays["V"] = arrays["K"][..., : problem.value_dim]
    mask = None
    if variants.mask == "bool":
        mask = normal(5, *problem.mask_shape) > -1
    elif variants.mask:
        mask = normal(5, *problem.mask_shape, dtype=getattr(mx, variants.mask))
    elif variants.block:
        mask = BlockMask.from_predicate(
            lambda i, j: (j <= i + keys - queries) & (j % 64 < 50), queries, keys, block=variants.block
        )
    if variants.visible and variants.block:
        mask = visited_as_a_whole(queries, keys, variants.block)
    placed = variants.shifts and not variants.segments  # rows of a sequence that several machines share
    unplaced = replace(problem.signature, variants=replace(variants, shifts=variants.shifts and not placed))
    extras = operands(
        problem._replace(signature=unplaced), mask=mask, alibi_slopes=-abs(normal(6, group)) / 8,
        sinks=normal(7, group), key=mx.random.key(8), pages=mx.arange(pages, 0, -1)[None],
        segments=(mx.arange(queries) // 50, mx.arange(keys) // 50),
        lengths=(mx.array([max(1, queries - 1)]), mx.array([keys - 5])),
    )  # fmt: skip
    if placed:
        extras["shifts"] = mx.full((1, queries + keys), keys - queries - 9, mx.int32)
    for text in variants.texts:
        extras |= _read_by(text, problem, positive)
    quantization, quantized, parts = variants.quantization, {}, {}
    for name in ("K", "V") if quantization else ():
        quantized[name] = mx.quantize(
            arrays[name], group_size=quantization.group_size, bits=quantization.bits, mode=quantization.mode
        )
    if quantized and variants.latent:
        quantized["V"] = code_columns_of(quantized["K"], None, problem.value_dim, quantization)
    for name, (arrays[name], *rest) in quantized.items():
        parts.update(zip((one for one in quantization.inputs if one.startswith(name)), rest))
    return {**arrays, **parts, **extras}, (*parts, *extras)


def _read_by(text: Formula, problem: Problem, positive: bool) -> dict[str, mx.array]:
    """Arrays for a text: small numbers, long enough for every position."""
    length = max(512, problem.query_length + 64, problem.key_length + 64)
    found, indices = {}, {one.array: one.indices for one in expressions(text.body) if isinstance(one, Item)}
    for number, one in enumerate(text.arrays):
        names = [
            {part.name for part in expressions(index) if isinstance(part, Name)} for index in indices.get(one.name, ())
        ]
        shape = tuple(4 if axis and axis <= {"b", "h"} else length for axis in names) or (1,) * (one.axes or 0)
        values = mx.random.normal(shape, key=mx.random.key(20 + number)) / 8
        numbers = abs(values) if positive else values
        found[text.operand(one.name)] = numbers if one.type == "float" else (values > 0).astype(mx.int32)
    if text is problem.variants.score and problem.variants.seed:
        full = (1, problem.query_heads, problem.query_length, problem.key_length)
        name = text.arrays[problem.variants.seed - 1].name
        found[SUM + problem.variants.seeded] = mx.zeros(sum_shape(text, name, full))
    return found


def outputs(kind: KernelKind, problem: Problem, arrays: dict, names: tuple[str, ...], where: Backend):
    """The outputs of a kind of kernel on a backend; results of other kernels that it reads are the reference's.

    Kernels that read what another keeps are tried together, because only they know how it lies in memory: for each of
    them dQ, dK and dV.
    """
    attention, pieces = attend(problem.signature, names, where), problem.variants.pieces
    extras = [arrays[name] for name in names]

    def held(name: str) -> mx.array:
        return in_shards(arrays[name], *pieces) if pieces and name in traversed_operands(kind) else arrays[name]

    if kind in (FORWARD, DECODE, COMBINE):
        return attention.run(FORWARD, *map(held, "QKV"), *extras)
    in_order = replace(problem.signature, variants=replace(problem.variants, pieces=None))
    right = attend(in_order, names, backend("reference"))
    arrays = dict(arrays)
    arrays["O"], arrays["L"] = right.run(FORWARD, arrays["Q"], arrays["K"], arrays["V"], *extras)
    if kind is not DELTA:
        arrays["delta"] = right.run(DELTA, arrays["dO"], arrays["O"])[0]
    if kind in KEPT_KINDS:
        given = (*(arrays[name] for name in ("Q", "K", "V", "dO", "L", "delta")), *extras)
        if where.family is None:
            return (*right.run(BACKWARD_QUERY, *given), *right.key_value(given))
        return of_kept(given, attention.run)
    own = [held(name) for name in array_inputs(kind)]
    return attention.run(kind, *own, *(extras if kind is not DELTA else ()))


def relative_error(got: mx.array, want: mx.array) -> float:
    """The largest difference by the largest magnitude wanted; infinite where one of two numbers is not finite. Where
    the reference has no number, which only a text brings about, a kernel may have any: fast math does not tell."""
    got, want = (np.array(array.astype(mx.float32), np.float64) for array in (got, want))
    with np.errstate(invalid="ignore"):
        same = (got == want) | np.isnan(want)
        difference = np.where(same, 0.0, np.abs(got - want))
    if not np.isfinite(difference).all():
        return math.inf
    magnitude = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return float(difference.max(initial=0.0) / magnitude) if magnitude else float(difference.max(initial=0.0))
