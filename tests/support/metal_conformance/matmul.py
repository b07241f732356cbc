"""MLX's steel GEMM, its matrix-vector product, and products with quantized matrices."""

import functools
import itertools

import mlx.core as mx
import numpy as np

from metal_conformance.case import (
    FLOATS,
    METAL_TYPES,
    ROUNDING,
    Case,
    agree,
    double,
    library,
    normal,
    short,
    structure,
    threads,
)

_I, _L = np.int32, np.int64
GEMM_PARAMS = [
    ("M", _I), ("N", _I), ("K", _I), ("lda", _I), ("ldb", _I), ("ldd", _I), ("tiles_n", _I), ("tiles_m", _I),
    ("batch_stride_a", _L), ("batch_stride_b", _L), ("batch_stride_d", _L),
    ("swizzle_log", _I), ("gemm_k_iterations_aligned", _I), ("batch_ndim", _I),
]  # fmt: skip
_GEMV_SHAPE = (4, 1, 1, 32, 4, 4)  # simdgroups, threads and elements of a threadgroup, each along rows and columns
_GEMM_BLOCKS = (32, 32, 16, 2, 2)
# Widths that do not divide a word, or hardly; each in two kernels.
_ODD_BITS = {
    (mx.float16, "qmv_fast"): (2, 3), (mx.float32, "qmv"): (5, 6), (mx.bfloat16, "qmm_t"): (3, 5),
    (mx.float32, "qmm_n"): (2, 6),
}  # fmt: skip


def _gemm(dtype: mx.Dtype, layout: str, constants: dict):
    name, blocks = METAL_TYPES[dtype], ", ".join(map(str, _GEMM_BLOCKS))
    transposed = ", ".join("true" if letter == "t" else "false" for letter in layout)
    source = library(("steel/gemm/gemm.h", "steel/gemm/kernels/steel_gemm_fused.h"))
    return source.kernel(f"gemm<{name}, {blocks}, {transposed}>", constants)


def run_gemm(dtype: mx.Dtype, layout: str, rows: int = 40, columns: int = 56, depth: int = 36):
    """A @ B for two batches; `layout` says which of the two are transposed."""
    a, b = normal((2, rows, depth), dtype, 1), normal((2, depth, columns), dtype, 2)
    wanted = double(a) @ double(b)
    left = mx.contiguous(a.swapaxes(-1, -2)) if layout[0] == "t" else a
    right = mx.contiguous(b.swapaxes(-1, -2)) if layout[1] == "t" else b
    bm, bn, bk, wm, wn = _GEMM_BLOCKS
    tiles = (-(-columns // bn), -(-rows // bm))
    params = structure(
        GEMM_PARAMS, M=rows, N=columns, K=depth, lda=left.shape[-1], ldb=right.shape[-1], ldd=columns, tiles_n=tiles[0],
            tiles_m=tiles[1],
        batch_stride_a=rows * depth, batch_stride_b=depth * columns, batch_stride_d=rows * columns, swizzle_log=0,
        gemm_k_iterations_aligned=depth // bk, batch_ndim=1,
    )  # fmt: skip
    constants = {
        "has_batch": False, "use_out_source": False, "do_axpby": False,
        "align_M": rows % bm == 0, "align_N": columns % bn == 0, "align_K": depth % bk == 0,
    }  # fmt: skip
    kernel = _gemm(dtype, layout, constants)
    group = (32, wn, wm)
    (got,) = kernel({0: left, 1: right, 3: (wanted.shape, dtype), 4: params}, threads((*tiles, 2), group), group)
    agree(got, wanted, 2 * ROUNDING[dtype] + 4e-6 * depth**0.5, "A @ B")


def run_gemv(dtype: mx.Dtype, rows: int = 50, columns: int = 300):
    bm, bn, _, sn, tm, _ = _GEMV_SHAPE
    matrix, vector = normal((rows, columns), dtype, 3), normal((columns,), dtype, 4)
    name = METAL_TYPES[dtype]
    kernel = library(("gemv.h",)).kernel(f"gemv<{name}, {', '.join(map(str, _GEMV_SHAPE))}, false, false>")
    group = (32, bn, bm)
    arguments = {0: matrix, 1: vector, 2: None, 3: ((rows,), dtype), 4: _I(columns), 5: _I(rows), 6: _I(columns)}
    arguments |= {i: None for i in (7, 8)} | {9: _I(1), 10: np.array([1], _I), 11: _L(0), 12: _L(0), 13: None, 14: None}
    (got,) = kernel(arguments, threads((-(-rows // (bm * tm * (32 // sn))), 1, 1), group), group)
    agree(got, double(matrix) @ double(vector), 2 * ROUNDING[dtype] + 1e-4, "A x")


def quantized(
    shape: tuple[int, int], dtype: mx.Dtype, bits: int, group: int
) -> tuple[mx.array, mx.array, mx.array, np.ndarray]:
    """(packed integers, scales, biases, the matrix that they encode): a row is one string of bits, the lowest first."""
    packed, scales, biases = mx.quantize(normal(shape, dtype, 5), group_size=group, bits=bits)
    string = np.unpackbits(np.array(packed).view(np.uint8), axis=1, bitorder="little")
    integers = (string.reshape(*shape, bits) << np.arange(bits)).sum(-1)
    wanted = integers * np.repeat(double(scales), group, 1) + np.repeat(double(biases), group, 1)
    return packed, scales, biases, wanted


def run_quantized(dtype: mx.Dtype, variant: str, bits: int, group: int = 64):
    """x @ W^T, or x @ W for the variants qvm and qmm_n."""
    rows, columns, depth = (3 if variant in ("qmv", "qmv_fast", "qvm") else 40), 64, 512
    transposed = variant not in ("qvm", "qmm_n")
    packed, scales, biases, weight = quantized((columns, depth) if transposed else (depth, columns), dtype, bits, group)
    x = normal((rows, depth), dtype, 6, 0.25)
    wanted = double(x) @ (weight.T if transposed else weight)
    name, template = METAL_TYPES[dtype], {"qmm_t": "true, false", "qmm_n": "false"}.get(variant, "false")
    source = library(("steel/gemm/gemm.h", "quantized_utils.h", "quantized.h"))
    kernel = source.kernel(f"affine_{variant}<{name}, {group}, {bits}, {template}>")
    arguments = {0: packed, 1: scales, 2: biases, 3: x, 4: ((rows, columns), dtype), 5: _I(depth), 6: _I(columns)}
    matrix = variant in ("qmm_t", "qmm_n")
    arguments |= {7: _I(rows)} if matrix else {}
    arguments |= {index: None for index in range(8 if matrix else 7, 16 if matrix else 15)}
    block = {"qmv": (rows, columns // 8, 1), "qmv_fast": (rows, columns // 8, 1), "qvm": (rows, columns // 64, 1)}
    grid, size = ((columns // 32, -(-rows // 32), 1), (32, 2, 2)) if matrix else (block[variant], (32, 2, 1))
    (got,) = kernel(arguments, threads(grid, size), size)
    # In products of matrices, the dequantized weights are rounded to the dtype.
    agree(got, wanted, (8 if matrix else 4) * ROUNDING[dtype] + 1e-4, variant)


def cases() -> list[Case]:
    """GEMM in all four layouts, gemv, and five kernels of quantized products."""
    found = [
        Case("steel gemm", f"{short(dtype)} {layout}", functools.partial(run_gemm, dtype, layout))
        for dtype, layout in itertools.product(FLOATS, ("nn", "nt", "tn", "tt"))
    ]
    found += [Case("gemv", short(dtype), functools.partial(run_gemv, dtype)) for dtype in FLOATS]
    for dtype, variant in itertools.product(FLOATS, ("qmv", "qmv_fast", "qvm", "qmm_t", "qmm_n")):
        for bits in (4, 8, *_ODD_BITS.get((dtype, variant), ())):
            found.append(
                Case(
                    "quantized",
                    f"{variant} {bits} bits {short(dtype)}",
                    functools.partial(run_quantized, dtype, variant, bits),
                )
            )
    return found
