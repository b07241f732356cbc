"""Layouts: the rows of a sequence that each rank holds, and functions that cut arrays into shards and join them.

"zigzag" cuts the sequence into 2P pieces; rank r holds pieces r and 2P - 1 - r, so that causal attention is the same
work for every rank. "contiguous" cuts it into P pieces; rank P - 1 then has almost twice the mean work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from ..common.errors import wrong
from ..common.scalars import shown, whole, word
from ..problem.shards import in_order, own_rows, piece_numbers
from .collectives import Collectives, group_of

PIECES = {"zigzag": 2, "contiguous": 1}  # pieces of the sequence in one rank's shard


@dataclass(frozen=True)
class Layout:
    """`name` over `ranks` processes."""

    name: str
    ranks: int

    @property
    def pieces_of_a_rank(self) -> int:
        return PIECES[self.name]

    def piece_numbers(self, rank: int) -> tuple[int, ...]:
        """The numbers of the pieces in a rank's shard, in the shard's order."""
        return piece_numbers(rank, self.ranks, self.pieces_of_a_rank)

    def pieces(self, rank: int, rows: int) -> list[tuple[int, int]]:
        """(first row in the sequence, number of rows) of each piece of a rank's shard of `rows` rows."""
        length = rows // self.pieces_of_a_rank
        return [(number * length, length) for number in self.piece_numbers(rank)]

    def in_order(self, shards: mx.array, axis: int) -> mx.array:
        """The sequence from the shards of all ranks, [ranks, ...]; `axis` counts the rows of one shard."""
        return in_order(shards, self.pieces_of_a_rank, axis)

    def own_rows(self, sequence: mx.array, rank: int, axis: int) -> mx.array:
        """A rank's shard of a sequence."""
        return own_rows(sequence, rank, self.ranks, self.pieces_of_a_rank, axis)


def layout_of(name, ranks: int, function: str = "distributed.attention") -> Layout:
    """The layout of that name. Raises ValueError for an unknown one."""
    return Layout(word("layout", name, PIECES, function, '"zigzag" or "contiguous"'), ranks)


def shard(
    sequence: mx.array, axis: int = 1, *, group: mx.distributed.Group | None = None, layout: str = "zigzag"
) -> mx.array:
    """This rank's rows of a sequence that every rank holds, such as tokens [B, N] or hidden states [B, N, C].

    Differentiable: this rank's part of the gradient is zero in the rows of the other ranks::

        q, k, v = (distributed.shard(array, axis=2) for array in (q, k, v))  # [B, H, N, D] to [B, H, N / P, D]

    Args:
        sequence: an array of any dtype; `axis` counts its N rows.
        group: of mx.distributed, P ranks; None: the global one.
        layout: "zigzag" or "contiguous", as in `distributed.attention`.

    Raises:
        ValueError: the length is not a multiple of 2P (zigzag) or P (contiguous). Pad it, and put the padding into a
            separate segment: ``segments=segments([length], padded)``.
    """
    name = "distributed.shard"
    group, axis = group_of(group, name), _axis(sequence, axis, name)
    placed = layout_of(layout, group.size(), name)
    multiple = PIECES[layout] * group.size()
    if sequence.shape[axis] % multiple:
        padded = -(-sequence.shape[axis] // multiple) * multiple
        raise wrong(
            "sequence", f"a length that is a multiple of {multiple}", sequence.shape[axis],
            f"Pad it to {padded}, with an id of its own: segments=mlx_flash.sequences.segments([length], {padded}).",
            name,
        )  # fmt: skip
    return sequence if group.size() == 1 else placed.own_rows(sequence, group.rank(), axis)


def unshard(
    rows: mx.array, axis: int = 1, *, group: mx.distributed.Group | None = None, layout: str = "zigzag"
) -> mx.array:
    """The whole sequence from the shards of all ranks; every rank must call it::

        whole = distributed.unshard(distributed.shard(q, axis=2), axis=2)

    Differentiable as part of the sum of the ranks' losses: the gradients of all ranks are summed and cut. (MLX's own
    gradient of all_gather leaves out those of the other ranks.)

    Args:
        rows: this rank's shard; `axis` counts its N / P rows.
        group, layout: as in `shard`.

    Raises:
        ValueError: an unknown layout, an axis that the array does not have, or rows that do not divide into pieces.
    """
    name = "distributed.unshard"
    group, axis = group_of(group, name), _axis(rows, axis, name)
    placed = layout_of(layout, group.size(), name)
    if rows.shape[axis] % PIECES[layout]:
        raise wrong("rows", "an even number of rows", rows.shape[axis], "Cut it with shard.", name)
    if group.size() == 1:
        return rows

    @mx.custom_function
    def gathered(rows):
        return placed.in_order(Collectives(group).gather(rows), axis)

    @gathered.vjp
    def gathered_vjp(_, cotangent, __):
        return placed.own_rows(Collectives(group).sum(cotangent), group.rank(), axis)

    return gathered(rows)


def positions(
    rows: int, *, group: mx.distributed.Group | None = None, layout: str = "zigzag"
) -> Iterator[tuple[int, int]]:
    """(first row in the sequence, number of rows) of each piece of this rank's shard, in order: rotary embeddings take
    one call per piece, with offset=first::

        pieces = list(distributed.positions(q.shape[2]))

    Args:
        rows: the number of rows of this rank's shard.
        group, layout: as in `shard`.

    Raises:
        ValueError: an unknown layout, or rows that do not divide into its pieces.
    """
    name = "distributed.positions"
    group = group_of(group, name)
    placed, count = layout_of(layout, group.size(), name), whole(rows)
    if count is None or count < 0 or count % PIECES[layout]:
        raise wrong("rows", f"a multiple of {PIECES[layout]}", shown(rows), "Pass the rows of a shard.", name)
    return iter([(0, count)] if group.size() == 1 else placed.pieces(group.rank(), count))


def _axis(array, axis, function: str) -> int:
    if not isinstance(array, mx.array):
        raise wrong("array", "an mlx.core.array", type(array).__name__, "Convert it.", function)
    number = whole(axis)
    if number is None or not -array.ndim <= number < array.ndim:
        raise wrong("axis", f"an axis of shape {array.shape}", shown(axis), "Name the rows.", function)
    return number % array.ndim
