"""Attention as one differentiable function: the forward kernel, and a vjp made of the backward kernels.

The outputs carry the residuals (O and L), so the backward pass runs no second forward and keeps no state of its own.
dQ, (dK, dV) and the mask's gradient are separate functions: MLX evaluates only those that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache, partial

import mlx.core as mx

from ..backends import Backend
from ..errors import UnsupportedProblem
from ..kernels.plan import Plan, key_value_steps, plan
from ..kernels.split_kv import decodes, packed_rows
from ..problem.kinds import BACKWARD_MASK, BACKWARD_QUERY, COMBINE, DECODE, DELTA, FORWARD, Step
from ..problem.problem import Problem
from ..transforms import trace
from .operands import step_inputs
from .vmap import mapped, output_dtype, stand_in

Arrays = tuple[mx.array, ...]


def run(step: Step, problem: Problem, backend: Backend, stream, inputs: dict) -> Arrays:
    """The step's outputs; those shaped like q, k and v in the problem's dtype, the others float32."""
    return _run(plan(step, problem, backend.family), backend, stream, inputs)


def _run(chosen: Plan, backend: Backend, stream, inputs: dict) -> Arrays:
    if chosen.step is DECODE:
        asked = chosen.problem
        rows = (asked.batch, asked.key_heads, packed_rows(asked), asked.head_dim)
        inputs = inputs | {"Q": mx.reshape(inputs["Q"], rows, stream=stream), "packing": chosen.packing}
    outputs = backend.run(chosen, inputs, stream)
    if chosen.parts > 1:
        return run(COMBINE, chosen.problem, backend, stream, dict(zip(COMBINE.inputs, outputs)))
    return tuple(
        array.astype(output_dtype(name, chosen.problem), stream=stream)
        for name, array in zip(chosen.step.outputs, outputs)
    )


def _refuse(what: str, *_, function: str = "attention"):
    raise UnsupportedProblem(f"[mlx_flash.{function}] {what}")


_NO_JVP = partial(_refuse, "forward-mode derivatives (mx.jvp) are not available: use mx.grad or mx.vjp.")
_NO_VMAP = partial(
    _refuse,
    "mx.vmap does not reach this call: it was taken from mlx.core before mlx_flash was imported (call it as mx.vmap), "
    "or goes through mx.checkpoint or a custom function without a vmap rule (map inside of it).",
)
_NO_SECOND = partial(_refuse, "gradients of gradients are not available: attention can be differentiated once.")
_FORWARD_ONLY = partial(
    _refuse, "it is forward only: for derivatives, dequantize and call attention.", function="quantized_attention"
)


def _custom(function: Callable, vjp: Callable, vmap: Callable, jvp: Callable = _NO_JVP) -> Callable:
    wrapped = mx.custom_function(function)
    wrapped.vjp(vjp)
    wrapped.jvp(jvp)
    wrapped.vmap(vmap)
    return wrapped


# Does nothing, but is the first operation that mx.jvp meets: MLX walks the operations inside a custom function before
# it asks the function itself, and would stop at one of them with a message of its own.
def _guard(jvp: Callable) -> Callable:
    return _custom(lambda *arrays: arrays, lambda primals, cotangents, outputs: tuple(cotangents), _NO_VMAP, jvp)


@cache
def _arrays_of(step: Step) -> tuple[str, ...]:
    return tuple(name for name in step.inputs if name not in ("scale", "extents"))


class Attention:
    """The steps of one problem on one backend as functions of arrays, with gradients.

    Called with a step and what it reads, in order: Q, K, V, dO, L, delta (those the step has), then the operands,
    whose `names` say what they are. L [B, Hq, Lq] is float32, the base-2 logarithm of each row's sum of exponentials;
    gradients flow through it where `with_lse`, that is where somebody sees it. Quantized operands have no gradients.
    """

    def __init__(self, problem: Problem, names: tuple[str, ...], backend: Backend, stream=None, with_lse=False):
        self.problem, self.names, self.backend, self.stream, self.with_lse = problem, names, backend, stream, with_lse
        forward = DECODE if decodes(problem, backend.name) else FORWARD
        quantized = problem.options.quantization is not None
        self._vjp, self._jvp = (_FORWARD_ONLY, _FORWARD_ONLY) if quantized else (self._backward, _NO_JVP)
        self._guard = _guard(self._jvp)
        self._plan = cache(lambda step: plan(forward if step is FORWARD else step, problem, backend.family))
        self._function, self._stand_in = cache(self._differentiable), cache(self._mappable)

    def __call__(self, step: Step, *arrays: mx.array) -> Arrays:
        if trace.witness is not None:
            return self._stand_in(step)(*arrays, trace.witness)
        if trace.bare:
            return self._kernel(step, *arrays)
        trace.called = True
        return self._function(step)(*(self._guard(*arrays) if trace.forward_mode else arrays))

    def _kernel(self, step: Step, *arrays: mx.array) -> Arrays:
        """The step itself, without gradients."""
        own = _arrays_of(step)
        inputs = dict(zip(own, arrays))
        if step is not DELTA:
            extras = dict(zip(self.names, arrays[len(own) :]))
            inputs |= step_inputs(self.problem, extras, step.over_keys) | {"scale": self.problem.scale}
        if step is BACKWARD_MASK:
            inputs["extents"] = self.problem.options.mask_shape
        return _run(self._plan(step), self.backend, self.stream, inputs)

    def _differentiable(self, step: Step) -> Callable:
        vjp = self._vjp if step is FORWARD else _NO_SECOND
        return _custom(partial(self._kernel, step), vjp, _NO_VMAP, self._jvp)

    def _mappable(self, step: Step) -> Callable:
        """What stands for the step in a trace of mx.vmap. Its last argument is an array that is sure to be mapped, so
        that the rule is asked in any case."""

        def call(problem: Problem, *arrays):
            return attend(problem, self.names, self.backend, self.stream, self.with_lse)(step, *arrays)

        def rule(arrays, axes):
            names = _arrays_of(step) + (self.names if step is not DELTA else ())
            size = arrays[-1].shape[axes[-1]]
            outputs = mapped(call, step, self.problem, size, names, arrays[:-1], axes[:-1])
            return outputs, [0] * len(outputs)

        def backward(primals, cotangents, outputs):
            return (*self._vjp(primals[:-1], cotangents, outputs), mx.zeros_like(primals[-1]))

        vjp = backward if step is FORWARD else _NO_SECOND
        return _custom(lambda *arrays: tuple(stand_in(step, self.problem)), vjp, rule)

    def _backward(self, primals, cotangents, outputs) -> Arrays:
        """dQ, (dK, dV) and the mask's gradient are steps of their own: MLX evaluates only those that are asked for."""
        trace.differentiated = True
        q, k, v, *extras = primals
        delta = self(DELTA, cotangents[0], outputs[0])[0]
        if self.with_lse:
            delta = _with_lse(delta, outputs[1], cotangents[1])
        arrays = (q, k, v, cotangents[0], outputs[1], delta, *extras)
        gradients = {name: mx.zeros_like(extra) for name, extra in zip(self.names, extras)}
        if self.problem.features.mask not in (None, "bool"):
            mask = extras[self.names.index("attention_mask")]
            gradients["attention_mask"] = self(BACKWARD_MASK, *arrays)[0].astype(mask.dtype)
        if "sinks" in self.names:
            gradients["sinks"] = _sinks_gradient(extras[self.names.index("sinks")], outputs[1], delta)
        return (*self(BACKWARD_QUERY, *arrays), *self._key_value(arrays), *gradients.values())

    def _key_value(self, arrays: Arrays) -> Arrays:
        """dK and dV, by one kernel or by one each."""
        named, extras = dict(zip(("Q", "K", "V", "dO", "L", "delta"), arrays)), arrays[6:]
        steps = key_value_steps(self.problem, self.backend.family)
        own = [[named[name] for name in step.inputs if name in named] for step in steps]
        return tuple(gradient for step, inputs in zip(steps, own) for gradient in self(step, *inputs, *extras))


attend = lru_cache(maxsize=1024)(Attention)


def _with_lse(delta: mx.array, L: mx.array, d_L: mx.array) -> mx.array:
    """dS = P * (dP - delta + dLSE): the gradient of L enters where delta does. Rows that see nothing have none."""
    return delta - mx.where(L == -math.inf, 0, d_L * math.log2(math.e))


def _sinks_gradient(sinks: mx.array, L: mx.array, delta: mx.array) -> mx.array:
    """A sink takes the part 2^(sink log2(e) - L) of each row and has the value 0, so that dP = 0 there."""
    part = mx.exp((sinks[:, None] * math.log2(math.e) - mx.where(L == -math.inf, math.inf, L)) * math.log(2))
    return -(part * delta).sum((0, 2))
