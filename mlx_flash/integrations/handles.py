"""Keys and values that a cache keeps out of a model's sight: a model passes them on, and attention asks them."""

from __future__ import annotations

import mlx.core as mx


class Handle:
    """The handle that a cache returns in place of keys, or of values. A model may pass it on, and ask for its shape and
    dtype; casting does nothing, since attention takes queries of any dtype.

    `shape`: [batch, heads, length, dimension] of the longest row.
    """

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype):
        self.shape, self.dtype, self.ndim = tuple(shape), dtype, len(shape)

    def astype(self, dtype: mx.Dtype) -> Handle:
        return self

    def attend(self, q: mx.array, values: Handle, *, scale: float, mask, sinks) -> mx.array:
        """Attention of q [B, Hq, Lq, D] over what this handle and that of the values stand for."""
        raise NotImplementedError
