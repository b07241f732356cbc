"""The form of a conformance case, and what its kernel needs from the host: instances, structures, comparison."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from metal_conformance.headers import KERNELS, include_directory
from mlx_flash.metal import MetalLibrary

METAL_TYPES = {
    mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat16_t", mx.int32: "int32_t", mx.uint32: "uint32_t",
    mx.int64: "int64_t", mx.uint64: "uint64_t", mx.int16: "int16_t", mx.uint16: "uint16_t", mx.int8: "int8_t", mx.uint8:
        "uint8_t",
    mx.bool_: "bool", mx.complex64: "complex64_t",
}  # fmt: skip
# Half the relative distance between neighbouring numbers: the error of one rounding.
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
# The same if the tensor unit keeps 10 bits of a float's mantissa.
RELAXED = {**ROUNDING, mx.float32: 2.0**-11}
TENSOR_LANGUAGE = "4.0"  # the first version of Metal with tensor operations
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


class Mismatch(AssertionError):
    """A kernel ran, but its results differ from numpy's."""


@dataclass(frozen=True)
class Case:
    """One kernel of MLX with one set of inputs.

    `run` raises Mismatch, SimulatorError or CompileError if the kernel does not conform.
    """

    family: str
    name: str
    run: Callable[[], None]

    def __str__(self):
        return f"{self.family}: {self.name}"


def short(dtype: mx.Dtype) -> str:
    """The name of a dtype without its module: float16, not mlx.core.float16."""
    return str(dtype).rsplit(".", 1)[-1]


@functools.cache
def library(headers: Sequence[str], language: str | None = None) -> MetalLibrary:
    """The headers (below MLX's kernel folder) as one library, from which kernel templates are instantiated."""
    text = [f'#include "{KERNELS}/{header}"' for header in ("utils.h", *headers)]
    return MetalLibrary("\n".join(text) + "\n", [include_directory()], language, name=headers[-1])


def normal(shape: Sequence[int], dtype: mx.Dtype, seed: int, scale: float = 1.0) -> mx.array:
    """Normally distributed numbers, the same on every machine."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return mx.array(values.astype(np.float32)).astype(dtype)


def double(array: mx.array) -> np.ndarray:
    """The exact values as float64 (complex128 for complex numbers)."""
    if array.dtype == mx.complex64:
        return np.array(array).astype(np.complex128)
    if array.dtype in (mx.float16, mx.bfloat16):
        array = array.astype(mx.float32)
    return np.array(array).astype(np.float64)


def structure(fields: Sequence[tuple], **values) -> np.void:
    """A parameter structure in the layout of a C compiler. fields: (name, numpy type[, length]) in order."""
    record = np.zeros((), np.dtype([tuple(field) for field in fields], align=True))
    for name, value in values.items():
        record[name] = value
    return record[()]


def agree(got: mx.array, wanted: np.ndarray, tolerance: float, what: str = "result"):
    """Raises Mismatch unless |got - wanted| <= tolerance * max(1, |wanted|); NaN never agrees with a number."""
    values = double(got)
    wanted = np.asarray(wanted)
    if values.shape != wanted.shape:
        raise Mismatch(f"{what} has shape {values.shape}, not {wanted.shape}")
    same = (values == wanted) | (np.isnan(values) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(values - wanted) / np.maximum(1.0, np.abs(wanted)))
    error = np.where(np.isnan(error), np.inf, error)
    if error.size and error.max() > tolerance:
        at = np.unravel_index(np.argmax(error), error.shape)
        place = ", ".join(map(str, at))
        raise Mismatch(
            f"{what}[{place}] is {values[at]}, not {wanted[at]}: off by {error.max():.2e}, {tolerance:.2e} allowed"
        )


def threads(groups: Sequence[int], threadgroup: Sequence[int]) -> tuple[int, ...]:
    """The grid in threads for this number of threadgroups along each axis."""
    return tuple(number * size for number, size in zip(groups, threadgroup))
