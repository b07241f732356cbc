"""A memory of calls that the policy leaves to the built-in, so that deciding again costs next to nothing."""

from __future__ import annotations

import mlx.core as mx

from ..backends import Backend, current_backend
from ..transforms.trace import trace

MOST_CALLS = 4096  # remembered calls; a cache that grows has a new one with every token

_reasons: dict[tuple, tuple[Backend, str]] = {}


def call_key(policy: str | None, args: tuple, kwargs: dict) -> tuple | None:
    """The facts of a call of the built-in that the rules compare; None for a call with unusual arguments."""
    if len(args) != 3:
        return None
    q, k, v = args
    mask = kwargs.get("mask")
    kind = mask.__class__
    if kind is str:
        kind = mask
    elif kind is not mx.array and mask is not None:
        return None
    try:
        return (
            q.shape, v.shape, q.dtype, k.dtype, v.dtype, kind, kwargs.get("sinks") is None, policy, trace.gradients,
            trace.batched is None,
        )  # fmt: skip
    except AttributeError:  # not arrays
        return None


def kept_reason(key: tuple) -> str | None:
    """Why such calls go to the built-in, if that was decided before with the same backend; else None."""
    found = _reasons.get(key)
    return found[1] if found is not None and found[0] is current_backend() else None


def keep(key: tuple, reason: str) -> None:
    """Remembers why such calls go to the built-in."""
    if len(_reasons) >= MOST_CALLS:
        _reasons.clear()
    _reasons[key] = current_backend(), reason
