"""Helpers of the commands: the backend of this machine, progress bars, and files of results."""

from __future__ import annotations

from pathlib import Path

from ..common.errors import CommandError, need


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


def write(path: str, text: str) -> None:
    """Writes a file of results. Raises CommandError where it cannot be written."""
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None


def save(figure, option: str, path: str, dpi: int = 150) -> None:
    """Saves a picture where an option says. Raises CommandError where it cannot be written."""
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise CommandError(f"{option} {path}: {error}") from None
