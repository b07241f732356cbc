"""The legal rows of a kernel, most promising first; `python -m mlx_flash tune` times them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from ..problem.kinds import KernelKind
from .config import TileConfig, precision_of
from .cost import CHIPS, own_work, utilisation
from .devices import TABLE_PREFIX, Family, Tuned
from .lookup import candidates, lookup, prove_row
from .tile_layers import LAYERS

CHIP = {"apple7": "M1", "apple8": "M2", "apple9": "M3", "apple10": "M5"}  # the cost model's chip for a family
PARALLEL, TRAVERSAL = (8, 16, 32, 48, 64, 96, 128), (16, 32, 48, 64, 80, 96, 128)
HEAD = (32, 64, 16)  # the cost model sees no difference, so the first legal one is taken
SIMDGROUP_ROWS = (8, 16)
TENSOR_TRAVERSAL, STAGES = range(16, 257, 16), (2, 3, 4)


def table_row(kind: KernelKind, dtype: str, family: Family, head_dim: int) -> TileConfig:
    """The row that serves where nothing was tuned."""
    return lookup(kind, dtype, replace(family, tuned=Tuned()), head_dim)


def ranked(kind: KernelKind, dtype: str, family: Family, head_dim: int, most: int) -> list[TileConfig]:
    """At most `most` legal rows for one head dimension: the table's, metal-flash-attention's where it is legal, then
    others in the order of the cost model, or for tensor cores, which the model does not cover, by their distance from
    the table's row.
    """
    return list(_ranked(kind, dtype, replace(family, tuned=Tuned()), head_dim)[:most])


@lru_cache  # proving thousands of rows takes a quarter of a second, and `tune` asks for them again to go on or to show
def _ranked(kind: KernelKind, dtype: str, family: Family, head_dim: int) -> tuple[TileConfig, ...]:
    """All legal rows of a family for which nothing was tuned. They are timed with plain scores."""
    own = table_row(kind, dtype, family, head_dim).for_scores(plain=True)
    if own.tiles != "simdgroup":
        found = sorted(_tensor_rows(kind, family, own, head_dim), key=lambda row: _distance(row, own))
    else:
        original = replace(family, table=TABLE_PREFIX + family.table.removeprefix(TABLE_PREFIX))
        rows = candidates(kind, precision_of(dtype), original)
        theirs = replace(next((row for row in rows if head_dim <= row.max_head), rows[-1]), max_head=head_dim)
        found = sorted(
            simdgroup_rows(kind, dtype, family, head_dim),
            key=lambda row: predicted(kind, row, dtype, family, head_dim), reverse=True,
        )  # fmt: skip
        found = [theirs, *found] if is_legal(kind, dtype, family, theirs) else found
    return tuple(dict.fromkeys((replace(own, max_head=head_dim), *found)))


def predicted(kind: KernelKind, row: TileConfig, dtype: str, family: Family, head_dim: int) -> float:
    """The share of the multipliers' peak that the cost model predicts."""
    work = own_work(kind, row, precision_of(dtype), head_dim, family.uses_threadgroup_memory)
    return utilisation(kind, row, head_dim, work, CHIPS[CHIP.get(family.name, "M3")])


def simdgroup_rows(kind: KernelKind, dtype: str, family: Family, head_dim: int) -> Iterator[TileConfig]:
    """Legal rows for 8x8 matrices."""
    kept = [names for n in range(len(kind.cacheable) + 1) for names in itertools.combinations(kind.cacheable, n)]
    for parallel, traversal, cached, rows in itertools.product(PARALLEL, TRAVERSAL, kept, SIMDGROUP_ROWS):
        found = (TileConfig(head_dim, parallel, traversal, min(head, head_dim), cached, rows) for head in HEAD)
        yield from itertools.islice((row for row in found if is_legal(kind, dtype, family, row)), 1)


def _tensor_rows(kind: KernelKind, family: Family, own: TileConfig, head_dim: int) -> Iterator[TileConfig]:
    """Legal rows that differ from the table's in the traversed block and the pipeline."""
    pipelined = LAYERS[own.tiles].producer_warps > 0
    for traversal, stages in itertools.product(TENSOR_TRAVERSAL, STAGES if pipelined else (own.stages,)):
        row = replace(own, max_head=head_dim, traversal=traversal, stages=stages)
        if is_legal(kind, "float16", family, row):
            yield row


def _distance(row: TileConfig, own: TileConfig) -> float:
    return abs(math.log2(row.traversal / own.traversal)) + abs(math.log2(row.stages / own.stages))


def is_legal(kind: KernelKind, dtype: str, family: Family, row: TileConfig) -> bool:
    """Whether a row can work on the family: a row that cannot would never reach a GPU."""
    try:
        prove_row(kind, precision_of(dtype), family, row)
    except ValueError:
        return False
    return True
