"""Derivatives beyond the first, by MLX's built-in function, for calls that patch() serves in its place.

MLX composes the built-in of plain operations, which can be differentiated any number of times. Each backward kernel is
one of its gradients, as a function of q, k, v, dO and an added mask. L and delta follow from these, so no derivative
flows through them.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ..problem.kinds import DELTA, FORWARD, KernelKind
from ..problem.problem import Signature
from ..transforms.replacement import original
from .operands import array_inputs

Arrays = tuple[mx.array, ...]


def expressible(names: tuple[str, ...]) -> bool:
    """Whether this module serves a call with these operands. The gradient of sinks, made from L and delta, is
    excluded."""
    return set(names) <= {"attention_mask"}


def rules(kind: KernelKind, signature: Signature) -> tuple[Callable, Callable]:
    """(vjp, jvp) of one kind of kernel, as mx.custom_function wants them."""

    def function(*arrays: mx.array) -> list[mx.array]:
        return _in_operations(kind, signature, arrays)

    def vjp(primals, cotangents, outputs):
        return tuple(mx.vjp(function, list(primals), list(cotangents))[1])

    def jvp(primals, tangents):
        moved = [n for n, tangent in enumerate(tangents) if tangent is not None]

        def of_moved(*arrays):
            given = dict(zip(moved, arrays))
            return function(*(given.get(n, primal) for n, primal in enumerate(primals)))

        return tuple(mx.jvp(of_moved, [primals[n] for n in moved], [tangents[n] for n in moved])[1])

    return vjp, jvp


def _delta(named: dict[str, mx.array]) -> mx.array:
    return (named["dO"].astype(mx.float32) * named["O"].astype(mx.float32)).sum(-1)


def _in_operations(kind: KernelKind, signature: Signature, arrays: Arrays) -> list[mx.array]:
    """The kernel's computation in operations that MLX can differentiate."""
    own = array_inputs(kind)
    named, extras = dict(zip(own, arrays)), arrays[len(own) :]
    if kind is DELTA:
        return [_delta(named)]

    def forward(q, k, v, *mask):
        chosen = mask[0] if mask else "causal" if signature.variants.causal else None
        return original(mx.fast.scaled_dot_product_attention)(q, k, v, scale=signature.scale, mask=chosen)

    q, k = named["Q"], named["K"]
    if kind is FORWARD:
        return [forward(q, k, named["V"], *extras), mx.zeros((*q.shape[:3], 2))]
    # The kernel of dV alone reads no values: dV does not depend on them.
    v = named.get("V", mx.zeros((*k.shape[:3], named["dO"].shape[3]), k.dtype))
    found = mx.vjp(lambda *inputs: [forward(*inputs)], [q, k, v, *extras], [named["dO"]])[1]
    gradients = dict(zip(("dQ", "dK", "dV", "dM"), found))
    if "delta" in kind.outputs:
        gradients["delta"] = _delta(named)
    return [gradients[name].astype(mx.float32) if name == "dM" else gradients[name] for name in kind.outputs]
