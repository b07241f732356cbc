"""Products with weights that are floating-point numbers of 4 or 8 bits: mxfp4, mxfp8 and nvfp4."""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance.case import METAL_TYPES, ROUNDING, Case, agree, double, library, normal, short, threads

_I = np.int32
# {name: (bits of an element, elements that share a scale)}
FORMATS = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


def minifloat(bits: np.ndarray, exponent: int, mantissa: int) -> np.ndarray:
    """The values of floats with 1 + exponent + mantissa bits, an exponent biased by half its range, and no
    infinities."""
    sign = np.where(bits >> (exponent + mantissa) & 1, -1.0, 1.0)
    power, fraction = bits >> mantissa & (2**exponent - 1), (bits & (2**mantissa - 1)) / 2**mantissa
    bias = 2 ** (exponent - 1) - 1
    magnitude = np.where(power > 0, 2.0 ** (power - bias) * (1 + fraction), 2.0 ** (1 - bias) * fraction)
    return sign * magnitude


def quantized(shape: tuple[int, int], name: str) -> tuple[mx.array, mx.array, np.ndarray]:
    """(packed elements, scales, the matrix that they encode)."""
    bits, group = FORMATS[name]
    packed, scales = mx.quantize(normal(shape, mx.float32, 5), mode=name)
    octets = np.array(packed).view(np.uint8)
    if bits == 4:
        octets = np.stack([octets & 15, octets >> 4], -1)
    elements = octets.reshape(shape).astype(np.int64)
    values = minifloat(elements, 2, 1) if bits == 4 else minifloat(elements, 4, 3)
    scale = np.array(scales).astype(np.int64)
    factors = minifloat(scale, 4, 3) if name == "nvfp4" else 2.0 ** (scale - 127)
    return packed, scales, values * np.repeat(factors, group, 1)


def run(name: str, dtype: mx.Dtype, variant: str):
    """x @ W^T, or x @ W for the variants qvm and qmm_n."""
    matrix, transposed = variant.startswith("qmm"), variant not in ("qvm", "qmm_n")
    rows, columns, depth = (40 if matrix else 3), 64, 512
    packed, scales, weight = quantized((columns, depth) if transposed else (depth, columns), name)
    x = normal((rows, depth), dtype, 6, 0.25)
    bits, group = FORMATS[name]
    template = {"qmm_t": "true, false"}.get(variant, "false")
    source = library(("steel/gemm/gemm.h", "quantized_utils.h", "fp_quantized.h"))
    kernel = source.kernel(f"fp_{variant}<{METAL_TYPES[dtype]}, {group}, {bits}, {template}>")
    scale_of_all = [] if variant == "qmm_n" else [None]
    lengths = [_I(depth), _I(columns), *([_I(rows)] if matrix else [])]
    arguments = [packed, scales, *scale_of_all, x, ((rows, columns), dtype), *lengths, *[None] * 7]
    # A simdgroup of qvm covers the columns of one scale, at most 32.
    grid = (
        (columns // 32, -(-rows // 32), 1) if matrix else (rows, columns // (2 * group if variant == "qvm" else 8), 1)
    )
    size = (32, 2, 2) if matrix else (32, 2, 1)
    (got,) = kernel(arguments, threads(grid, size), size)
    wanted = double(x) @ (weight.T if transposed else weight)
    agree(got, wanted, (8 if matrix else 4) * ROUNDING[dtype] + 1e-4, variant)


def cases() -> list[Case]:
    """Every format, and every kernel in one or two of them."""
    chosen = (
        ("mxfp4", mx.float16, "qmv_fast"), ("mxfp4", mx.bfloat16, "qmm_t"), ("mxfp8", mx.float32, "qmv"),
        ("mxfp8", mx.float16, "qmm_n"), ("nvfp4", mx.float32, "qvm"), ("nvfp4", mx.float16, "qmm_t"),
    )  # fmt: skip
    return [
        Case("fp quantized", f"{variant} {name} {short(dtype)}", functools.partial(run, name, dtype, variant))
        for name, dtype, variant in chosen
    ]
