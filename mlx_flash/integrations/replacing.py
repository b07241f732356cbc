"""Functions of other people's modules, replaced while a patch is active, and put back as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from types import ModuleType

LOCK = threading.RLock()


class Replacement:
    """`name` of `module`, replaced by a function that asks `serve` first and calls what stood there when it may not.

    serve: called with the arguments; returns (True, result), or (False, None) for the call to go on as ever.

    Each replacement keeps what it found: whoever wrapped the function in the meantime keeps a working wrapper, however
    the two are taken off.
    """

    def __init__(self, module: ModuleType, name: str, serve: Callable):
        self.module, self.name, self.built_in = module, name, getattr(module, name)

        @wraps(self.built_in)
        def replaced(*args, **kwargs):
            served, result = serve(*args, **kwargs) if self.on else (False, None)
            return result if served else self.built_in(*args, **kwargs)

        self.on, self.replaced = True, replaced
        setattr(module, name, replaced)

    def undo(self) -> None:
        """Puts the function back, unless another stands over it: then the replacement only steps aside."""
        self.on = False
        if getattr(self.module, self.name) is self.replaced:
            setattr(self.module, self.name, self.built_in)
