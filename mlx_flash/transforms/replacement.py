"""Replaces functions of other modules for a while, and restores them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import FunctionType, ModuleType

LOCK = threading.RLock()
_MARK = "_mlx_flash_original"  # on a function of ours: (its identity, the function it stands for)
MOST_ELEMENTS = 256  # elements of a list or dict that are searched
_PACKAGE = __name__.partition(".")[0]


def original(function: Callable) -> Callable:
    """The function behind a replacement of this package, also where another load of the package made it."""
    identity, found = getattr(function, _MARK, (None, function))
    return found if identity == id(function) else function  # functools.wraps copies the mark to a wrapper


def _standing_for(built_in: Callable, made: Callable, own: bool) -> Callable:
    if own:
        function = wraps(built_in)(made)
    else:

        @wraps(built_in)
        def function(*args, **kwargs):
            return made(*args, **kwargs)

    setattr(function, _MARK, (id(function), built_in))
    return function


# The types of most values in modules, which cannot hold a function.
_PLAIN = frozenset({str, int, float, bool, bytes, type(None), ModuleType})
_TABLES = frozenset({list, tuple, dict, partial})


class Replacement:
    """The function `name` of `module`, replaced by `make(name, built_in)` while the replacement has users.

    Code that imports the new function keeps it, so the function itself must decide at each call what to do. If other
    code wraps it in the meantime, the wrapper stays when the replacement is reverted. `own`: `make` returns a new
    function each time, which is put in place itself; otherwise a function that calls it is.

    Attributes: built_in, the original function; reached, (module, name) of the places that held it by name and now hold
    the new function; out_of_reach, descriptions of places that hold the original and cannot be changed.
    """

    def __init__(self, module: ModuleType, name: str, make: Callable[[str, Callable], Callable], own: bool = False):
        self.module, self.name, self._make, self._own = module, name, make, own
        self.built_in = self._function = None
        self._users = self._users_with_holders = 0
        self.reached: list[tuple[ModuleType, str]] = []
        self.out_of_reach: list[str] = []

    def _put(self) -> None:
        self._users += 1
        if self._users > 1:
            return
        built_in = original(getattr(self.module, self.name))
        if built_in is not self.built_in:
            self.built_in = built_in
            self._function = _standing_for(built_in, self._make(self.name, built_in), self._own)
        setattr(self.module, self.name, self._function)

    def _take_back(self) -> None:
        self._users -= 1
        if not self._users and getattr(self.module, self.name) is self._function:
            setattr(self.module, self.name, self.built_in)

    def _hold(self, module: ModuleType, name: str) -> None:
        if (module, name) == (self.module, self.name):
            return
        try:
            setattr(module, name, self._function)
        except Exception:  # a module may refuse in any way
            self.out_of_reach.append(f"{module.__name__}.{name}")
        else:
            self.reached.append((module, name))

    def _let_go(self) -> None:
        for module, name in self.reached:
            if getattr(module, name, None) is self._function:
                setattr(module, name, self.built_in)
        self.reached, self.out_of_reach = [], []


def put(replacements: Iterable[Replacement], holders: bool) -> None:
    """Adds a user to each replacement; the first one puts the new functions in place. `holders`: also where modules
    that are already imported hold the original by name."""
    with LOCK:
        for one in replacements:
            one._put()
        if not holders:
            return
        first = []
        for one in replacements:
            one._users_with_holders += 1
            if one._users_with_holders == 1:
                first.append(one)
        if first:
            _put_in_holders({id(one.built_in): one for one in first})


def take_back(replacements: Iterable[Replacement], holders: bool) -> None:
    """Removes a user from each replacement. After the last one the original returns, unless other code has put another
    function there."""
    with LOCK:
        for one in replacements:
            one._take_back()
            if holders:
                one._users_with_holders -= 1
                if not one._users_with_holders:
                    one._let_go()


@contextmanager
def replaced(replacements: Iterable[Replacement], holders: bool = False) -> Iterator[None]:
    """Puts the new functions in place for a block."""
    put(replacements, holders)
    try:
        yield
    finally:
        take_back(replacements, holders)


def _put_in_holders(wanted: dict[int, Replacement]) -> None:
    """Searches all modules. `wanted`: replacements by the identity of the original function."""
    without: set[int] = set()  # values that hold no original; many modules import the same ones
    for module_name, module in list(sys.modules.items()):
        names = _own_names(module)
        if type(names) is not dict or module_name.partition(".")[0] == _PACKAGE:
            continue
        for name, value in list(names.items()):
            kind, identity = type(value), id(value)
            if kind in _PLAIN or identity in without or (name.startswith("__") and name.endswith("__")):
                continue
            if kind is FunctionType:
                identity = id(original(value))
            if identity in wanted:
                wanted[identity]._hold(module, name)
                continue
            is_class = issubclass(kind, type)
            if not (is_class or kind in _TABLES or (kind is FunctionType and _holds(value))):
                continue
            found = {id(inner) for inner in _inside(value, module_name)} & wanted.keys()
            if not found and not is_class:  # classes are searched in the module that defines them
                without.add(id(value))
            for held in found:
                wanted[held].out_of_reach.append(f"{module_name}.{name}")


def _inside(value: object, module_name: str) -> Iterator[object]:
    """The values that a module's value holds: attributes of its classes, defaults and closures of its functions and of
    their methods, partials, and the elements of its tables."""
    of_class = issubclass(type(value), type)
    for one in _held(value, module_name):
        kind = type(one)
        if kind in _PLAIN:
            continue
        if kind is staticmethod or kind is classmethod:
            one = one.__func__
            kind = type(one)
        yield one
        if of_class and kind is FunctionType and _holds(one):
            yield from _held(one, module_name)


def _holds(function: FunctionType) -> bool:
    """Whether a function has defaults or a closure, which may hold other functions."""
    return bool(function.__defaults__ or function.__kwdefaults__ or function.__closure__)


def _held(value: object, module_name: str) -> Iterable[object]:
    kind = type(value)
    if issubclass(kind, type):
        names = _own_names(value)
        return list(names.values()) if names is not None and names.get("__module__") == module_name else ()
    if kind is FunctionType:
        return [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *_closure(value)]
    if kind is partial:
        return [value.func, *value.args, *value.keywords.values()]
    if kind in (list, tuple):
        return value[:MOST_ELEMENTS]
    if kind is dict:
        return list(value.values())[:MOST_ELEMENTS]
    return ()


def _closure(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue


def _own_names(value: object):
    """The dictionary of a module or class, looked up without running its code: modules that load lazily, and objects
    that warn of their deprecation, react to any access to an attribute."""
    lookup = type.__getattribute__ if issubclass(type(value), type) else object.__getattribute__
    try:
        return lookup(value, "__dict__")
    except AttributeError:
        return None
