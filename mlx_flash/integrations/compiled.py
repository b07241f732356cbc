"""mx.compile while a patch is active: functions are traced anew, and on the CPU for each shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from weakref import WeakKeyDictionary

import mlx.core as mx

_anew: WeakKeyDictionary[Callable, Callable] = WeakKeyDictionary()  # functions of the current patch, by the user's own


def forget() -> None:
    """Ends a patch: functions compiled during the next one are traced again."""
    _anew.clear()


def traced_anew(built_in: Callable, active: Callable[[], bool]) -> Callable:
    """mx.compile, which keeps the traces of a function for all who compile it: those from before the patch too.

    In a shapeless trace the built-in attention serves, and on the CPU MLX composes it of operations that hold the
    lengths of the first call: there ``shapeless`` is left out, so that each shape has its own trace.
    """

    def compile(fun, inputs=None, outputs=None, shapeless=False):
        if not active() or not callable(fun):
            return built_in(fun, inputs, outputs, shapeless)
        return built_in(_another(fun), inputs, outputs, shapeless and mx.default_device() != mx.cpu)

    return compile


def _another(fun: Callable) -> Callable:
    """A function that does the same, one for each function as long as the patch lasts."""

    @wraps(fun)
    def another(*args, **kwargs):
        return fun(*args, **kwargs)

    try:
        return _anew.setdefault(fun, another)
    except TypeError:  # an object that cannot be held weakly, or has no hash
        return another
