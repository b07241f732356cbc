"""Runs the very same kernel text on an NVIDIA GPU, through mlx_flash.cuda. Lazy, inside mx.compile too."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import mlx.core as mx

from ..cuda import driver, metal_kernel, resident
from ..cuda.kernel import CudaKernel, Grid
from ..cuda.ptx import Ptx, cache_directory
from ..device import FAMILIES, Family
from ..errors import UnsupportedProblem
from ..simulator import ToolchainError
from ..simulator.compiler import toolchain
from ..tiles import LAYERS, register_shares
from .metal import kernel_object, run_with

LEAST_CAPABILITY = (8, 0)
LEAST_DRIVER = (12, 0)  # the CUDA version a driver speaks; it compiles the kernels
_INSTALL = 'pip install "mlx-flash-attention[cuda]"'


def capability() -> tuple[int, int]:
    """The GPU's compute capability, (9, 0) on an H100 or H200."""
    information = mx.device_info(mx.gpu)
    return int(information["compute_capability_major"]), int(information["compute_capability_minor"])


def ready(family: str | None = None) -> str | None:
    """Why the kernels of a family (None: this GPU's own) cannot run here, or None."""
    if not mx.cuda.is_available():
        return "this machine has no CUDA GPU, or MLX was installed without CUDA: " + _INSTALL
    found, known = capability(), driver.version()
    if found < LEAST_CAPABILITY:
        return f"compute capability {_dotted(LEAST_CAPABILITY)} or later is needed, this GPU has {_dotted(found)}"
    if known and known < LEAST_DRIVER:
        of = f"of this GPU (compute capability {_dotted(found)})"
        return f"a driver for CUDA {_dotted(LEAST_DRIVER)} or later is needed, that {of} is for {_dotted(known)}"
    if family == "sm90" and found[0] != 9:
        return f"the kernels of sm90 need compute capability 9.0, this GPU has {_dotted(found)}"
    try:
        toolchain()
    except ToolchainError as error:
        # What was compiled before, here or elsewhere, runs without a compiler.
        return None if any(cache_directory().glob("*.ptx")) else _no_compiler(error)
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _no_compiler(error: ToolchainError) -> str:
    return f"kernels are compiled by ziglang's clang: {_INSTALL} ({error})"


@lru_cache
def family_here() -> Family:
    """Hopper has matrix products of its own; all others share those of Ampere."""
    return FAMILIES["sm90" if capability()[0] == 9 else "sm80"]


@lru_cache
def _kernel(kernel, target: str, copiers: int, registers: tuple[int, int] | None) -> CudaKernel:
    return kernel_object(
        metal_kernel, kernel, target=target, converged=True, copiers=copiers, registers=registers
    )  # fmt: skip


def _of(row) -> Callable:
    layer = LAYERS[row.tiles]
    return partial(_kernel, target=layer.target, copiers=32 * layer.copiers, registers=register_shares(row))


@lru_cache(maxsize=256)
def _constant(value: float | tuple[int, ...]) -> mx.array:
    return resident.declare(mx.array(value, mx.float32 if isinstance(value, float) else mx.int32))


def compiled(plan, inputs: dict) -> Ptx:
    """The kernel that `run` would launch; needs a compiler, but no GPU."""
    launch = plan.launch
    arrays = tuple((array.dtype, array.ndim, array.size) for array in launch.arguments(inputs))
    grid = Grid(launch.grid, launch.threadgroup)
    return _of(plan.row)(launch.kernel).compiled(arrays, [], launch.output_dtypes, grid)


def run(plan, inputs: dict, stream) -> list[mx.array]:
    """Raises UnsupportedProblem for a kernel that neither is compiled already nor can be here."""
    inputs = {name: _constant(value) if isinstance(value, (float, tuple)) else value for name, value in inputs.items()}
    try:
        return run_with(_of(plan.row), plan, inputs, stream)
    except ToolchainError as error:
        raise UnsupportedProblem(f'[mlx_flash] backend "cuda": {_no_compiler(error)}') from error
