"""Rows of the parameter table for the neural accelerators of M5 and A19 (16-bit operands), proved at import.

Beyond 192 columns of the head dimension no simdgroup can hold the accumulators, so two of them share the columns, in a
threadgroup of 16 rows. These rows come before those of "apple9", which serve everything else: float32, larger head
dimensions, quantized operands, the gradient of a mask and decoding. None has been timed; bench/neural.md says how they
were chosen and what a Mac has to measure first.
"""

from __future__ import annotations

from ..problem.kinds import (
    ACCUMULATORS,
    BACKWARD_KEY,
    BACKWARD_KEY_VALUE,
    BACKWARD_QUERY,
    BACKWARD_VALUE,
    FORWARD,
    KernelKind,
)
from .config import MIXED, TileConfig, requirement
from .devices import THREADGROUP_THREADS, Family
from .tile_layers import exchanged_bytes

BUDGET = 560  # bytes of tiles a thread: past it M4 loses throughput, and M5 has the same kind of register file
PRODUCT_ROWS, PRODUCT_COLUMNS = 16, 32  # of S, computed by one matrix product


def rows(*lines) -> tuple[TileConfig, ...]:
    """Rows from lines: largest head dimension, parallel, traversal, cached operands, and 2 where two simdgroups share
    the columns of the head dimension."""
    return tuple(
        TileConfig(*line[:3], line[0], tuple(line[3].split()), 16, "nax", head_parts=line[4] if len(line) > 4 else 1)
        for line in lines
    )


#    max  par-  tra-  cached in
#    head allel versal registers
NEURAL_TABLE = {
    (FORWARD, MIXED, "nax"): rows(
        ( 64,  64,  64, "Q O"),
        (128,  64,  32, "Q O"),
        (192,  64,  32, "O"),
        (256,  16,  64, "Q O", 2),
    ),
    (BACKWARD_QUERY, MIXED, "nax"): rows(
        ( 64,  64,  32, "Q dO dQ"),
        (192,  64,  32, "dQ"),
        (256,  16,  32, "Q dQ", 2),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "nax"): rows(
        ( 64,  64,  32, "K V dK dV"),
        ( 96,  64,  32, "dK dV"),
    ),
    (BACKWARD_KEY, MIXED, "nax"): rows(
        (192,  64,  32, "dK"),
        (256,  16,  32, "K dK", 2),
    ),
    (BACKWARD_VALUE, MIXED, "nax"): rows(
        (192,  64,  32, "dV"),
        (256,  16,  32, "K dV", 2),
    ),
}  # fmt: skip


def live_bytes(kind: KernelKind, row: TileConfig, head_dim: int) -> int:
    """Bytes that a thread holds in tiles.

    Of 16 rows a thread has half an element of every column: 2 bytes in float32, 1 in 16 bits. Simdgroups that share the
    head dimension hold all of S each. The backward kernels hold S and dS, but for the one of dV alone, which has no dS;
    the operand made from dS takes the place of S.
    """
    scores = 1 if kind in (FORWARD, BACKWARD_VALUE) else 2
    cached = sum(2 if name in ACCUMULATORS else 1 for name in row.cached)
    return row.simdgroup_rows // 16 * (cached * head_dim // row.head_parts + 2 * scores * row.traversal)


def prove_neural_row(kind: KernelKind, family: Family, row: TileConfig) -> None:
    """Raises ValueError for a row with which a kernel would be wrong, or would not fit the GPU."""
    require = requirement(f"parameter row {row} of {kind} {family.name}")
    require(row.simdgroup_rows % PRODUCT_ROWS == 0, f"a simdgroup's rows must be a multiple of {PRODUCT_ROWS}")
    require(row.traversal % PRODUCT_COLUMNS == 0, f"the traversal must be a multiple of {PRODUCT_COLUMNS}")
    require(row.max_head % 8 == 0, "head dimensions are multiples of 8")
    require(row.parallel % row.simdgroup_rows == 0, "a threadgroup must hold whole simdgroups")
    require(row.head_parts in (1, 2), "two simdgroups may share the head dimension")
    own_barriers = row.head_parts == 1 or row.parallel == row.simdgroup_rows
    require(own_barriers, "simdgroups that share the head dimension are a threadgroup, whose barriers are theirs")
    exchanged = exchanged_bytes(row)
    require(exchanged <= family.threadgroup_bytes, f"{exchanged} threadgroup bytes exceed {family.threadgroup_bytes}")
    require(row.threads <= THREADGROUP_THREADS, f"{row.threads} threads exceed {THREADGROUP_THREADS}")
    require(set(row.cached) <= set(kind.cacheable), f"only {kind.cacheable} may be cached")
    missing = set(kind.outputs) & ACCUMULATORS - set(row.cached)
    require(not missing, f"{missing} must be cached: accumulators are not paged here")
    needed = live_bytes(kind, row, row.max_head)
    require(needed <= BUDGET, f"{needed} live bytes a thread exceed {BUDGET}")
