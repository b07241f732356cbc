"""A row of the parameter table: block sizes, cached operands and the tile layer of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

from ..problem.kinds import ACCUMULATORS, KernelKind
from .devices import Family
from .tile_layers import LAYERS

FULL, MIXED = "float32", "16-bit"  # precision classes: of the inputs; statistics and accumulators are float32


def precision_of(dtype: str) -> str:
    return FULL if dtype == "float32" else MIXED


@dataclass(frozen=True)
class TileConfig:
    """One table row, for head dimensions up to `max_head`; the last row of a table serves all larger ones too.

    parallel: rows that one threadgroup owns.
    traversal: rows that it visits at a time.
    head: columns of the head dimension in one block.
    cached: operands that stay in registers. The others are read again in every traversal block, or, if they accumulate,
        paged to their float32 output buffer once per traversal block.
    simdgroup_rows: rows that one simdgroup owns.
    tiles: the tile layer, one of tile_layers.LAYERS.
    stages: pipeline stages of a tensor-core layer; each holds one block of a traversed operand.
    splits: simdgroups that own the same rows in decoding, and traverse different keys; set by split_kv.py.
    head_parts: simdgroups that own the same rows and share the columns of the head dimension, in the layer "nax".
    resident: threadgroups that a core of an NVIDIA GPU holds at a time, between which its registers are divided.
    overlaps: products on Hopper overlap with more; source.py says for which variants. In the kernel of dK and dV,
        V dO^T is multiplied during the exponentials, and P^T dO while dS^T is computed. In the forward kernel P V of a
        block is in flight until the scores of the next one are there.
    columns: most columns of an accumulator that a threadgroup of a tensor-core layer holds. Where there are more,
        threadgroups that own the same rows share them, and each computes the scores for itself.
    plain: (parallel, traversal, stages) for scores without options, or with causality alone; None: as for all others.
        These need fewer registers, which larger blocks may take.
    """

    max_head: int
    parallel: int
    traversal: int
    head: int
    cached: tuple[str, ...] = ()
    simdgroup_rows: int = 8
    tiles: str = "simdgroup"
    stages: int = 2
    splits: int = 1
    head_parts: int = 1
    resident: int = 1
    overlaps: bool = False
    columns: int = 256
    plain: tuple[int, int, int] | None = None

    @property
    def threads(self) -> int:
        consumers = self.parallel // self.simdgroup_rows * self.splits * self.head_parts
        return 32 * (consumers + LAYERS[self.tiles].producer_warps)

    def paged(self, kind: KernelKind) -> tuple[str, ...]:
        kept = {*self.cached, *(name for name in ACCUMULATORS if name not in kind.outputs)}
        return tuple(name for name in kind.cacheable if name in ACCUMULATORS and name not in kept)

    def scratch_elements(self, family: Family) -> int:
        """Elements of threadgroup memory with 8x8 matrices: one block of the traversed operand for every group of
        simdgroups that traverse the same rows; 1 where operands are read directly."""
        return self.traversal * self.head * self.splits if family.uses_threadgroup_memory else 1

    def head_block(self, head_dim: int) -> int:
        return min(self.head, head_dim)

    def for_scores(self, plain: bool) -> TileConfig:
        """The row for plain scores, or for those with options."""
        parallel, traversal, stages = (plain and self.plain) or (self.parallel, self.traversal, self.stages)
        return replace(self, parallel=parallel, traversal=traversal, stages=stages, plain=None)

    def with_pages(self, page: int) -> TileConfig:
        """The row for keys in pages of `page` rows: no traversal block is longer than a page."""
        fragment = LAYERS[self.tiles].fragment_rows
        return replace(self, traversal=min(self.traversal, max(page // fragment, 1) * fragment))

    def with_blocks(self, block: int, unit: int | None = None) -> TileConfig:
        """The row for a block mask with blocks of `block` rows and keys.

        A threadgroup's rows lie in one block. A visit ends where a block ends, and the visits of a block are as few as
        possible and equally long. `unit`: the rows of a visit are a multiple of it; None: of the layer's fragment.
        """
        fragment, visits = unit or LAYERS[self.tiles].fragment_rows, -(-block // self.traversal)
        parallel = gcd(self.parallel, block)
        return replace(
            self, parallel=parallel, simdgroup_rows=min(self.simdgroup_rows, parallel),
            traversal=-(-block // (visits * fragment)) * fragment,
        )  # fmt: skip

    def shrink_to(self, rows: int) -> TileConfig:
        """The configuration for a threadgroup with fewer rows: no idle simdgroups and no idle fragments."""
        fragment = LAYERS[self.tiles].fragment_rows
        unit = self.simdgroup_rows if rows > self.simdgroup_rows else fragment  # whole simdgroups
        parallel = min(self.parallel, -(-rows // unit) * unit)
        return replace(self, parallel=parallel, simdgroup_rows=min(self.simdgroup_rows, parallel))


def requirement(row: str) -> Callable[[bool, str], None]:
    """The check that the proofs of the tables use: called with a condition and a sentence, it raises ValueError with
    the row and the sentence where the condition does not hold."""

    def require(holds: bool, sentence: str) -> None:
        if not holds:
            raise ValueError(f"{row}: {sentence}")

    return require
