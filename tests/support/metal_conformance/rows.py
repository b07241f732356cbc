"""MLX's kernels along rows: softmax and logsumexp, short and looped."""

import functools
import itertools

import mlx.core as mx
import numpy as np

from metal_conformance.case import FLOATS, METAL_TYPES, ROUNDING, Case, agree, double, library, normal, short, threads

_ROWS = 3


def _reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top = x.max(-1, keepdims=True)
    weights = np.exp(x - top)
    total = weights.sum(-1, keepdims=True)
    return weights / total, (np.log(total) + top)[..., 0]


def run_softmax(dtype: mx.Dtype, variant: str, columns: int):
    x = normal((_ROWS, columns), dtype, 1, 3.0)
    kernel = library(("softmax.h",)).kernel(f"softmax_{variant}<{METAL_TYPES[dtype]}, float>")
    group = (-(-columns // 128) * 32 if variant == "single_row" else 1024, 1, 1)
    (got,) = kernel([x, (x.shape, dtype), np.int32(columns)], threads((_ROWS, 1, 1), group), group)
    agree(got, _reference(double(x))[0], 2 * ROUNDING[dtype] + 1e-6, "softmax")


def run_logsumexp(dtype: mx.Dtype, variant: str, columns: int):
    x = normal((_ROWS, columns), dtype, 2, 3.0)
    kernel = library(("logsumexp.h",)).kernel(f"{variant}<{METAL_TYPES[dtype]}>")
    group = (-(-columns // 128) * 32 if variant == "logsumexp" else 1024, 1, 1)
    (got,) = kernel([x, ((_ROWS,), dtype), np.int32(columns)], threads((_ROWS, 1, 1), group), group)
    agree(got, _reference(double(x))[1], 2 * ROUNDING[dtype] + 1e-6, "logsumexp")


def cases() -> list[Case]:
    """Both kernels in both variants; the number of columns is not a multiple of anything."""
    found = []
    for dtype, (variant, columns) in itertools.product(FLOATS, (("single_row", 333), ("looped", 5001))):
        found.append(
            Case("softmax", f"{variant} {short(dtype)}", functools.partial(run_softmax, dtype, variant, columns))
        )
    for dtype, (variant, columns) in itertools.product(FLOATS, (("logsumexp", 333), ("logsumexp_looped", 5001))):
        found.append(
            Case("logsumexp", f"{variant} {short(dtype)}", functools.partial(run_logsumexp, dtype, variant, columns))
        )
    return found
