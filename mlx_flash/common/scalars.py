"""Numbers and words as users pass them, read as Python's own: numbers of numpy and arrays of one element too."""

from __future__ import annotations

import operator

import mlx.core as mx
import numpy as np

from .errors import wrong

LARGEST = (2 - 2.0**-23) * 2.0**127  # finite float32


def whole(value) -> int | None:
    """The int of a Python or numpy integer or of an integer array without axes; None for everything else.

    Neither a bool nor 2.0 counts as a whole number: both are mistakes where a count is expected.
    """
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (mx.array, np.ndarray)) and value.shape != ()):
        return None
    if isinstance(value, mx.array):  # arrays have no __index__ before MLX 0.32.4
        return value.item() if mx.issubdtype(value.dtype, mx.integer) and not traced(value) else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def truth(value) -> bool | None:
    """The bool of a Python or numpy bool or of a bool array without axes; None for everything else."""
    if isinstance(value, bool):
        return value
    boolean = isinstance(value, (np.bool_, np.ndarray)) and value.dtype == np.bool_
    boolean = boolean or (isinstance(value, mx.array) and value.dtype == mx.bool_)
    return bool(value.item()) if boolean and value.shape == () and not traced(value) else None


def real(value) -> float | None:
    """The float of a Python or numpy number or of an array of a single one; None for everything else, bools too."""
    if isinstance(value, (mx.array, np.ndarray)):
        value = value.item() if value.size == 1 and not traced(value) else None
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def traced(value) -> bool:
    """Whether a value is an array without a value yet, inside mx.compile or mx.vmap."""
    if not isinstance(value, mx.array):
        return False
    try:
        mx.eval(value)
    except ValueError:
        return True
    return False


def evaluated(array: mx.array) -> mx.array:
    """The array, evaluated now, so that it can be kept and used in any thread: only the thread that made a lazy array
    can evaluate it. Inside mx.compile and mx.vmap it stays lazy."""
    traced(array)
    return array


def listed(values) -> list | None:
    """The elements of a sequence or array; None for other values. Arrays inside it become lists too."""
    if isinstance(values, (mx.array, np.ndarray)):
        return values.tolist() if values.ndim and not traced(values) else None
    try:
        elements = list(values)
    except TypeError:
        return None
    arrays = [isinstance(one, (mx.array, np.ndarray)) and one.ndim > 0 for one in elements]
    return [listed(one) if array else one for one, array in zip(elements, arrays)]


def shown(value) -> str:
    """A value as errors show it: repr would print whole arrays, and fails for one without a value."""
    if isinstance(value, mx.array):
        return f"an array of shape {value.shape}, {value.dtype}"
    if isinstance(value, (tuple, list)) and any(isinstance(one, mx.array) for one in value):
        return f"{type(value).__name__} of {', '.join(map(shown, value))}"
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def word(
    name: str, value, known, function: str, expected: str | None = None, remedy: str = "Check the spelling."
) -> str:
    """The argument `name`, which is one of the known words. Raises ValueError for everything else."""
    if not isinstance(value, str) or value not in known:
        raise wrong(name, expected or f"one of {', '.join(known)}", shown(value), remedy, function)
    return value


def readable(size: int) -> str:
    """A number of bytes in the largest unit in which it is at least 1."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def dotted(version: tuple[int, ...]) -> str:
    """A version as text: "26.2"."""
    return ".".join(map(str, version))
