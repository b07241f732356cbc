"""mx.compile while a patch is active: it traces functions again, and on the CPU once for each shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from weakref import WeakKeyDictionary

import mlx.core as mx

_anew: WeakKeyDictionary[Callable, Callable] = WeakKeyDictionary()  # the current patch's copy of each user's function


def forget() -> None:
    """Ends a patch: functions compiled during the next one are traced again."""
    _anew.clear()


def traced_anew(built_in: Callable, active: Callable[[], bool]) -> Callable:
    """mx.compile for the time of a patch. MLX's own would reuse traces of a function from before the patch.

    In a shapeless trace the built-in attention serves the calls. On the CPU MLX composes it of operations that are
    fixed to the lengths of the first call, so ``shapeless`` is dropped there, and each shape has its own trace.
    """

    def compile(fun, inputs=None, outputs=None, shapeless=False):
        if not active() or not callable(fun):
            return built_in(fun, inputs, outputs, shapeless)
        return built_in(_another(fun), inputs, outputs, shapeless and mx.default_device() != mx.cpu)

    return compile


def _another(fun: Callable) -> Callable:
    """A copy of the function, the same one for as long as the patch lasts."""

    @wraps(fun)
    def another(*args, **kwargs):
        return fun(*args, **kwargs)

    try:
        return _anew.setdefault(fun, another)
    except TypeError:  # an object that cannot be held weakly, or has no hash
        return another
