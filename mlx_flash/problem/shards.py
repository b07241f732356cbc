"""A sequence in shards, as the ranks of a group hold it. A shard is one piece of the sequence, or two.

Piece i of the sequence is the first piece of rank i. Where a rank has two, the second is as far from the end of the
sequence as the first is from its beginning. Kernels read gathered shards in place.
"""

from __future__ import annotations

import mlx.core as mx

from .kinds import KernelKind


def piece_numbers(rank: int, ranks: int, pieces: int) -> tuple[int, ...]:
    """The numbers of the pieces in a rank's shard, in the shard's order."""
    return (rank,) if pieces == 1 else (rank, 2 * ranks - 1 - rank)


def in_order(shards: mx.array, pieces: int, axis: int) -> mx.array:
    """The sequence from the shards of all ranks, [ranks, ...]; `axis`: that of the rows in one shard. Every row is
    copied once."""
    length, ranks = shards.shape[axis + 1] // pieces, shards.shape[0]
    cut, found = [slice(None)] * shards.ndim, {}
    for rank in range(ranks):
        for place, number in enumerate(piece_numbers(rank, ranks, pieces)):
            cut[0], cut[axis + 1] = rank, slice(place * length, (place + 1) * length)
            found[number] = shards[tuple(cut)]
    return mx.concatenate([found[number] for number in range(len(found))], axis=axis)


def own_rows(sequence: mx.array, rank: int, ranks: int, pieces: int, axis: int) -> mx.array:
    """A rank's shard of a sequence."""
    length, cut = sequence.shape[axis] // (ranks * pieces), [slice(None)] * sequence.ndim
    parts = []
    for number in piece_numbers(rank, ranks, pieces):
        cut[axis] = slice(number * length, (number + 1) * length)
        parts.append(sequence[tuple(cut)])
    return mx.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]


def in_shards(sequence: mx.array, ranks: int, pieces: int, axis: int = 2) -> mx.array:
    """The shards of all ranks, [ranks, ...], as a gather returns them."""
    return mx.stack([own_rows(sequence, rank, ranks, pieces, axis) for rank in range(ranks)])


def traversed_operands(kind: KernelKind) -> tuple[str, ...]:
    """The operands of a kind of kernel that may be shards [ranks, B, heads, rows, D]: those that its threadgroups
    traverse. The others are plain arrays."""
    return tuple(name for name in (("Q", "dO") if kind.over_keys else ("K", "V")) if name in kind.inputs)
