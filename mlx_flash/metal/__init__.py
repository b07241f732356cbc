"""A Metal simulator for the CPU: runs the text of `mx.fast.metal_kernel` kernels and reports errors that a GPU
hides."""

from .cpu.kernel import metal_kernel
from .cpu.library import MetalLibrary
from .cpu.profile import profile
from .cpu.replace import replace_metal_kernel
from .cpu.settings import language, mode, schedule, tensor_unit
from .frontend.errors import CompileError, SimulatorError, ToolchainError

__all__ = [
    "CompileError",
    "MetalLibrary",
    "SimulatorError",
    "ToolchainError",
    "language",
    "metal_kernel",
    "mode",
    "profile",
    "replace_metal_kernel",
    "schedule",
    "tensor_unit",
]
