"""The public name of the Metal simulator (mlx_flash/metal): runs the text of `mx.fast.metal_kernel` kernels on the CPU.

`python -m mlx_flash.simulator run FILE.py ...` runs a script whose Metal kernels are simulated.
"""

import sys

from .metal import (
    CompileError,
    MetalLibrary,
    SimulatorError,
    ToolchainError,
    language,
    metal_kernel,
    mode,
    profile,
    replace_metal_kernel,
    schedule,
    tensor_unit,
)

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

if __name__ == "__main__":
    from .metal.command import main

    sys.exit(main())
