"""Scores of papers and models as texts. Each is a Score for ``attention(..., score=...)``.

Positions count from the lower right: the last query has the position of the last key. Numbers may be mx.arrays of one
element, which are learned.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from ..common.errors import wrong
from ..common.scalars import real, shown
from ..problem.formulas.score import Score
from .checks import axes, count, flag


def alibi(slopes: mx.array) -> Score:
    """A penalty by distance. slopes [Hq]. Press et al. 2022."""
    return Score("s - slope[h] * abs(q - k)", slope=slopes)


def softcap(cap: float | mx.array) -> Score:
    """Scores that stay between -cap and cap. Gemma 2 (2024)."""
    return Score("float c = cap; return c * tanh(s / c);", cap=_number("cap", cap))


def offset_bias(table: mx.array) -> Score:
    """A number for every offset, table [2 reach + 1, Hq]; offsets beyond the reach share the last. Shaw et al. 2018."""
    reach = _rows("table", table, "2 reach + 1", odd=True) // 2
    return Score("s + table[clamp(q - k, -reach, reach) + reach][h]", table=table, reach=reach)


def t5_bias(table: mx.array, *, bidirectional: bool = False, farthest: int = 128) -> Score:
    """T5's relative bias: near offsets have buckets of their own, far ones share them by logarithm.

    table [buckets, Hq]; `farthest`: from there on all offsets share the last bucket. T5 scales no scores: pass
    scale=1.0. Raffel et al. 2020.
    """
    buckets, both = _rows("table", table, "buckets"), flag("bidirectional", bidirectional)
    exact = buckets // 4 if both else buckets // 2  # distances with a bucket of their own
    if exact == 0:
        raise wrong("table", f"at least {4 if both else 2} rows", buckets, "Give each bucket a row.", "gallery.t5_bias")
    farthest = count("farthest", farthest, exact + 1, "gallery.t5_bias")
    numbers = t5_buckets(np.arange(-farthest, farthest + 1), buckets, both, farthest)
    text = "s + table[bucket[clamp(k - q, -far, far) + far]][h]"
    return Score(text, table=table, bucket=mx.array(numbers), far=farthest)


def t5_buckets(offsets: np.ndarray, buckets: int, bidirectional: bool, farthest: int) -> np.ndarray:
    """The bucket of every offset key - query, int32."""
    first = np.zeros_like(offsets)
    if bidirectional:
        buckets //= 2
        first, distance = (offsets > 0) * buckets, np.abs(offsets)
    else:
        distance = np.maximum(-offsets, 0)
    exact = buckets // 2
    far = np.log(np.maximum(distance, 1) / exact) / math.log(farthest / exact) * (buckets - exact)
    far = np.minimum(exact + far.astype(np.int64), buckets - 1)
    return (first + np.where(distance < exact, distance, far)).astype(np.int32)


def swin_bias(table: mx.array, size: tuple[int, int] = (7, 7)) -> Score:
    """Swin's relative bias inside a window of size = (rows, columns): table [(2 rows - 1) (2 columns - 1), Hq].

    Sequences are windows, row by row, of rows * columns tokens each. Liu et al. 2021.
    """
    rows, columns = axes("size", size, 2)
    if _rows("table", table, "(2 rows - 1) (2 columns - 1)") != (2 * rows - 1) * (2 * columns - 1):
        expected = f"{(2 * rows - 1) * (2 * columns - 1)} rows for windows of {rows} x {columns}"
        raise wrong("table", expected, table.shape[0], "Check size.", "gallery.swin_bias")
    text = "s + table[(q / w - k / w + r - 1) * (2 * w - 1) + q % w - k % w + w - 1][h]"
    return Score(text, table=table, r=rows, w=columns)


def pair_bias(table: mx.array) -> Score:
    """A number for every pair: table [Lk, Lk] or [Hq, Lk, Lk], by the positions of query and key."""
    if not isinstance(table, mx.array) or table.ndim not in (2, 3):
        raise wrong("table", "an array [Lk, Lk] or [Hq, Lk, Lk]", shown(table), "Reshape it.", "gallery.pair_bias")
    return Score("s + table[h][q][k]" if table.ndim == 3 else "s + table[q][k]", table=table)


def position_temperature(temperatures: mx.array) -> Score:
    """Scores of each query times a number of its position: temperatures [Lk]."""
    return Score("s * temperature[q]", temperature=temperatures)


def log_length(trained: float | mx.array) -> Score:
    """Scores grow with the logarithm of the position beyond the trained length (Su 2021, Llama 4)."""
    return Score("s * max(1, log(q + 1) / log(trained))", trained=_number("trained", trained))


def distance_penalty(rate: float | mx.array, power: float | mx.array = 1.0) -> Score:
    """Minus rate times a power of the distance."""
    numbers = {"rate": _number("rate", rate), "power": _number("power", power)}
    return Score("s - rate * pow(abs(q - k), power)", **numbers)


def kerple(first: mx.array, second: mx.array) -> Score:
    """KERPLE's logarithmic kernel: - first log(1 + second distance), each [Hq] and positive. Chi et al. 2022."""
    return Score("s - first[h] * log(1 + second[h] * abs(q - k))", first=first, second=second)


def _number(name: str, given) -> float | mx.array:
    """A float; an mx.array of one element stays an array, so that it has a gradient."""
    if isinstance(given, mx.array) and given.size == 1 and given.dtype not in (mx.bool_, mx.complex64):
        return given.reshape(()).astype(mx.float32)
    number = real(given)
    if number is None:
        raise wrong(name, "a number, or an array of a single one", shown(given), "Pass a float.", "gallery")
    return number


def _rows(name: str, table, meaning: str, odd: bool = False) -> int:
    fits = isinstance(table, mx.array) and table.ndim == 2 and (not odd or table.shape[0] % 2)
    if not fits:
        got = f"shape {table.shape}" if isinstance(table, mx.array) else type(table).__name__
        raise wrong(name, f"an array [{meaning}, Hq]", got, "Reshape it.", "gallery")
    return table.shape[0]
