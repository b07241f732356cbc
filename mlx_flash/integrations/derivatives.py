"""Which derivatives are being traced: attention has first ones in reverse mode, the built-in function has all.

A trace cannot be told from any other from within, so while a patch is active the functions that start one are replaced
by ones that keep count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps

import mlx.core as mx

from .replacement import Replacement


class _Depth(threading.local):
    """Of the trace this thread is in: nested gradients, and forward-mode derivatives."""

    reverse = 0
    forward = 0


_depth = _Depth()


def unavailable(gradients: int = 1) -> str | None:
    """Why a function that has so many gradients could not be differentiated as the current trace asks, or None."""
    if _depth.forward:
        return "a forward-mode derivative (mx.jvp)"
    if _depth.reverse > gradients:
        return "a gradient of a gradient" if gradients else "a gradient"
    return None


def _counted(mode: str, built_in: Callable) -> Callable:
    @wraps(built_in)
    def derivative(fun, *args, **kwargs):
        @wraps(fun)
        def traced(*inside, **named):
            setattr(_depth, mode, getattr(_depth, mode) + 1)
            try:
                return fun(*inside, **named)
            finally:
                setattr(_depth, mode, getattr(_depth, mode) - 1)

        return built_in(traced if callable(fun) else fun, *args, **kwargs)

    return derivative


MODES = {"grad": "reverse", "value_and_grad": "reverse", "vjp": "reverse", "jvp": "forward"}


def replacements() -> list[Replacement]:
    """mx.grad, mx.value_and_grad, mx.vjp and mx.jvp, counting."""
    return [Replacement(mx, name, lambda built_in, mode=mode: _counted(mode, built_in)) for name, mode in MODES.items()]
