"""Products of selected parts: matrices by index, tiles by masks, ranges of the depth by segments."""

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
from metal_conformance.matmul import GEMM_PARAMS

_BLOCKS = (32, 32, 16, 2, 2)
_INT, _LONG = np.int32, np.int64


def _params(rows: int, columns: int, depth: int, **strides) -> np.void:
    bm, bn, bk, _, _ = _BLOCKS
    return structure(
        GEMM_PARAMS, M=rows, N=columns, K=depth, lda=depth, ldb=columns, ldd=columns, tiles_n=-(-columns // bn),
        tiles_m=-(-rows // bm), batch_stride_d=rows * columns, gemm_k_iterations_aligned=depth // bk, batch_ndim=1,
        **strides,
    )  # fmt: skip


def _launch(kernel, arguments: dict, rows: int, columns: int, batches: int) -> mx.array:
    bm, bn, _, wm, wn = _BLOCKS
    group = (32, wn, wm)
    (got,) = kernel(arguments, threads((-(-columns // bn), -(-rows // bm), batches), group), group)
    return got


def _instance(header: str, function: str, *template) -> str:
    source = library(("steel/gemm/gemm.h", f"steel/gemm/kernels/steel_gemm_{header}.h"))
    return functools.partial(source.kernel, f"{function}<{', '.join(map(str, template))}>")


def run_gathered(dtype: mx.Dtype, rows: int = 40, columns: int = 56, depth: int = 36):
    """A[left] @ B[right], matrix by matrix."""
    a, b = normal((3, rows, depth), dtype, 1), normal((2, depth, columns), dtype, 2)
    left, right = mx.array([2, 0, 1, 2], mx.uint32), mx.array([0, 1, 1, 1], mx.uint32)
    kernel = _instance("gather", "gather_mm", METAL_TYPES[dtype], *_BLOCKS, "false", "false")(
        {"has_batch": False, "align_M": False, "align_N": False, "align_K": False}
    )
    arguments = {0: a, 1: b, 2: left, 3: right, 4: ((4, rows, columns), dtype)}
    arguments[5] = _params(rows, columns, depth, batch_stride_a=1, batch_stride_b=1)
    arguments |= {6: np.array([4], _INT), 7: np.array([1], _LONG), 8: np.array([1], _LONG)}
    arguments |= {9: _INT(1), 10: np.array([3], _INT), 11: np.array([rows * depth], _LONG)}
    arguments |= {12: _INT(1), 13: np.array([2], _INT), 14: np.array([depth * columns], _LONG)}
    wanted = double(a)[np.array(left)] @ double(b)[np.array(right)]
    agree(_launch(kernel, arguments, rows, columns, 4), wanted, 2 * ROUNDING[dtype] + 4e-6 * depth**0.5, "A[i] @ B[j]")


def run_segmented(dtype: mx.Dtype, rows: int = 40, columns: int = 56, depth: int = 90):
    """A @ B over each of several ranges of the depth, one of them empty."""
    a, b = normal((rows, depth), dtype, 3), normal((depth, columns), dtype, 4)
    segments = mx.array([[0, 33], [33, 33], [20, 90]], mx.uint32)
    kernel = _instance("segmented", "segmented_mm", METAL_TYPES[dtype], *_BLOCKS, "false", "false")(
        {"segments_contiguous": True, "align_M": False, "align_N": False}
    )
    params = _params(rows, columns, depth)
    arguments = {0: a, 1: b, 2: segments, 3: ((3, rows, columns), dtype), 4: params}
    wanted = np.stack([double(a)[:, s:e] @ double(b)[s:e] for s, e in np.array(segments)])
    agree(_launch(kernel, arguments, rows, columns, 3), wanted, 2 * ROUNDING[dtype] + 4e-6 * depth**0.5, "A @ B")


def run_masked(dtype: mx.Dtype, scaled: bool, rows: int = 72, columns: int = 40, depth: int = 80):
    """A @ B with a mask of blocks for A, for B and for the result; with `scaled` the masks are numbers."""
    block, random = _BLOCKS[0], np.random.default_rng(5)
    a, b = normal((rows, depth), dtype, 6), normal((depth, columns), dtype, 7)
    shapes = [tuple(-(-n // block) for n in shape) for shape in ((rows, columns), (rows, depth), (depth, columns))]
    masks = [random.random(shape) < 0.7 for shape in shapes]
    if scaled:
        masks = [mask * random.integers(1, 5, mask.shape) / 2 for mask in masks]
    given = [mx.array(mask).astype(dtype if scaled else mx.bool_) for mask in masks]
    kind = METAL_TYPES[given[0].dtype]
    template = (METAL_TYPES[dtype], kind, kind, *_BLOCKS, "false", "false", "false", "true")
    params = _params(rows, columns, depth)
    arguments = {0: a, 1: b, 3: ((rows, columns), dtype), 4: params, 6: np.array([1], _INT), 7: np.zeros(5, _LONG)}
    arguments |= dict(enumerate(given, 10))
    arguments[13] = np.array([stride for mask in masks for stride in (1, mask.shape[1])], _INT)
    spread = [np.kron(mask, np.ones((block, block))) for mask in masks]
    out, left, right = (m[:r, :c] for m, (r, c) in zip(spread, ((rows, columns), a.shape, b.shape)))
    wanted = out * ((double(a) * left) @ (double(b) * right))
    kernel = _instance("masked", "block_masked_gemm", *template)()
    agree(_launch(kernel, arguments, rows, columns, 1), wanted, 4 * ROUNDING[dtype] + 4e-6 * depth**0.5, "A @ B")


def cases() -> list[Case]:
    """Each kind in two dtypes."""
    found = []
    for dtype in (mx.float32, mx.bfloat16):
        found.append(Case("gathered gemm", short(dtype), functools.partial(run_gathered, dtype)))
    for dtype in (mx.float32, mx.float16):
        found.append(Case("segmented gemm", short(dtype), functools.partial(run_segmented, dtype)))
    for dtype, scaled in ((mx.float16, False), (mx.float32, True)):
        name = f"{'scaled' if scaled else 'bool'} masks {short(dtype)}"
        found.append(Case("masked gemm", name, functools.partial(run_masked, dtype, scaled)))
    return found
