"""Other products than the plain ones: split along the depth, and the Hadamard transform."""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance.case import (
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

_I = np.int32
SPLIT_PARAMS = [
    ("M", _I), ("N", _I), ("K", _I), ("lda", _I), ("ldb", _I), ("ldc", _I), ("tiles_n", _I), ("tiles_m", _I),
    ("split_k_partitions", _I), ("split_k_partition_stride", _I), ("split_k_partition_size", _I),
    ("swizzle_log", _I), ("gemm_k_iterations_aligned", _I),
]  # fmt: skip
_BLOCKS = (16, 16, 16, 2, 2)


def run_split(dtype: mx.Dtype, epilogue: str, rows: int = 24, columns: int = 40, depth: int = 192, parts: int = 3):
    """A @ B, or A @ B alpha + C beta: a second kernel adds up float32 partial products."""
    a, b, c = normal((rows, depth), dtype, 1), normal((depth, columns), dtype, 2), normal((rows, columns), dtype, 3)
    bm, bn, bk, wm, wn = _BLOCKS
    tiles, name = (-(-columns // bn), -(-rows // bm)), METAL_TYPES[dtype]
    params = structure(
        SPLIT_PARAMS, M=rows, N=columns, K=depth, lda=depth, ldb=columns, ldc=columns, tiles_n=tiles[0],
        tiles_m=tiles[1], split_k_partitions=parts, split_k_partition_stride=rows * columns,
        split_k_partition_size=depth // parts,
        gemm_k_iterations_aligned=depth // parts // bk,
    )  # fmt: skip
    source = library(("steel/gemm/gemm.h", "steel/gemm/kernels/steel_gemm_splitk.h"))
    split = source.kernel(f"gemm_splitk<{name}, float, {', '.join(map(str, _BLOCKS))}, false, false, false, true>")
    (partial,) = split([a, b, ((parts, rows, columns), mx.float32), params], threads((*tiles, parts), (32, wn, wm)),
                       (32, wn, wm))  # fmt: skip
    arguments = [partial, ((rows, columns), dtype), _I(parts), _I(rows * columns), _I(columns)]
    wanted, addition = double(a) @ double(b), f"{epilogue}<float, {name}>"
    if epilogue == "gemm_splitk_accum_axpby":
        arguments += [c, _I(columns), _I(1), np.float32(0.5), np.float32(-2.0)]
        wanted = 0.5 * wanted - 2.0 * double(c)
    (got,) = source.kernel(addition)(arguments, (columns, rows, 1), (8, 8, 1))
    agree(got, wanted, 2 * ROUNDING[dtype] + 4e-6 * depth**0.5, "A @ B")


def run_hadamard(dtype: mx.Dtype, size: int, batch: int = 3):
    """Sylvester's matrix times every row."""
    x = normal((batch, size), dtype, 4)
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    radix, scale = min(size, 16), 1 / size**0.5
    kernel = library(("steel/utils.h", "hadamard.h")).kernel(f"hadamard_n<{METAL_TYPES[dtype]}, {size}, {radix}, 4>")
    (got,) = kernel([x, (x.shape, dtype), np.float32(scale)], (size // radix, batch, 1), (size // radix, 1, 1))
    # Intermediate steps are stored in the dtype, unscaled.
    agree(got, double(x) @ matrix * scale, 8 * ROUNDING[dtype] + 1e-6, "H x")


def cases() -> list[Case]:
    """Both ways to end a split product, and transforms with and without a last step of another radix."""
    found = []
    for dtype, epilogue in ((mx.float16, "gemm_splitk_accum"), (mx.bfloat16, "gemm_splitk_accum_axpby")):
        run = functools.partial(run_split, dtype, epilogue)
        found.append(Case("steel split-K gemm", f"{epilogue} {short(dtype)}", run))
    for dtype, size in ((mx.float32, 256), (mx.float16, 128)):
        found.append(Case("hadamard", f"{size} {short(dtype)}", functools.partial(run_hadamard, dtype, size)))
    return found
