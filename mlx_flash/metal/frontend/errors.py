"""The exceptions that the simulator raises."""

import re

_PLACE = re.compile(r"line (\d+): ")
# What the compiler says of the text behind the kernels, which calls them: a bracket before it was not closed.
_BEHIND = re.compile(r"entry:\d+:\d+: ")
_OWN_NAME = re.compile(r"; did you mean '(?:msl_\w+|sampler_t)'\?")
ABSENT = "there are no"


def quoted(message: str, source: str) -> str:
    """A compiler's message about a translated text, with the quoted lines replaced by the lines of `source`."""
    lines, rows = source.splitlines(), message.splitlines()
    for at, row in enumerate(rows[1:], 1):
        place = _PLACE.match(rows[at - 1])
        if place and row.startswith("    ") and int(place[1]) <= len(lines):
            rows[at] = f"    {lines[int(place[1]) - 1].strip()[:200]}"
    return "\n".join(_OWN_NAME.sub("", _BEHIND.sub("behind the last line: ", row)) for row in rows)


def refused(name: str, message: str) -> str:
    """The message of a CompileError about a kernel or a library, which may be Metal that no target here has."""
    what = "cannot be run" if ABSENT in message else "is not valid Metal"
    return f"{name} {what}:\n{message}"


def undefined(function: str) -> str:
    """The finding about a function without a definition."""
    return f"error: the function '{function}' is called and never defined"


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
