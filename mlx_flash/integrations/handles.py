"""Handles: a cache may return them in place of keys and values; a model passes them on, and attention resolves them."""

from __future__ import annotations

import mlx.core as mx


class Handle:
    """The handle of a cache's keys, or of its values. A model may pass it on and read its shape and dtype. Casting does
    nothing, since attention over a handle takes queries of any dtype.

    `shape`: [batch, heads, length, dimension] of the longest row.
    """

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype):
        self.shape, self.dtype, self.ndim = tuple(shape), dtype, len(shape)

    def astype(self, dtype: mx.Dtype) -> Handle:
        return self

    def attend(self, q: mx.array, values: Handle, *, scale: float, mask, sinks) -> mx.array:
        """Attention of q [B, Hq, Lq, D] over the keys of this handle and the values of the other."""
        raise NotImplementedError
