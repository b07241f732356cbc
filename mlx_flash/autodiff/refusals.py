"""What MLX's transformations meet in front of kernels and behind them: refusals in one clear sentence each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx

from ..common.errors import UnsupportedProblem
from ..common.mlx_private import in_shapeless_trace, in_trace
from ..transforms.trace import trace


def traced() -> bool:
    """Whether a transformation traces, so that a kernel needs rules for it."""
    return trace.alone is not None or trace.batched is not None or trace.export is not None or in_trace()


def _refuse(what: str, *_, function: str = "attention"):
    raise UnsupportedProblem(f"[mlx_flash.{function}] {what}")


def refuse_shapeless() -> None:
    """Raises UnsupportedProblem in a shapeless trace: kernels recorded here fit one set of shapes only."""
    if in_shapeless_trace():
        _refuse(
            "shapeless compilation and export (shapeless=True) are not available, since kernels are chosen by shapes: "
            "leave shapeless out, and MLX traces once for each shape."
        )


NO_JVP = partial(_refuse, "forward-mode derivatives (mx.jvp) are not available: use mx.grad or mx.vjp.")
NO_VMAP = partial(
    _refuse,
    "mx.vmap cannot map attention by itself: use mlx_flash.vmap, or mx.vmap inside `with "
    "mlx_flash.transforms.installed():`. Nothing maps through a custom function without a vmap rule: map inside of it.",
)
NO_SECOND = partial(_refuse, "gradients of gradients are not available: attention can be differentiated once.")
FORWARD_ONLY = partial(
    _refuse, "it is forward only: for derivatives, dequantize and call attention.", function="quantized_attention"
)

NO_PAGES = partial(_refuse, "derivatives through pages are not available: gather keys and values, and pass no pages.")


def custom(function: Callable, vjp: Callable, vmap: Callable, jvp: Callable = NO_JVP) -> Callable:
    wrapped = mx.custom_function(function)
    wrapped.vjp(vjp)
    wrapped.jvp(jvp)
    wrapped.vmap(vmap)
    return wrapped


# mx.vmap and mx.jvp go through the operations inside a custom function before they ask the function for its rule, so
# one in front of every kernel in a trace must refuse before a kernel does, less clearly. MLX's time for a custom
# function grows with the square of the arrays, and is the host's longest part of a gradient. That of the forward kernel
# is no identity, and no gradient goes through it: its result is an input of the kernel's own custom function, so that
# MLX meets it first.
@cache
def ahead(jvp: Callable) -> Callable:
    refusing = mx.custom_function(lambda *arrays: zero(mx.bool_))
    refusing.jvp(jvp)
    refusing.vmap(NO_VMAP)
    return lambda *arrays: mx.stop_gradient(refusing(*arrays))


@cache
def guard(jvp: Callable) -> Callable:
    return custom(lambda *arrays: arrays, lambda primals, cotangents, outputs: tuple(cotangents), NO_VMAP, jvp)


@cache
def zero(dtype: mx.Dtype) -> mx.array:
    return mx.array(0, dtype)  # from the host's memory, so that every thread can use it


# Behind every kernel of the backward pass: the first operation that a second derivative meets.
once = mx.custom_function(lambda *gradients: gradients)
once.vjp(NO_SECOND)


def passed_on(primals, tangents):
    return tuple(mx.zeros_like(one) if tangent is None else tangent for one, tangent in zip(primals, tangents))
