"""Small constants in the GPU's own memory.

MLX keeps Python numbers, and every array of at most 8 bytes, in memory that the GPU shares with the host and that the
host keeps writing to. Every threadgroup would start by fetching its scale from there.
"""

from __future__ import annotations

import mlx.core as mx

from ...common.mlx_private import SHARED_BYTES

_COPIES = 1 + SHARED_BYTES // 8  # of at least 8 bytes each: together they are more


def resident(array: mx.array) -> mx.array:
    """A one-dimensional copy in the GPU's memory that starts with the elements of a constant.

    It is computed at once, so that no trace records the copy; outside of a trace the host does not wait for it.
    """
    stream = mx.gpu if mx.is_available(mx.gpu) else mx.cpu
    copy = mx.concatenate([mx.reshape(array, (-1,), stream=stream)] * _COPIES, stream=stream)
    try:
        mx.async_eval(copy)
    except ValueError:  # MLX refuses async_eval inside a transformation, but not mx.eval of arrays from outside
        mx.eval(copy)
    return copy
