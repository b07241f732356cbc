"""Functions of other people's modules, replaced while a patch is active, and put back as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from types import ModuleType

LOCK = threading.RLock()


class Replacement:
    """`name` of `module`, replaced by `make` of what stood there, until `undo`.

    Each replacement keeps what it found: whoever wrapped the function in the meantime keeps a working wrapper, however
    the two are taken off.
    """

    def __init__(self, module: ModuleType, name: str, make: Callable[[Callable], Callable]):
        self.module, self.name, self.built_in = module, name, getattr(module, name)
        self.on, ours = True, make(self.built_in)

        @wraps(self.built_in)
        def replaced(*args, **kwargs):
            return (ours if self.on else self.built_in)(*args, **kwargs)

        self.replaced = replaced
        setattr(module, name, replaced)

    def undo(self) -> None:
        """Puts the function back, unless another stands over it: then the replacement only steps aside."""
        self.on = False
        if getattr(self.module, self.name) is self.replaced:
            setattr(self.module, self.name, self.built_in)
