"""Lets code that calls `mx.fast.metal_kernel` run here unchanged."""

from contextlib import contextmanager

import mlx.core as mx

from .kernel import metal_kernel


@contextmanager
def replace_metal_kernel(pretend_metal: bool = True):
    """Inside the block `mx.fast.metal_kernel` makes kernels that run on the simulator.

    Kernels made before the block, for example when a package was imported, do not change: import the package inside.
    pretend_metal: `mx.metal.is_available()` returns True, because packages ask for it before they make a kernel.
    """
    kernel, available = mx.fast.metal_kernel, mx.metal.is_available
    mx.fast.metal_kernel = metal_kernel
    if pretend_metal:
        mx.metal.is_available = lambda: True
    try:
        yield
    finally:
        mx.fast.metal_kernel, mx.metal.is_available = kernel, available
