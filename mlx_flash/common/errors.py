"""The errors that mlx_flash raises: InvalidArgument, UnsupportedProblem, and CommandError in the commands; warnings."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

_PACKAGE = __name__.partition(".")[0]


class InvalidArgument(ValueError):
    """A wrong argument. The message names it and says what was expected, what came and what to do."""


class UnsupportedProblem(ValueError):
    """A correct request that the chosen backend cannot serve. The message says why and what to do."""


def wrong(argument: str, expected: str, got: object, remedy: str, function: str = "attention") -> InvalidArgument:
    """The error of a wrong argument, in the words of all such errors: argument, expected, got, and what to do."""
    return InvalidArgument(f"[mlx_flash.{function}] {argument}: expected {expected}, got {got}. {remedy}")


def warn(message: str, kind: type[Warning] = RuntimeWarning) -> None:
    """Warns at the line of the user's code that led here: the nearest one outside of this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, kind, stacklevel=level)


class CommandError(Exception):
    """A mistake that the user of a command can correct, in one sentence; the command prints it and exits with 2."""


def need(module: str, command: str, extra: str = "demo") -> ModuleType:
    """An optional module, or a CommandError that says how to install it. `extra`: the extra of this package with it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package that is installed in part can fail in any way
        first = str(error).partition("\n")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "not installed" if absent else f"installed but cannot be imported ({type(error).__name__}: {first})"
        raise CommandError(
            f"{command} needs {package}, which is {reason}: pip install 'mlx-flash-attention[{extra}]'"
        ) from error
