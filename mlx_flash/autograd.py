"""Attention as one differentiable function: the forward kernel, and a vjp made of the two backward kernels.

The outputs carry the residuals (O and L), so the backward pass runs no second forward and keeps no state of its own.
dQ and (dK, dV) are separate functions: MLX evaluates only those whose gradients are asked for.
"""

from __future__ import annotations

from functools import lru_cache, partial

import mlx.core as mx

from .backends import Backend
from .errors import UnsupportedProblem
from .plan import plan
from .problem import Problem
from .steps import BACKWARD_KEY_VALUE, BACKWARD_QUERY, DELTA, FORWARD, Step


def run(step: Step, problem: Problem, backend: Backend, stream, inputs: dict) -> tuple[mx.array, ...]:
    """The step's outputs in the problem's dtype; statistics stay float32."""
    # MLX's jvp walks into custom functions; stopped here, it asks `forward` first, which refuses by name.
    inputs = {name: mx.stop_gradient(x) if isinstance(x, mx.array) else x for name, x in inputs.items()}
    outputs = backend.run(plan(step, problem, backend.family), inputs, stream)
    dtype = getattr(mx, problem.dtype)
    return tuple(
        array.astype(dtype, stream=stream) if array.ndim == 4 else array for array in outputs
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


@lru_cache(maxsize=1024)
def attend(problem: Problem, backend: Backend, stream=None):
    """The function (q, k, v) -> (O, L) of one problem on one backend, with its gradient.

    L [B, Hq, Lq] is float32, the base-2 logarithm of each row's sum of exponentials; no gradient flows through it.
    """
    call = partial(run, problem=problem, backend=backend, stream=stream)

    @mx.custom_function
    def forward(q, k, v):
        return call(FORWARD, inputs={"Q": q, "K": k, "V": v, "scale": problem.scale})

    def residuals(q, k, v, d_o, L, delta):
        return {"Q": q, "K": k, "V": v, "dO": d_o, "L": L, "delta": delta, "scale": problem.scale}

    @_once_differentiable
    def backward_query(*arrays):
        return call(BACKWARD_QUERY, inputs=residuals(*arrays))[0]

    @_once_differentiable
    def backward_key_value(*arrays):
        return call(BACKWARD_KEY_VALUE, inputs=residuals(*arrays))

    @forward.vjp
    def backward(primals, cotangents, outputs):
        d_o, o, L = cotangents[0], *outputs
        delta = call(DELTA, inputs={"dO": d_o, "O": o})[0]
        arrays = (*primals, d_o, L, delta)
        return (backward_query(*arrays), *backward_key_value(*arrays))

    forward.jvp(_NO_JVP)
    forward.vmap(_NO_VMAP)
    return forward
