"""Sequences packed one after another into one row: the segment ids that keep them apart."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .errors import wrong


def segments(lengths: Sequence[int] | Sequence[Sequence[int]], length: int | None = None) -> tuple[mx.array, mx.array]:
    """The `segments` argument of ``attention`` for sequences of these lengths: ``segments=segments([120, 80, 56])``.

    Args:
        lengths: of the sequences of a row, in order; or one such list for each batch entry.
        length: of the row, where padding follows the sequences; None: the sum of `lengths`. Padding has an id of its
            own, -1, so that no sequence sees it.

    Returns:
        (ids, ids), int32 [length] or [B, length]: queries and keys of one sequence share the number of the sequence.

    Raises:
        ValueError: lengths that are no whole numbers of at least 0, or that exceed `length`, or rows that differ.
    """
    rows = list(lengths)
    batched = bool(rows) and all(isinstance(row, (list, tuple, np.ndarray)) for row in rows)
    packed = [_row(row, length) for row in (rows if batched else [rows])]
    if len({len(row) for row in packed}) > 1:
        raise wrong(
            "lengths", "rows of one length", f"rows of {[len(row) for row in packed]}", "Pass length=...", "segments"
        )
    ids = mx.array(np.stack(packed) if batched else packed[0])
    return ids, ids


def _row(lengths, length: int | None) -> np.ndarray:
    if not lengths or not all(
        isinstance(one, (int, np.integer)) and not isinstance(one, bool) and one >= 0 for one in lengths
    ):
        raise wrong("lengths", "whole numbers of at least 0, at least one", repr(lengths), "Pass a list.", "segments")
    total = int(sum(lengths))
    if length is not None and total > length:
        raise wrong("length", f"at least the sum of lengths, {total}", length, "Leave sequences out.", "segments")
    ids = np.full(total if length is None else length, -1, np.int32)
    ids[:total] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return ids
