"""Attention as one differentiable function: the forward kernel, and a vjp made of the backward kernels.

The outputs carry the residuals (O and L), so the backward pass runs no second forward and keeps no state of its own.
dQ, (dK, dV) and the mask's gradient are separate functions: MLX evaluates only those that are asked for.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import mlx.core as mx

from .backends import Backend
from .errors import UnsupportedProblem
from .operands import step_inputs
from .plan import plan
from .problem import Problem
from .steps import BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY, DELTA, FORWARD, Step


def run(step: Step, problem: Problem, backend: Backend, stream, inputs: dict) -> tuple[mx.array, ...]:
    """The step's outputs; those shaped like q, k and v in the problem's dtype, the others float32."""
    outputs = backend.run(plan(step, problem, backend.family), inputs, stream)
    dtype = getattr(mx, problem.dtype)
    return tuple(
        array.astype(dtype, stream=stream) if name in ("O", "dQ", "dK", "dV") else array
        for name, array in zip(step.outputs, outputs)
    )


def _refuse(what: str, *_):
    raise UnsupportedProblem(f"[mlx_flash.attention] {what}")


_NO_JVP = partial(_refuse, "forward-mode derivatives (mx.jvp) are not available: use mx.grad or mx.vjp.")
_NO_VMAP = partial(_refuse, "mx.vmap is not available: fold the mapped axis into the batch axis.")
_NO_SECOND = partial(_refuse, "gradients of gradients are not available: attention can be differentiated once.")


def _once_differentiable(function):
    wrapped = mx.custom_function(function)
    wrapped.vjp(_NO_SECOND)
    wrapped.jvp(_NO_JVP)
    wrapped.vmap(_NO_VMAP)
    return wrapped


@mx.custom_function
def _guard(*arrays):
    """Does nothing, but is the first operation that jvp and vmap meet: MLX walks the operations inside a custom
    function before it asks the function itself, and would stop at one of them with a message of its own."""
    return arrays


_guard.vjp(lambda primals, cotangents, outputs: tuple(cotangents))
_guard.jvp(_NO_JVP)
_guard.vmap(_NO_VMAP)


@lru_cache(maxsize=1024)
def attend(problem: Problem, names: tuple[str, ...], backend: Backend, stream=None, with_lse: bool = False):
    """The function (q, k, v, *operands) -> (O, L) of one problem on one backend, with its gradients.

    `names`: of the operands, in order. L [B, Hq, Lq] is float32, the base-2 logarithm of each row's sum of
    exponentials; gradients flow through it where `with_lse`, that is where somebody sees it.
    """

    def call(step, inputs, extras):
        named = step_inputs(problem, dict(zip(names, extras)), step is BACKWARD_KEY_VALUE)
        return run(step, problem, backend, stream, {**inputs, **named, "scale": problem.scale})

    def residuals(arrays):
        inputs = dict(zip(("Q", "K", "V", "dO", "L", "delta"), arrays))
        return inputs | ({"extents": problem.options.mask_shape} if problem.options.mask else {})

    @mx.custom_function
    def forward(q, k, v, *extras):
        return call(FORWARD, {"Q": q, "K": k, "V": v}, extras)

    @_once_differentiable
    def backward_query(*arrays):
        return call(BACKWARD_QUERY, residuals(arrays), arrays[6:])[0]

    @_once_differentiable
    def backward_key_value(*arrays):
        return call(BACKWARD_KEY_VALUE, residuals(arrays), arrays[6:])

    @_once_differentiable
    def backward_mask(*arrays):
        return call(BACKWARD_MASK, residuals(arrays), arrays[6:])[0]

    @forward.vjp
    def backward(primals, cotangents, outputs):
        q, k, v, *extras = primals
        delta = run(DELTA, problem, backend, stream, {"dO": cotangents[0], "O": outputs[0]})[0]
        if with_lse:
            delta = _with_lse(delta, outputs[1], cotangents[1])
        arrays = (q, k, v, cotangents[0], outputs[1], delta, *extras)
        gradients = {name: mx.zeros_like(extra) for name, extra in zip(names, extras)}
        if problem.features.mask not in (None, "bool"):
            mask = extras[names.index("attention_mask")]
            gradients["attention_mask"] = backward_mask(*arrays).astype(mask.dtype)
        if "sinks" in names:
            gradients["sinks"] = _sinks_gradient(extras[names.index("sinks")], outputs[1], delta)
        return (backward_query(*arrays), *backward_key_value(*arrays), *gradients.values())

    return lambda *arrays: forward(*_guard(*arrays))


def _with_lse(delta: mx.array, L: mx.array, d_L: mx.array) -> mx.array:
    """dS = P * (dP - delta + dLSE): the gradient of L enters where delta does. Rows that see nothing have none."""
    return delta - mx.where(L == -math.inf, 0, d_L * math.log2(math.e))


def _sinks_gradient(sinks: mx.array, L: mx.array, delta: mx.array) -> mx.array:
    """A sink takes the part 2^(sink log2(e) - L) of each row and has the value 0, so that dP = 0 there."""
    part = mx.exp((sinks[:, None] * math.log2(math.e) - mx.where(L == -math.inf, math.inf, L)) * math.log(2))
    return -(part * delta).sum((0, 2))
