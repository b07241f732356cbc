"""Environment variables that every call asks for."""

from __future__ import annotations

import os

# CPython's own dictionary behind os.environ, by encoded name. A variable that is not set is found missing there in
# 0.05 us; os.environ.get raises and catches an exception, which takes longer than the rest of the way to a backend.
_STORED = getattr(os.environ, "_data", None)
_STORED = _STORED if isinstance(_STORED, dict) and os.name == "posix" else None  # names are text on Windows
_ENCODED: dict[str, bytes] = {}


def variable(name: str) -> str:
    """The value of an environment variable of ASCII name, "" where it is not set."""
    if _STORED is None:
        return os.environ.get(name, "")
    encoded = _ENCODED.get(name) or _ENCODED.setdefault(name, name.encode())
    return os.environ.get(name, "") if encoded in _STORED else ""
