"""The exceptions that the simulator raises."""

import re

_PLACE = re.compile(r"line (\d+): ")


def quoted(message: str, source: str) -> str:
    """A compiler's message about a translated text, with the quoted lines replaced by the lines of `source`."""
    lines, rows = source.splitlines(), message.splitlines()
    for at, row in enumerate(rows[1:], 1):
        place = _PLACE.match(rows[at - 1])
        if place and row.startswith("    ") and int(place[1]) <= len(lines):
            rows[at] = f"    {lines[int(place[1]) - 1].strip()[:200]}"
    return "\n".join(rows)


class SimulatorError(RuntimeError):
    """A kernel did something that a GPU would silently do wrong; `reports` lists every finding."""

    def __init__(self, message: str, reports=()):
        super().__init__(message)
        self.reports = tuple(reports)


class TracedError(ValueError):
    """A kernel that runs when it is called got arrays without values, inside mx.compile or mx.vmap."""


class CompileError(RuntimeError):
    """The text is not valid Metal; the message names the line of the Metal text."""


class ToolchainError(RuntimeError):
    """There is no compiler that can build kernels."""
