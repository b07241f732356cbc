"""What the commands share: their one error, rich when it is there, and readable sizes."""

from __future__ import annotations

import importlib
from types import ModuleType


class CommandError(Exception):
    """What a user can put right, in one sentence; the command prints it and exits with status 2."""


def need(module: str, command: str, extra: str = "demo") -> ModuleType:
    """An optional module, or a CommandError that says how to get it. `extra`: of this package, which brings it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package that is there in part fails in any way
        first = str(error).partition("\n")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "not installed" if absent else f"installed but cannot be imported ({type(error).__name__}: {first})"
        raise CommandError(
            f"{command} needs {package}, which is {reason}: pip install 'mlx-flash-attention[{extra}]'"
        ) from error


def kernel_backend() -> str:
    """The backend that runs kernels on this machine."""
    from .backends import kernel_backend as of_this_machine

    return of_this_machine()


def progress(command: str, console, transient: bool = False):
    """A progress bar with one line for each phase; `transient` ones are gone in the end."""
    bars = need("rich.progress", command)
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
    )


def readable(size: int) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
