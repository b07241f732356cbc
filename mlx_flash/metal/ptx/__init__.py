"""Metal kernels on NVIDIA GPUs: compiles the text of `mx.fast.metal_kernel` kernels to PTX and runs it through MLX."""

from .kernel import metal_kernel

__all__ = ["metal_kernel"]
