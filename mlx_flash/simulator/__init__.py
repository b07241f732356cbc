"""A Metal simulator for the CPU: runs the text of `mx.fast.metal_kernel` kernels and reports what a GPU would hide."""

from .errors import CompileError, SimulatorError, ToolchainError
from .kernel import metal_kernel
from .library import MetalLibrary
from .profile import profile
from .replace import replace_metal_kernel
from .settings import language, mode, schedule

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
]
