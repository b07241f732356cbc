"""MLX's products for the neural accelerators of M5: plain, split, gathered, segmented, with few rows."""

import functools
import itertools

import mlx.core as mx
import numpy as np

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
    structure,
    threads,
)
from metal_conformance.matmul import GEMM_PARAMS
from metal_conformance.products import SPLIT_PARAMS

_I = np.int32
_BLOCKS = (64, 64, 256, 2, 2)  # rows, columns, depth, simdgroups along rows and columns
_GROUP = (32, 2, 2)
_LAYOUTS = ("nn", "nt", "tn", "tt")
# The last blocks are so incomplete that every simdgroup is affected. MLX has one loop for whole blocks and one for
# incomplete ones, each with a barrier, and all simdgroups of a threadgroup have to reach the same one.
RAGGED, ALIGNED = (80, 72, 300), (128, 64, 256)


def kernel_of(header: str, function: str, dtype: mx.Dtype, layout: str, constants: dict, blocks=_BLOCKS):
    transposed = ["true" if letter == "t" else "false" for letter in layout]
    template = ", ".join([METAL_TYPES[dtype], *map(str, blocks), *transposed, "float"])
    source = library(("steel/gemm/gemm_nax.h", f"steel/gemm/kernels/steel_gemm_{header}.h"), TENSOR_LANGUAGE)
    return source.kernel(f"{function}<{template}>", constants)


def operands(dtype: mx.Dtype, layout: str, shape: tuple[int, int, int], batches: int = 1):
    """(left factor, right factor as stored, product in float64)."""
    rows, columns, depth = shape
    a, b = normal((batches, rows, depth), dtype, 1), normal((batches, depth, columns), dtype, 2)
    left = mx.contiguous(a.swapaxes(-1, -2)) if layout[0] == "t" else a
    right = mx.contiguous(b.swapaxes(-1, -2)) if layout[1] == "t" else b
    return left, right, double(a) @ double(b)


def params(shape: tuple[int, int, int], left: mx.array, right: mx.array, fields=GEMM_PARAMS, **more) -> np.void:
    (rows, columns, depth), (bm, bn, bk, *_) = shape, _BLOCKS
    named = dict(
        M=rows, N=columns, K=depth, lda=left.shape[-1], ldb=right.shape[-1], ldd=columns, tiles_n=-(-columns // bn),
        tiles_m=-(-rows // bm), batch_stride_a=rows * depth, batch_stride_b=depth * columns,
        batch_stride_d=rows * columns, gemm_k_iterations_aligned=depth // bk, batch_ndim=1,
    ) | more  # fmt: skip
    return structure(fields, **{name: value for name, value in named.items() if name in {f[0] for f in fields}})


def tolerance(dtype: mx.Dtype, depth: int) -> float:
    """The unit keeps 10 bits of the mantissa of float factors: their rounding errors add up like the terms."""
    return 2 * RELAXED[dtype] + (4e-6 if dtype != mx.float32 else 4 * 2.0**-11) * depth**0.5


def aligned(shape: tuple[int, int, int], letters: str = "MNK") -> dict[str, bool]:
    return {f"align_{letter}": size % block == 0 for letter, size, block in zip(letters, shape, _BLOCKS)}


def blocks_of(shape: tuple[int, int, int]) -> tuple[int, int]:
    return -(-shape[1] // _BLOCKS[1]), -(-shape[0] // _BLOCKS[0])


def run_fused(dtype: mx.Dtype, layout: str, shape: tuple[int, int, int]):
    """Runs two batches."""
    left, right, wanted = operands(dtype, layout, shape, 2)
    constants = {"has_batch": False, "use_out_source": False, "do_axpby": False, **aligned(shape)}
    kernel = kernel_of("fused_nax", "gemm", dtype, layout, constants)
    arguments = {0: left, 1: right, 3: (wanted.shape, dtype), 4: params(shape, left, right)}
    (got,) = kernel(arguments, threads((*blocks_of(shape), 2), _GROUP), _GROUP)
    agree(got, wanted, tolerance(dtype, shape[2]), "A @ B")


def run_split(dtype: mx.Dtype, layout: str, shape: tuple[int, int, int]):
    """Runs two separate parts of the depth."""
    left, right, _ = operands(dtype, layout, shape)
    rows, columns, depth = shape
    size = -(-depth // 2)
    more = dict(ldc=columns, split_k_partitions=2, split_k_partition_stride=rows * columns, split_k_partition_size=size)
    kernel = kernel_of("splitk_nax", "gemm_splitk_nax", dtype, layout, aligned(shape, "MN"))
    arguments = {0: left, 1: right, 2: ((2, rows, columns), mx.float32)}
    arguments[3] = params(shape, left, right, SPLIT_PARAMS, **more)
    (got,) = kernel(
        arguments, threads((2 * int(arguments[3]["tiles_m"] * arguments[3]["tiles_n"]), 1, 1), _GROUP), _GROUP
    )
    a, b = normal((1, rows, depth), dtype, 1), normal((1, depth, columns), dtype, 2)
    parts = [double(a)[0, :, part] @ double(b)[0, part] for part in (slice(size), slice(size, None))]
    agree(got, np.stack(parts), tolerance(dtype, size), "parts of A @ B")


def run_gathered(dtype: mx.Dtype, layout: str, shape: tuple[int, int, int]):
    """Rows sorted by the matrix that they are multiplied with; the second of three matrices gets no rows."""
    rows, columns, depth = shape
    b = normal((3, depth, columns), dtype, 2)
    a, begins = normal((rows, depth), dtype, 1), np.array([0, *[68 if shape is RAGGED else 64] * 2], _I)
    right = mx.contiguous(b.swapaxes(-1, -2)) if layout[1] == "t" else b
    kernel = kernel_of("gather_nax", "gather_mm_rhs_nax", dtype, layout, aligned(shape))
    arguments = {0: a, 1: right, 2: begins, 3: ((rows, columns), dtype), 4: params(shape, a, right), 5: _I(3)}
    (got,) = kernel(arguments, threads((blocks_of(shape)[0], 4, 1), _GROUP), _GROUP)
    met = np.searchsorted(begins, np.arange(rows), side="right") - 1
    agree(got, np.einsum("rk,rkc->rc", double(a), double(b)[met]), tolerance(dtype, depth), "A @ B[group]")


def run_segmented(dtype: mx.Dtype, layout: str, shape: tuple[int, int, int]):
    """Runs several ranges of the depth, one of them empty."""
    left, right, _ = operands(dtype, layout, shape)
    rows, columns, depth = shape
    segments = np.array([[0, 33], [33, 33], [20, depth]], np.uint32)
    kernel = kernel_of(
        "segmented_nax", "segmented_mm_nax", dtype, layout, {"segments_contiguous": True, **aligned(shape, "MN")}
    )
    arguments = {0: left, 1: right, 2: segments, 3: ((3, rows, columns), dtype), 4: params(shape, left, right)}
    (got,) = kernel(arguments, threads((*blocks_of(shape), 3), _GROUP), _GROUP)
    a, b = normal((1, rows, depth), dtype, 1), normal((1, depth, columns), dtype, 2)
    wanted = [double(a)[0, :, begin:end] @ double(b)[0, begin:end] for begin, end in segments]
    agree(got, np.stack(wanted), tolerance(dtype, depth), "A @ B of segments")


def run_thin(dtype: mx.Dtype, transposed: bool, shape: tuple[int, int, int], splits: int = 2):
    """The product reads B from memory itself, in parts of the depth that groups of simdgroups share."""
    layout = "nt" if transposed else "nn"
    left, right, wanted = operands(dtype, layout, shape)
    rows, columns, depth = shape
    more = dict(tiles_m=-(-rows // 32), tiles_n=-(-columns // 32), gemm_k_iterations_aligned=-(-depth // (64 * splits)))
    constants = {"use_out_source": False, "do_axpby": False}
    constants |= {f"align_{letter}": n % block == 0 for letter, n, block in zip("MNK", shape, (32, 32, 64 * splits))}
    source = library(("steel/gemm/gemm_nax.h", "steel/gemm/kernels/steel_gemm_thin_nax.h"), TENSOR_LANGUAGE)
    kernel = source.kernel(
        f"gemm_thin_nax<{METAL_TYPES[dtype]}, 2, 2, 1, 1, {splits}, {layout[1] == 't'}>".replace(
            "True", "true"
        ).replace("False", "false"),
        constants,
    )
    group = (32 * splits, 1, 1)
    arguments = {0: left, 1: right, 3: (wanted.shape, dtype), 4: params(shape, left, right, **more)}
    (got,) = kernel(arguments, threads((more["tiles_m"] * more["tiles_n"], 1, 1), group), group)
    agree(got, wanted, tolerance(dtype, depth), "A @ B")


def cases() -> list[Case]:
    """Plain products in all layouts, other products in some."""
    found = []
    for dtype, layout, shape in itertools.product((mx.float16, mx.bfloat16), _LAYOUTS, (RAGGED, ALIGNED)):
        name = f"{short(dtype)} {layout} {'ragged' if shape is RAGGED else 'aligned'}"
        for family, run, layouts in (
            ("tensor gemm", run_fused, _LAYOUTS), ("tensor split-K gemm", run_split, _LAYOUTS),
            ("tensor gathered gemm", run_gathered, ("nn", "nt")), ("tensor segmented gemm", run_segmented, _LAYOUTS),
        ):  # fmt: skip
            if layout in layouts:
                found.append(Case(family, name, functools.partial(run, dtype, layout, shape)))
    found.append(Case("tensor gemm", "float32 nt ragged", functools.partial(run_fused, mx.float32, "nt", RAGGED)))
    for dtype, transposed, shape in itertools.product(
        (mx.float16, mx.bfloat16), (False, True), ((40, 50, 200), (32, 64, 256))
    ):
        name = f"{short(dtype)} {'nt' if transposed else 'nn'} {'ragged' if shape[0] == 40 else 'aligned'}"
        found.append(Case("tensor thin gemm", name, functools.partial(run_thin, dtype, transposed, shape)))
    return found
