"""The bits and the address of an array."""

import mlx.core as mx
import numpy as np


def bits(array: mx.array) -> bytes:
    """Equal for equal numbers only, whatever the strides; NaN payloads and signs of zero count."""
    return np.array(mx.contiguous(array).flatten().view(mx.uint8)).tobytes()


def address(array: mx.array) -> int:
    """The address of element (0, 0, ..): numpy shares MLX's memory instead of copying it."""
    mx.eval(array)
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).__array_interface__["data"][0]
