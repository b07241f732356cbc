"""One call of another's attention function, served by mlx_flash, or the reason why not."""

from __future__ import annotations

import mlx.core as mx

from ..api import attention, quantized_attention
from ..kernels.split_kv import QUERIES
from .derivatives import unavailable

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


class NotServed(Exception):
    """The call belongs to the built-in function; the text says why."""


def serve_attention(min_queries: int, q, k, v, *, scale, mask=None, sinks=None, force_fused=False, stream=None):
    """``mx.fast.scaled_dot_product_attention``: ("prefill" or "decode", result). Raises NotServed."""
    arrays = (q, k, v)
    if not all(isinstance(array, mx.array) and array.ndim == 4 for array in arrays):
        raise NotServed("q, k and v are not arrays of 4 axes")
    if q.shape[2] < min_queries:
        raise NotServed(f"fewer than {min_queries} queries")
    if reason := unavailable():
        raise NotServed(reason)
    if force_fused:
        raise NotServed("force_fused asks for the built-in's own kernel")
    if not hasattr(scale, "__float__"):  # None and text mean something to attention, but not to the built-in
        raise NotServed("scale is no number")
    dtype = q.dtype
    if k.dtype != dtype or v.dtype != dtype:
        dtype = mx.result_type(*arrays)
        arrays = (array.astype(dtype) for array in arrays)
    if dtype not in FLOATS:
        raise NotServed(f"dtype {dtype}")
    out = attention(*arrays, scale=scale, mask=mask, sinks=sinks, stream=stream)
    return "decode" if q.shape[2] <= QUERIES else "prefill", out


def serve_quantized(min_queries: int, queries, q_keys, q_values, scale, mask, group_size=64, bits=8):
    """mlx-lm's ``quantized_scaled_dot_product_attention``: its cache's parts are what mx.quantize returns."""
    if queries.shape[2] < min_queries:
        raise NotServed(f"fewer than {min_queries} queries")
    if reason := unavailable(gradients=0):
        raise NotServed(f"quantized cache: {reason}")
    if isinstance(mask, mx.array) and mask.ndim == 3:  # mlx-lm takes its first axis for the heads of a group
        raise NotServed("quantized cache: a mask of 3 axes")
    out = quantized_attention(
        queries, tuple(q_keys), tuple(q_values), group_size=group_size, bits=bits, scale=scale, mask=mask
    )
    return "quantized decode" if queries.shape[2] <= QUERIES else "quantized prefill", out
