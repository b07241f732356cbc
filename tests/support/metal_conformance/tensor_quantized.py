"""MLX's products with quantized matrices for the neural accelerators of M5: integers, and floats of 4 or 8 bits."""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance import float_products, matmul
from metal_conformance.case import (
    METAL_TYPES,
    RELAXED,
    TENSOR_LANGUAGE,
    Case,
    agree,
    double,
    library,
    normal,
    short,
    threads,
)

_I = np.int32
_GROUP = (32, 2, 2)
_BLOCK = 64  # rows and columns of a threadgroup


def run_affine(dtype: mx.Dtype, variant: str, bits: int, rows: int = 80, columns: int = 128, depth: int = 256):
    """x @ W^T (qmm_t), or x @ W (qmm_n)."""
    transposed = variant == "qmm_t"
    packed, scales, biases, weight = matmul.quantized(
        (columns, depth) if transposed else (depth, columns), dtype, bits, 64
    )
    x = normal((rows, depth), dtype, 6, 0.25)
    source = library(("steel/gemm/gemm_nax.h", "quantized_utils.h", "quantized_nax.h"), TENSOR_LANGUAGE)
    flags = "true, false" if transposed else "false"
    kernel = source.kernel(f"affine_{variant}_nax<{METAL_TYPES[dtype]}, 64, {bits}, {flags}>")
    arguments = [packed, scales, biases, x, ((rows, columns), dtype), _I(depth), _I(columns), _I(rows), *[None] * 8]
    (got,) = kernel(arguments, threads((columns // _BLOCK, -(-rows // _BLOCK), 1), _GROUP), _GROUP)
    wanted = double(x) @ (weight.T if transposed else weight)
    # The weights are rounded to the dtype first. In float32 the unit rounds both factors of every term.
    rounded = 2.0**-11 * depth**0.5 if dtype == mx.float32 else 1e-4
    agree(got, wanted, 8 * RELAXED[dtype] + rounded, variant)


def run_gathered(dtype: mx.Dtype, bits: int, rows: int = 80, columns: int = 64, depth: int = 256):
    """Rows sorted by the matrix that they are multiplied with; the second of three matrices gets no rows."""
    packed, scales, biases, weight = matmul.quantized((3 * columns, depth), dtype, bits, 64)
    x, begins = normal((rows, depth), dtype, 7, 0.25), np.array([0, 64, 64], _I)
    source = library(("steel/gemm/gemm_nax.h", "quantized_utils.h", "quantized_nax.h"), TENSOR_LANGUAGE)
    constants = {"align_M": False, "align_N": True, "align_K": True}
    kernel = source.kernel(
        f"affine_gather_qmm_rhs_nax<{METAL_TYPES[dtype]}, 64, {bits}, 64, 64, 64, 2, 2, true>", constants
    )
    arguments = [x, packed, scales, biases, begins, ((rows, columns), dtype), _I(rows), _I(columns), _I(depth), _I(3)]
    (got,) = kernel(arguments, threads((columns // _BLOCK, 4, 1), _GROUP), _GROUP)
    met = np.searchsorted(begins, np.arange(rows), side="right") - 1
    wanted = np.einsum("rk,rck->rc", double(x), weight.reshape(3, columns, depth)[met])
    agree(got, wanted, 8 * RELAXED[dtype] + 1e-4, "x @ W[group]^T")


def run_floats(name: str, dtype: mx.Dtype, rows: int = 80, columns: int = 128, depth: int = 256):
    """x @ W^T. Not x @ W: MLX's template fp_qmm_n_nax calls a function with one argument too many."""
    packed, scales, weight = float_products.quantized((columns, depth), name)
    x = normal((rows, depth), dtype, 6, 0.25)
    bits, group = float_products.FORMATS[name]
    source = library(("steel/gemm/gemm_nax.h", "quantized_utils.h", "fp_quantized_nax.h"), TENSOR_LANGUAGE)
    kernel = source.kernel(f"fp_qmm_t_nax<{METAL_TYPES[dtype]}, {group}, {bits}, true, false>")
    lengths = [_I(depth), _I(columns), _I(rows)]
    arguments = [packed, scales, None, x, ((rows, columns), dtype), *lengths, *[None] * 7]
    (got,) = kernel(arguments, threads((columns // _BLOCK, -(-rows // _BLOCK), 1), _GROUP), _GROUP)
    # MLX rounds the weights that it reads to bfloat.
    agree(got, double(x) @ weight.T, 8 * RELAXED[mx.bfloat16] + 1e-4, "x @ W^T")


def cases() -> list[Case]:
    """Each kernel in two dtypes, and each format."""
    found = []
    for dtype, bits in ((mx.float16, 4), (mx.bfloat16, 8), (mx.float16, 3), (mx.float32, 6)):
        for variant in ("qmm_t", "qmm_n"):
            run = functools.partial(run_affine, dtype, variant, bits)
            found.append(Case("tensor quantized", f"{variant} {bits} bits {short(dtype)}", run))
    for dtype, bits in ((mx.float16, 4), (mx.bfloat16, 8)):
        run = functools.partial(run_gathered, dtype, bits)
        found.append(Case("tensor quantized, gathered", f"{bits} bits {short(dtype)}", run))
    for name, dtype in (("mxfp4", mx.bfloat16), ("mxfp8", mx.float16), ("nvfp4", mx.bfloat16)):
        found.append(Case("tensor fp quantized", f"{name} {short(dtype)}", functools.partial(run_floats, name, dtype)))
    return found
