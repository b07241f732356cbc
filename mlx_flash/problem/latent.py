"""Latent attention, in which values are the first columns of keys: the value operand as a view of k."""

from __future__ import annotations

import mlx.core as mx

from ..common.errors import wrong
from ..common.scalars import shown, whole
from .quantization import FUNCTION, Quantization


def columns_of(k, v, value_dim) -> mx.array | None:
    """The first columns of k, as v. Raises ValueError where v is given too, or k has fewer columns. Other things than
    arrays are returned unchanged, for the checks of the call to refuse."""
    if not isinstance(k, mx.array) or k.ndim != 4:
        return k
    return k[..., : _checked(v, value_dim, k.shape[3], 1, "attention")]


def code_columns_of(k, v, value_dim, quantization: Quantization) -> tuple[mx.array, ...] | None:
    """`columns_of` for keys as mx.quantize returns them, in whole groups of columns."""
    parts = isinstance(k, (tuple, list)) and len(k) > 1
    if not parts or not all(isinstance(part, mx.array) and part.ndim == 4 for part in k):
        return k
    group, bits = quantization.group_size, quantization.bits
    columns = _checked(v, value_dim, k[1].shape[3] * group, group, FUNCTION)
    return k[0][..., : columns * bits // 32], *(part[..., : columns // group] for part in k[1:])


def _checked(v, value_dim, columns: int, multiple: int, function: str) -> int:
    if v is not None:
        remedy = "Leave value_dim out, or v."
        raise wrong("value_dim", "None where v is given", shown(value_dim), remedy, function)
    if value_dim is None:
        remedy = "Convert it with mx.array(...), or say how many columns of k are values."
        raise wrong("v", "an mlx.core.array, or None beside value_dim", "NoneType", remedy, function)
    number = whole(value_dim)
    if number is None or not 1 <= number <= columns or number % multiple:
        expected = f"a whole number from 1 to k's {columns} columns where v is None"
        expected += f", a multiple of {multiple}" if multiple > 1 else ""
        raise wrong("value_dim", expected, shown(value_dim), "Pass v, or the columns of k that are values.", function)
    return number
