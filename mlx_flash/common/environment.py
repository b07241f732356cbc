"""Environment variables: one that every call reads, and switches."""

from __future__ import annotations

import os

from .errors import wrong

# CPython's dictionary behind os.environ, by encoded name. It tells in 0.05 us that a variable is not set;
# os.environ.get raises and catches an exception for that, which takes longer than all other steps to find the current
# backend.
STORED, stored_name = os.environ, str
if os.name == "posix" and isinstance(getattr(os.environ, "_data", None), dict):  # names are text on Windows
    STORED, stored_name = os.environ._data, str.encode


def variable(name: str) -> str:
    """The value of an environment variable of ASCII name, "" where it is not set."""
    return os.environ.get(name, "") if stored_name(name) in STORED else ""


def switched_off(name: str, remedy: str) -> bool:
    """Whether a variable is 0 rather than 1, its default. Raises ValueError for other values. `remedy`: what to do."""
    value = os.environ.get(name, "1")
    if value not in ("", "0", "1"):
        raise wrong(name, "0 or 1", repr(value), remedy)
    return value == "0"
