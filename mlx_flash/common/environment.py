"""Environment variables that every call asks for."""

from __future__ import annotations

import os

# CPython's own dictionary behind os.environ, by encoded name. A variable that is not set is found missing there in
# 0.05 us; os.environ.get raises and catches an exception, which takes longer than the rest of the way to a backend.
_STORED = getattr(os.environ, "_data", None)


def variable(name: str) -> str:
    """The value of an environment variable of ASCII name, "" where it is not set."""
    if isinstance(_STORED, dict) and name.encode() not in _STORED and name not in _STORED:
        return ""
    return os.environ.get(name, "")
