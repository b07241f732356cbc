"""The simulator's errors."""

import re

_PLACE = re.compile(r"line (\d+): ")


def quoted(message: str, source: str) -> str:
    """A compiler's message about a translated text, with the lines it quotes as they were written."""
    lines, rows = source.splitlines(), message.splitlines()
    for at, row in enumerate(rows[1:], 1):
        place = _PLACE.match(rows[at - 1])
        if place and row.startswith("    ") and int(place[1]) <= len(lines):
            rows[at] = f"    {lines[int(place[1]) - 1].strip()[:200]}"
    return "\n".join(rows)


class SimulatorError(RuntimeError):
    """A kernel did what a GPU would silently do wrong; `reports` lists every finding."""

    def __init__(self, message: str, reports=()):
        super().__init__(message)
        self.reports = tuple(reports)


class TracedError(ValueError):
    """A kernel that runs at once was called on arrays that have no values yet, inside mx.compile or mx.vmap."""


class CompileError(RuntimeError):
    """The text is not valid Metal; the message names the line of the Metal text."""


class ToolchainError(RuntimeError):
    """No compiler that can build kernels was found."""
