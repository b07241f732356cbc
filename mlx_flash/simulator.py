"""The public name of the Metal simulator (mlx_flash/metal): runs the text of `mx.fast.metal_kernel` kernels on the CPU.

`python -m mlx_flash.simulator run FILE.py ...` runs a script whose Metal kernels are simulated. In Python::

    with replace_metal_kernel(), language("3.2"):  # makers of kernels use MLX's name
        double = mx.fast.metal_kernel(
            name="double", input_names=["x"], output_names=["y"],
            source="y[thread_position_in_grid.x] = 2 * x[thread_position_in_grid.x];",
        )
        launch = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
        (y,) = double(inputs=[mx.arange(8.0)], **launch)
    library = MetalLibrary("kernel void clear(device float* y, uint i [[thread_position_in_grid]]) { y[i] = 0; }")
    kernel = library.kernel("clear")
    with tensor_unit("opaque"):  # Metal 4's products, in a layout that no kernel may rely on
        (y,) = double(inputs=[mx.arange(8.0)], **launch)

A kernel with a mistake raises SimulatorError, text that Metal refuses CompileError, and a machine without a compiler
ToolchainError.
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
