"""Runs the very same kernel text on the CPU, through mlx_flash.simulator. Eager: not inside mx.compile."""

from __future__ import annotations

from functools import lru_cache

from ..metal import ToolchainError, metal_kernel
from ..metal.cpu.compiler import toolchain
from .metal import kernel_object, run_with


@lru_cache
def _compiled(kernel):
    return kernel_object(metal_kernel, kernel)


def ready() -> str | None:
    """Why kernels cannot be compiled here, or None."""
    try:
        toolchain()
    except ToolchainError as error:
        return str(error)
    return None


def run(plan, inputs: dict, stream):
    return run_with(_compiled, plan, inputs, None)  # a CPU stream is fine here
