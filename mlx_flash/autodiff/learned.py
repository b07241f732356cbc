"""Numbers of a call given as arrays: a learned scale has a gradient, and no other number a silent gradient of zero."""

from __future__ import annotations

import mlx.core as mx

from ..common.errors import UnsupportedProblem, wrong
from ..common.mlx_private import in_export_trace
from ..common.scalars import real, shown
from ..problem.variants import NUMBERS
from ..transforms.trace import trace


def numbers_of(q, arguments: dict, stream) -> tuple[mx.array, dict]:
    """q and the arguments of a call, with numbers in the place of arrays."""
    if not isinstance(q, mx.array):  # which the checks of the call refuse
        return q, arguments
    arguments = dict(arguments)
    for name in NUMBERS:
        if isinstance(arguments.get(name), mx.array):
            arguments[name], q = known(name, arguments[name], q)
    if isinstance(arguments["scale"], mx.array):
        q, arguments["scale"] = with_scale(q, arguments["scale"], stream), 1.0
    return q, arguments


def with_scale(q: mx.array, scale: mx.array, stream) -> mx.array:
    """q times the scale, whose gradient is then MLX's own: with S = (scale * q) k^T, it is the sum of dQ * q.

    The product is rounded to q's dtype once. Raises ValueError for more than one number.
    """
    if scale.size != 1 or not mx.issubdtype(scale.dtype, mx.number):
        remedy = "Multiply q by the scales of its heads, and pass scale=1."
        raise wrong("scale", "a number, or an array of a single one", shown(scale), remedy)
    wide = mx.multiply(q.astype(mx.float32, stream=stream), scale.reshape(()), stream=stream)
    return wide.astype(q.dtype, stream=stream)


def known(name: str, array: mx.array, q: mx.array) -> tuple[float, mx.array]:
    """(the number in an array, q); the returned q makes a gradient that is asked of the array raise.

    Raises ValueError for another shape, and inside mx.compile and mx.vmap, where the number is not known yet.
    """
    number = real(array)
    if number is None:
        remedy = f"Pass a float, such as {name}.item() taken outside of mx.compile and mx.vmap."
        raise wrong(name, "a number whose value is known", shown(array), remedy)
    return number, q if _exported() else _tied(q, without_gradient(name, array, "Pass a float"))


def without_gradient(name: str, array: mx.array, remedy: str) -> mx.array:
    """The argument `name`, of which kernels compute no gradient: UnsupportedProblem where one is asked for."""
    return array if _exported() else _refusing(name, remedy)(array)


def _exported() -> bool:
    """Exports are graphs without custom functions, and without gradients."""
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
    """q, as a function of both: MLX asks for the gradient of `number` only if somebody differentiates it."""
    return q


@_tied.vjp
def _tied_vjp(primals, cotangent, _):
    return cotangent, mx.zeros_like(primals[1])
