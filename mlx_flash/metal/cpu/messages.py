"""Compiler errors, and warnings that are errors in Metal, reworded for Metal and with lines of the Metal text."""

import re
import subprocess
from pathlib import Path

from ..frontend.errors import CompileError

# Warnings of clang that are errors in Metal. To clang, __bf16 is an ordinary float type; Metal's bfloat takes no float
# without a cast.
_TO_BFLOAT = re.compile(
    r"implicit conversion (?:when assigning computation result )?loses floating-point precision"
    r": .* to '[^']*(?:' \(aka '[^']*)?__bf16'.*"
)
_NARROWING = re.compile(r".*cannot be narrowed.*")
_RESULT = re.compile(r".*should not return a value.*")
_FRAME = re.compile(r"stack frame size \((\d+)\) exceeds limit \((\d+)\).*")
_WARNING = re.compile(r"metal:(\d+):(\d+): warning: (.*)")


def refuse(done: subprocess.CompletedProcess, text: str, source: Path):
    """Raises CompileError for the compiler's errors and for warnings that are errors in Metal."""
    lines = _metal_lines(text)
    raised = []
    for number, column, warning in (found.groups() for found in map(_WARNING.match, done.stderr.splitlines()) if found):
        if _TO_BFLOAT.match(warning):
            warning = "a float does not convert to bfloat without a cast"
        elif _NARROWING.match(warning):
            # These macros wrap a constant, which may become half.
            place = lines[int(number) - 1][int(column) - 1 :]
            if "'half'" in warning and place.startswith(("msl_float(", "msl_named(")):
                continue
        elif found := _FRAME.match(warning):
            warning = f"a thread's own variables take {found[1]} bytes, and there are {found[2]}"
        elif not _RESULT.match(warning):
            continue
        raised.append(f"metal:{number}:{column}: error: {warning}")
    if done.returncode or raised:
        raise CompileError(in_metal_terms("\n".join([*raised, done.stderr]), text, str(source)))


def _metal_lines(text: str) -> list[str]:
    return text.rpartition('#line 1 "metal"\n')[2].splitlines()


# Clang's errors about a component of a vector, which the shim makes a property or an element in a space of its own.
_COMPONENT = "a component of a vector, like any value, has no address: neither a reference nor a pointer leads to it"
_OF_COMPONENTS = re.compile(
    r"address of property expression requested"
    r"|binding reference of type .* to value of type '[^' ]+' changes address space"
    r"|(?:binding reference|cannot initialize|no viable conversion|assigning to) .*__global_host.*"
    r"|(?:binding reference|cannot initialize|assigning to) "
    r".*'(?:volatile (?:__global|__local)|(?:__global|__local) volatile) .*"
    r"|non-const lvalue reference to type .* cannot bind to a temporary of type .*"
)
_SPACES = {"__global": "device", "__local": "threadgroup", "__private": "thread", "__constant": "constant"}
_ERROR = re.compile(": (fatal )?error: ")
_OWN_FILE = re.compile(r"\S*/(?:shim|target)/\S+?:\d+:\d+: ")


def in_metal_terms(message: str, text: str, path: str) -> str:
    """The compiler's errors in Metal's words, with line numbers of the Metal text and the lines themselves."""
    message = re.sub(r"'(?:metal::)?msl_(\w+)_needs_Metal_(\d)_(\d)'", r"'\1', which needs Metal \2.\3", message)
    message = re.sub(r"\bmsl_(atomic_\w+)", r"\1", message)
    message = re.sub(r"use of type 'double' requires .* support", "Metal has no double; use float", message)
    message = re.sub(r"static assertion failed due to requirement '.*': ", "", message)
    if "volatile" not in text:
        message = _OF_COMPONENTS.sub(_COMPONENT, message)
    message = re.sub(r"in address space '__global_host'", "to nothing", message)
    message = message.replace(
        "cannot bind reference in default address space to", "cannot bind a value, such as a vector's component, to"
    )
    message = message.replace("cannot bind reference to nothing to", "cannot bind a vector's component to")
    lines = _metal_lines(text)
    shown, of_error = [], False
    for row in message.splitlines():
        row = re.sub(r"__(global|local|private|constant)\b", lambda m: _SPACES[m[0]], row)
        of_error = bool(_ERROR.search(row)) or (of_error and "warning: " not in row)
        hidden = row.startswith(("language:", "In file included from")) or "generated." in row
        hidden |= ": note: built-in candidate operator" in row  # one for each pair of clang's own types
        if not of_error or hidden or (_OWN_FILE.match(row) and ": note: " in row):
            continue
        place = re.match(r"metal:(\d+):(\d+): (.*)", row)
        if place:
            number = int(place[1])
            shown.append(f"line {number}: {place[3]}")
            if number <= len(lines) and lines[number - 1].strip():
                shown.append(f"    {lines[number - 1].strip()[:200]}")
        else:
            shown.append(_OWN_FILE.sub("", row).replace(path, "metal"))
    return "\n".join(shown)
