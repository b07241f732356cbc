"""Helpers of the commands: the backend of this machine and progress bars."""

from __future__ import annotations

from ..common.errors import need


def kernel_backend() -> str:
    """The backend that runs kernels on this machine."""
    from ..backends import kernel_backend as of_this_machine

    return of_this_machine()


def progress(command: str, console, transient: bool = False):
    """A progress bar with one line for each phase; a `transient` one is erased at the end."""
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
