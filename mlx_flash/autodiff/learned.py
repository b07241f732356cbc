"""Numbers of a call that are given as arrays: a learned scale has its gradient; other numbers refuse to have one."""

from __future__ import annotations

import mlx.core as mx

from ..common.errors import UnsupportedProblem, wrong
from ..common.mlx_private import in_export_trace
from ..common.scalars import real, shown
from ..problem.variants import NUMBERS
from ..transforms.trace import trace


def numbers_of(q, arguments: dict, stream) -> tuple[mx.array, dict]:
    """q and the arguments of a call, with numbers in place of arrays of one element."""
    if not isinstance(q, mx.array):  # left to the checks of the call
        return q, arguments
    arguments = dict(arguments)
    for name in NUMBERS:
        if isinstance(arguments.get(name), mx.array):
            arguments[name], q = known(name, arguments[name], q)
    if isinstance(arguments["scale"], mx.array):
        q, arguments["scale"] = with_scale(q, arguments["scale"], stream), 1.0
    return q, arguments


def with_scale(q: mx.array, scale: mx.array, stream) -> mx.array:
    """scale * q, rounded to q's dtype once, so that MLX computes the gradient of the scale: the sum of dQ * q, since
    S = (scale * q) k^T. Raises ValueError for more than one number."""
    if scale.size != 1 or scale.dtype in (mx.bool_, mx.complex64):
        remedy = "Multiply q by the scales of its heads, and pass scale=1."
        raise wrong("scale", "a number, or an array of a single one", shown(scale), remedy)
    wide = mx.multiply(q.astype(mx.float32, stream=stream), scale.reshape(()), stream=stream)
    return wide.astype(q.dtype, stream=stream)


def known(name: str, array: mx.array, q: mx.array) -> tuple[float, mx.array]:
    """(the number in an array, q). The returned q depends on the array, so that asking for its gradient raises.

    Raises ValueError for another shape, and inside mx.compile and mx.vmap, where the number is not known yet.
    """
    number = real(array)
    if number is None:
        remedy = f"Pass a float, such as {name}.item() taken outside of mx.compile and mx.vmap."
        raise wrong(name, "a number whose value is known", shown(array), remedy)
    return number, q if is_exported() else _tied(q, without_gradient(name, array, "Pass a float"))


def without_gradient(name: str, array: mx.array, remedy: str) -> mx.array:
    """The argument `name`, which raises UnsupportedProblem where its gradient is asked for."""
    return array if is_exported() else _refusing(name, remedy)(array)


def is_exported() -> bool:
    """Whether a function is exported: exports contain neither custom functions nor gradients."""
    return trace.export is not None or in_export_trace()


def _refusing(name: str, remedy: str):
    def refuse(*_):
        raise UnsupportedProblem(
            f"[mlx_flash.attention] {name}: gradients with respect to it are not available. "
            f"{remedy}, or pass mx.stop_gradient({name})."
        )

    unchanged = mx.custom_function(lambda array: array)
    unchanged.vjp(refuse)
    unchanged.jvp(refuse)
    return unchanged


@mx.custom_function
def _tied(q: mx.array, number: mx.array) -> mx.array:
    """q, as a function of both arguments: MLX asks for the gradient of `number` only where it is differentiated."""
    return q


@_tied.vjp
def _tied_vjp(primals, cotangent, _):
    return cotangent, mx.zeros_like(primals[1])
