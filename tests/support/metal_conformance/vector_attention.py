"""MLX's attention for few queries: sdpa_vector in one pass, and in two."""

import functools
import itertools
import math

import mlx.core as mx
import numpy as np

from metal_conformance.attention import MASKS, masked, softmax_attention
from metal_conformance.case import FLOATS, METAL_TYPES, ROUNDING, Case, agree, double, library, normal, short, threads

_HEADER = ("sdpa_vector.h",)
_HEADS, _KEY_HEADS, _ROWS = 4, 2, 2


def _kernel(function: str, head_dim: int, dtype: mx.Dtype, constants: dict | None = None):
    return library(_HEADER).kernel(f"{function}<{METAL_TYPES[dtype]}, {head_dim}>", constants)


def _problem(head_dim: int, dtype: mx.Dtype, kind: str, columns: int):
    shapes = [(1, _HEADS, _ROWS, head_dim), (1, _KEY_HEADS, columns, head_dim), (1, _KEY_HEADS, columns, head_dim)]
    q, k, v = (normal(shape, dtype, seed) for seed, shape in enumerate(shapes))
    mask, bias = masked(kind, dtype, _HEADS, _ROWS, columns)
    wanted, lse = softmax_attention(double(q), double(k), double(v), 1 / math.sqrt(head_dim), bias)
    if kind == "sinks":
        wanted /= 1 + np.exp(double(_sinks(dtype))[:, None] - lse)[..., None]
    return q, k, v, mask, wanted


def _sinks(dtype: mx.Dtype) -> mx.array:
    """A logit for each head that takes a share of the weights and has no value."""
    return normal((_HEADS,), dtype, 9, 2.0)


def _constants(kind: str, **more) -> dict:
    return {
        "has_mask": kind in ("bool", "additive"), "query_transposed": False, "do_causal": kind == "causal",
        "bool_mask": kind == "bool", "float_mask": kind == "additive", "has_sinks": kind == "sinks", **more,
    }  # fmt: skip


def _mask_arguments(mask, kind: str, first: int, columns: int) -> dict:
    """The mask and its strides, in the buffers from number `first` on."""
    if mask is None:
        return {}
    strides = (1, columns, _ROWS * columns)
    return {first + (kind == "additive"): mask} | {first + 2 + i: np.int32(stride) for i, stride in enumerate(strides)}


def run_one_pass(head_dim: int, dtype: mx.Dtype, kind: str):
    columns = 70
    q, k, v, mask, wanted = _problem(head_dim, dtype, kind, columns)
    strides = [np.uint64(s) for s in (columns * head_dim, head_dim, columns * head_dim, head_dim)]
    arguments = {0: q, 1: k, 2: v, 3: (q.shape, dtype), 4: np.int32(_HEADS // _KEY_HEADS), 5: np.int32(columns)}
    arguments |= (
        dict(enumerate(strides, 6))
        | {10: np.float32(1 / math.sqrt(head_dim))}
        | _mask_arguments(mask, kind, 11, columns)
    )
    arguments |= {16: _sinks(dtype), 17: np.int32(_HEADS)} if kind == "sinks" else {}
    kernel = _kernel("sdpa_vector", head_dim, dtype, _constants(kind))
    (got,) = kernel(arguments, threads((_HEADS, _ROWS, 1), (1024, 1, 1)), (1024, 1, 1))
    agree(got, wanted, 8 * ROUNDING[dtype] + 1e-5, "O")


def run_two_passes(head_dim: int, dtype: mx.Dtype, kind: str):
    columns, blocks = 200, 32
    q, k, v, mask, wanted = _problem(head_dim, dtype, kind, columns)
    strides = [np.uint64(s) for s in (columns * head_dim, head_dim, columns * head_dim, head_dim)]
    partial = (1, _HEADS, _ROWS, blocks)
    arguments = {0: q, 1: k, 2: v, 3: ((*partial, head_dim), dtype), 4: (partial, mx.float32), 5: (partial, mx.float32)}
    arguments |= {7: np.int32(columns)} | dict(enumerate(strides, 8)) | {12: np.float32(1 / math.sqrt(head_dim))}
    arguments |= _mask_arguments(mask, kind, 13, columns)
    group = (32, _HEADS // _KEY_HEADS, _ROWS)
    arguments |= {18: _sinks(dtype)} if kind == "sinks" else {}
    first = _kernel("sdpa_vector_2pass_1", head_dim, dtype, _constants(kind, blocks=blocks))
    partials, sums, largest = first(arguments, threads((_KEY_HEADS, 1, blocks), group), group)
    arguments = [partials, sums, largest, (q.shape, dtype), np.int32(blocks)]
    second = _kernel("sdpa_vector_2pass_2", head_dim, dtype)
    (got,) = second(arguments, threads((_HEADS, _ROWS, 1), (1024, 1, 1)), (1024, 1, 1))
    # The partial results are rounded to the dtype between the passes.
    agree(got, wanted, 12 * ROUNDING[dtype] + 1e-5, "O")


def cases() -> list[Case]:
    """Both variants, three dtypes and all masks; the head dimension varies with the dtype."""
    found = []
    for (dtype, head_dim), kind in itertools.product(zip(FLOATS, (64, 128, 96)), (*MASKS, "sinks")):
        name = f"D{head_dim} {short(dtype)} {'sinks' if kind == 'sinks' else f'{kind} mask'}"
        found.append(Case("sdpa_vector", name, functools.partial(run_one_pass, head_dim, dtype, kind)))
        found.append(Case("sdpa_vector two-pass", name, functools.partial(run_two_passes, head_dim, dtype, kind)))
    return found
