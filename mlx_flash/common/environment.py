"""Environment variables: one that every call reads, and switches."""

from __future__ import annotations

import os

from .errors import wrong

# CPython's dictionary behind os.environ, by encoded name. It tells in 0.05 us that a variable is not set;
# os.environ.get raises and catches an exception for that, which takes longer than all other steps to find the current
# backend.
_STORED = getattr(os.environ, "_data", None)
_STORED = _STORED if isinstance(_STORED, dict) and os.name == "posix" else None  # names are text on Windows
_ENCODED: dict[str, bytes] = {}


def variable(name: str) -> str:
    """The value of an environment variable of ASCII name, "" where it is not set."""
    if _STORED is None:
        return os.environ.get(name, "")
    encoded = _ENCODED.get(name) or _ENCODED.setdefault(name, name.encode())
    return os.environ.get(name, "") if encoded in _STORED else ""


def switched_off(name: str, remedy: str) -> bool:
    """Whether a variable is 0 rather than 1, its default. Raises ValueError for other values. `remedy`: what to do."""
    value = os.environ.get(name, "1")
    if value not in ("", "0", "1"):
        raise wrong(name, "0 or 1", repr(value), remedy)
    return value == "0"
