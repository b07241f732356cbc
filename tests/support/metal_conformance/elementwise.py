"""MLX's elementwise kernels: functions of one number and of two."""

import functools
import itertools
import math

import mlx.core as mx
import numpy as np

from metal_conformance.case import FLOATS, METAL_TYPES, ROUNDING, Case, agree, double, library, normal, short

_SIZE = 203
UNARY = {
    "Abs": np.abs, "ArcTan": np.arctan, "Ceil": np.ceil, "Cos": np.cos, "Erf": np.vectorize(math.erf), "Exp": np.exp,
    "Expm1": np.expm1, "Floor": np.floor, "Negative": np.negative, "Round": np.round, "Sigmoid": lambda x: 1 / (1 + np.
        exp(-x)),
    "Sign": np.sign, "Sin": np.sin, "Square": np.square, "Tanh": np.tanh,
}  # fmt: skip
# MLX's expm1 reduces its argument by 0.693145752 instead of log(2): an error of 1.4e-6 per doubling.
LESS_EXACT = {"Expm1": 1e-5}
# Functions of positive numbers.
POSITIVE = {
    "Log": np.log, "Log1p": np.log1p, "Log2": np.log2, "Log10": np.log10, "Rsqrt": lambda x: 1 / np.sqrt(x), "Sqrt": np.
        sqrt,
}  # fmt: skip
BINARY = {
    "Add": np.add, "Divide": np.divide, "LogAddExp": np.logaddexp, "Maximum": np.maximum, "Minimum": np.minimum,
    "Multiply": np.multiply, "Subtract": np.subtract, "ArcTan2": np.arctan2,
}  # fmt: skip


def _run(header: str, function: str, operation: str, arrays: list[mx.array], wanted: np.ndarray):
    dtype = arrays[0].dtype
    name = METAL_TYPES[dtype]
    kernel = library((f"{header}_ops.h", f"{header}.h")).kernel(f"{function}<{name}, {name}, {operation}>")
    per_thread = 8 // arrays[0].itemsize
    grid = (-(-_SIZE // per_thread), 1, 1)
    (got,) = kernel([*arrays, ((_SIZE,), dtype), np.uint32(_SIZE)], grid, (32, 1, 1))
    agree(got, wanted, 2 * ROUNDING[dtype] + LESS_EXACT.get(operation, 2e-6), operation)


def run_unary(operation: str, dtype: mx.Dtype):
    x = normal((_SIZE,), dtype, 1)
    if operation in POSITIVE:
        x = mx.abs(x) + 0.125
    _run("unary", "unary_v", operation, [x], (UNARY | POSITIVE)[operation](double(x)))


def run_binary(operation: str, dtype: mx.Dtype):
    x, y = normal((_SIZE,), dtype, 2), normal((_SIZE,), dtype, 3)
    y = mx.where(mx.abs(y) < 0.25, mx.array(0.5, dtype), y)
    _run("binary", "binary_vv", operation, [x, y], BINARY[operation](double(x), double(y)))


def cases() -> list[Case]:
    """Every function in one dtype; the dtypes alternate."""
    found = []
    for operation, dtype in zip([*UNARY, *POSITIVE], itertools.cycle(FLOATS)):
        found.append(Case("unary", f"{operation} {short(dtype)}", functools.partial(run_unary, operation, dtype)))
    for operation, dtype in zip(BINARY, itertools.cycle(FLOATS)):
        found.append(Case("binary", f"{operation} {short(dtype)}", functools.partial(run_binary, operation, dtype)))
    return found
