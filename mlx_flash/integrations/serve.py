"""Calls of MLX's and mlx-lm's attention functions, served by mlx_flash, or the reason why not."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

from ..api import attention, quantized_attention
from ..autodiff.call import plain_call
from ..backends import Backend, current_backend, left_to_cpu
from ..common.errors import InvalidArgument, UnsupportedProblem
from ..transforms.trace import changed, trace, unavailable
from .handles import Handle
from .policy import ALWAYS, QUANTIZED_CACHE, Asked, decide, ruled_by

FLOATS = (mx.float32, mx.float16, mx.bfloat16)
# The report counts calls with at most this many queries as decoding, the limit of MLX's own decoding kernel. It says
# which calls were made, not which kernel served them: ours for decoding takes more queries.
FEW = 8


class Terms(Protocol):
    """The arguments of a patch; see `patch`."""

    min_queries: int
    policy: str | None


class NotServed(Exception):
    """The call goes to the built-in function; the message says why."""


class KeptByRule(NotServed):
    """A rule of the policy leaves the call to the built-in, as all calls with the same `kept.call_key`."""


def serve_attention(
    terms: Terms, q=None, k=None, v=None, *more, scale=None, mask=None, sinks=None, **options
):  # fmt: skip
    """``mx.fast.scaled_dot_product_attention``: ("prefill" or "decode", the rule, result). Raises NotServed."""
    if isinstance(k, Handle):
        out = k.attend(q, v, scale=scale, mask=mask, sinks=sinks)
        return "decode from pages" if q.shape[2] <= FEW else "prefill to pages", ALWAYS, out
    arrays = (q, k, v)
    if not all(isinstance(array, mx.array) and array.ndim == 4 for array in arrays):
        raise NotServed("q, k and v are not arrays of 4 axes")
    stream, forced = options.pop("stream", None), options.pop("force_fused", False)
    if more or options:
        raise NotServed(f"arguments unknown here: {', '.join(options) or 'beyond q, k and v by position'}")
    if stream is not None and not isinstance(stream, (mx.Stream, mx.Device, mx.DeviceType)):
        raise NotServed(f"a stream of type {type(stream).__name__}")
    own = current_backend(stream)
    if (stream is not None or not own.gpu) and (reason := left_to_cpu(stream)):
        raise NotServed(reason)
    if q.shape[2] < terms.min_queries:
        raise NotServed(f"fewer than {terms.min_queries} queries")
    if reason := unavailable():
        raise NotServed(reason)
    if forced:
        raise NotServed("force_fused asks for the built-in's own kernel")
    if not hasattr(scale, "__float__"):  # None and text mean something to attention, but not to the built-in
        raise NotServed("scale is not a number")
    dtype = q.dtype
    if k.dtype != dtype or v.dtype != dtype:
        dtype = mx.result_type(*arrays)
        arrays = (array.astype(dtype) for array in arrays)
    if dtype not in FLOATS:
        raise NotServed(f"dtype {dtype}")
    rule = decide(terms.policy, own.family, _asked(q, v, dtype, mask, sinks))
    if not rule.ours:
        raise KeptByRule(rule.refusal)
    with changed(beyond=True, built_in=True):
        out = attention(*arrays, scale=scale, mask=_added(mask, dtype), sinks=sinks, stream=stream)
    return "decode" if q.shape[2] <= FEW else "prefill", rule, out


def serve_again(backend: Backend, q, k, v, scale: float, causal: bool):
    """The result of a call like one that `kept.keep_plain` remembers; None where it has to be decided anew."""
    if trace.forward_mode or current_backend() is not backend:
        return None
    facts = trace.__dict__
    before = facts["beyond"], facts["built_in"]
    facts["beyond"] = facts["built_in"] = True  # `changed` takes longer
    try:
        found = plain_call(q, k, v, scale, causal, backend)
        return None if found is None else found[0].run_plain(q, k, v, found[1])
    except (InvalidArgument, UnsupportedProblem):
        return None
    finally:
        facts["beyond"], facts["built_in"] = before


def _asked(q, v, dtype, mask, sinks) -> Asked:
    _, heads, queries, head_dim = q.shape
    _, key_heads, keys, value_dim = v.shape
    kind = mask if mask is None or isinstance(mask, str) else "array"
    training, mapped = trace.gradients > 0, trace.batched is not None
    return Asked(
        dtype, head_dim, value_dim, queries, keys, heads // max(key_heads, 1), kind, sinks is not None, training, mapped
    )


def serve_quantized(
    terms: Terms, queries=None, q_keys=None, q_values=None, scale=None, mask=None, *more, **options
):  # fmt: skip
    """The ``quantized_scaled_dot_product_attention`` of mlx-lm and mlx-vlm, whose caches hold what mx.quantize returns:
    ("quantized prefill" or "quantized decode", the rule, result). Raises NotServed."""
    formats = dict(zip(("group_size", "bits"), more)) | options
    if not {"group_size", "bits"} >= set(formats) or len(more) > 2:
        raise NotServed("quantized cache: arguments unknown here")
    if not isinstance(queries, mx.array) or queries.ndim != 4:
        raise NotServed("quantized cache: queries are not an array of 4 axes")
    if not all(isinstance(parts, (tuple, list)) for parts in (q_keys, q_values)):
        raise NotServed("quantized cache: keys and values are not tuples of arrays")
    if reason := left_to_cpu():
        raise NotServed(f"quantized cache: {reason}")
    if queries.shape[2] < terms.min_queries:
        raise NotServed(f"fewer than {terms.min_queries} queries")
    if reason := unavailable(gradients=0):
        raise NotServed(f"quantized cache: {reason}")
    if isinstance(mask, mx.array) and mask.ndim == 3:  # mlx-lm takes its first axis for the heads of a group
        raise NotServed("quantized cache: a mask of 3 axes")
    rule = QUANTIZED_CACHE if ruled_by(terms.policy, current_backend().family) else ALWAYS
    with changed(built_in=True):
        out = quantized_attention(
            queries, tuple(q_keys), tuple(q_values), scale=scale, mask=_added(mask, queries.dtype),
            **{"group_size": 64, "bits": 8} | formats,
        )  # fmt: skip
    return "quantized decode" if queries.shape[2] <= FEW else "quantized prefill", rule, out


def _added(mask, dtype: mx.Dtype):
    """The mask as the built-in treats it: integers are added to the scores, in q's dtype."""
    if isinstance(mask, mx.array) and mx.issubdtype(mask.dtype, mx.integer):
        return mask.astype(dtype)
    return mask
