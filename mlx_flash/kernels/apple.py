"""Rows of the parameter tables for Apple's 8x8 matrices: block sizes and what stays in registers, for every kernel.

The rows were searched with an offline compiler for the M1 instruction set and the cost model of cost.py; the evidence
is bench/results/apple_rows.csv. None of them has been timed on a Mac yet. original.py keeps the rows that
metal-flash-attention tuned on M1 Max and M4, for comparison.
"""

from ..problem.kinds import (
    BACKWARD_KEY_KEPT,
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_QUERY_KEEPING,
    BACKWARD_VALUE_KEPT,
    COMBINE,
    DECODE,
    DELTA,
    FORWARD,
    MASK_MAP,
    KernelKind,
)
from .config import FULL, MIXED, TileConfig, requirement
from .devices import THREADGROUP_THREADS, Family
from .original import rows
from .registers import EDGE_SPILL, live_bytes, max_threads, register_demand


def kept_rows(precision: str, family: str, *lines: tuple) -> dict:
    """Rows for the kernels that read what dQ's kernel has kept, whose one accumulator stays in registers."""
    kinds = (BACKWARD_KEY_KEPT, "dK"), (BACKWARD_VALUE_KEPT, "dV")
    return {(kind, precision, family): rows(*((*line[:4], name, line[4]) for line in lines)) for kind, name in kinds}


STREAMING = (TileConfig(384, 8, 8, 8, simdgroup_rows=1),)
PAGED_BUDGET = 560  # bytes a thread where registers are allocated dynamically: past it M4 loses throughput

# In float32 threadgroup memory is what limits M1 and M2: there a simdgroup owns 16 rows, and each read serves two.
#    max  par-  tra-  head  cached in
#    head allel versal      registers
TABLE = {
    (FORWARD, MIXED, "apple7"): rows(
        ( 56, 64, 128, 56, "Q O"),
        ( 64, 64, 128, 32, "Q O"),
        ( 96, 32, 128, 32, "Q O"),
        (160, 32,  64, 32, "Q O"),
        (192, 32,  64, 64, "O"),
        (224, 32,  64, 32, "O"),
        (256, 32,  32, 128, "O"),
        (384, 32, 128, 64, ""),
    ),
    (FORWARD, MIXED, "apple9"): rows(
        ( 64, 16, 128, 64, "Q O"),
        (384, 16,  64, 64, ""),
    ),
    (FORWARD, FULL, "apple7"): rows(
        ( 24, 64,  64, 24, "Q O", 16),
        ( 32, 64,  64, 32, "Q O", 16),
        ( 40, 64,  32, 40, "Q O", 16),
        ( 56, 64,  48, 32, "O", 16),
        ( 64, 64,  32, 32, "O", 16),
        ( 72, 64,  32, 24, "O", 16),
        ( 80, 64,  32, 16, "O", 16),
        (128, 48,  96, 32, "O"),
        (160, 48,  64, 32, "O"),
        (192, 48,  48, 32, "O"),
        (224, 48,  32, 32, "O"),
        (384, 64,  48, 32, "", 16),
    ),
    (FORWARD, FULL, "apple9"): rows(
        ( 64, 16,  32, 32, "O"),
        (384, 16,  64, 32, ""),
    ),
    (BACKWARD_QUERY, MIXED, "apple7"): rows(
        ( 32, 64,  64, 32, "Q dQ"),
        ( 64, 32,  64, 64, "Q dQ"),
        ( 96, 32,  64, 96, "dQ"),
        (128, 32,  64, 64, "dQ"),
        (144, 32,  64, 48, "dQ"),
        (160, 32,  64, 32, "dQ"),
        (384, 32, 128, 32, ""),
    ),
    (BACKWARD_QUERY, MIXED, "apple9"): rows(
        ( 64, 16,  32, 64, "Q dQ"),
        (384, 16,  32, 64, ""),
    ),
    (BACKWARD_QUERY, FULL, "apple7"): rows(
        ( 16, 32,  64, 16, "Q dQ"),
        ( 32, 32,  64, 32, "dQ"),
        (384, 64,  32, 32, "", 16),
    ),
    (BACKWARD_QUERY, FULL, "apple9"): rows(
        (384, 16,  32, 16, ""),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "apple7"): rows(
        ( 32, 32,  32, 32, "V dV dK"),
        ( 64, 32,  64, 64, "dV"),
        ( 96, 48,  96, 96, ""),
        (112, 32,  64, 112, ""),
        (128, 32,  96, 64, ""),
        (144, 32,  96, 48, ""),
        (160, 32,  96, 32, ""),
        (192, 32,  96, 64, ""),
        (224, 32,  96, 32, ""),
        (384, 32,  96, 64, ""),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "apple9"): rows(
        ( 64, 16,  32, 64, ""),
        (384, 16,  32, 32, ""),
    ),
    (BACKWARD_KEY_VALUE, FULL, "apple7"): rows(
        ( 16, 32,  32, 16, "V dV dK"),
        (384, 64,  32, 32, "", 16),
    ),
    (BACKWARD_KEY_VALUE, FULL, "apple9"): rows(
        (384, 16,  32, 16, ""),
    ),
    # Where P and dS are kept too, registers hold no wider blocks of keys past 128 columns.
    (BACKWARD_QUERY_KEEPING, MIXED, "apple7"): rows(
        ( 32, 32,  64, 32, "Q dQ"),
        ( 64, 32,  64, 64, "Q dQ"),
        ( 96, 32,  64, 96, "dQ"),
        (128, 32,  64, 64, "dQ"),
        (256, 32,  96, 32, ""),
    ),
    # One product of what dQ's kernel has kept. Registers hold the sums of 16 rows, so that a read serves two products.
    **kept_rows(MIXED, "apple7", (64, 64, 64, 64, 16), (128, 64, 64, 128, 16), (256, 32, 64, 128, 8)),
    **kept_rows(MIXED, "apple9", (64, 32, 64, 64, 16), (128, 32, 64, 128, 16), (256, 16, 64, 128, 8)),
    **kept_rows(FULL, "apple7", (64, 64, 32, 32, 16), (128, 32, 64, 64, 8), (256, 32, 32, 64, 8)),
    **kept_rows(FULL, "apple9", (64, 32, 32, 32, 16), (256, 16, 32, 32, 8)),
    # Decoding: `parallel` is the most GQA rows of a threadgroup. Its simdgroups share K and V in threadgroup memory, or
    # read them directly: then 16 rows a simdgroup read each fragment once, as long as registers hold them. Simdgroups
    # that have the same rows split the keys (split_kv.py).
    (DECODE, MIXED, "apple7"): rows(
        (128, 32,  64, 32, "O"),
        (512, 32,  64, 64, ""),
    ),
    (DECODE, MIXED, "apple9"): rows(
        (128, 16,  64, 32, "Q O", 16),
        (256, 16,  64, 32, "Q O"),
        (512, 16,  64, 32, ""),
    ),
    (DECODE, FULL, "apple7"): rows(
        ( 64, 32,  64, 16, "O"),
        (512, 32,  64, 32, ""),
    ),
    (DECODE, FULL, "apple9"): rows(
        ( 64, 16,  64, 16, "Q O", 16),
        (192, 16,  64, 16, "O", 16),
        (256, 16,  64, 16, "O"),
        (512, 16,  64, 16, ""),
    ),
    # The gradient of a mask: one simdgroup a threadgroup, which traverses all pairs that its elements sum.
    **{(BACKWARD_MASK, MIXED, family): rows((384, 8, 32, 32, "")) for family in ("apple7", "apple9")},
    **{(BACKWARD_MASK, FULL, family): rows((384, 8, 32, 16, "")) for family in ("apple7", "apple9")},
    # delta = rowsum(dO * O) and the sum over parts stream their operands once: one simdgroup a row, nothing to block.
    **{
        (kind, precision, family): STREAMING
        for kind in (DELTA, COMBINE) for precision in (MIXED, FULL) for family in ("apple7", "apple9")
    },
    # The map of an array mask, for tensor cores alone: one simdgroup for each strip of blocks.
    **{(MASK_MAP, precision, "apple9"): STREAMING for precision in (MIXED, FULL)},
}  # fmt: skip


def prove(kind: KernelKind, precision: str, family: Family, row: TileConfig) -> None:
    """Raises ValueError for a row with which a kernel would be wrong, or would spill."""
    require = requirement(f"parameter row {row} of {kind} {precision} {family.name}")
    blocks = (row.parallel, row.traversal, row.head, row.max_head)
    require(all(block > 0 and block % 8 == 0 for block in blocks), "blocks must be positive multiples of 8")
    require(row.parallel % row.simdgroup_rows == 0, "a threadgroup must hold whole simdgroups")
    require(row.threads <= THREADGROUP_THREADS, f"{row.threads} threads exceed {THREADGROUP_THREADS}")
    scratch = row.scratch_elements(family) * (4 if precision == FULL else 2)
    require(scratch <= family.threadgroup_bytes, f"{scratch} threadgroup bytes exceed {family.threadgroup_bytes}")
    require(set(row.cached) <= set(kind.cacheable), f"only {kind.cacheable} may be cached")
    require(len(set(row.cached)) == len(row.cached), "an operand is named twice")
    if family.register_tiers and kind.tiled:
        demand, most = register_demand(kind, row, precision, row.max_head), family.register_tiers[-1][0]
        require(demand <= most + EDGE_SPILL, f"{demand} registers of {most}: the loop of whole blocks would spill")
        threads = max_threads(kind, row, precision, family, row.max_head)
        least = 1 if kind is DECODE else 2  # of which one multiplies while the other waits for its block
        fits = threads >= least * row.threads
        require(fits, f"{row.threads} threads at {demand} registers: too many for {least} threadgroups on a core")
    elif kind.tiled:
        needed = live_bytes(kind, row, precision, row.max_head)
        require(needed <= PAGED_BUDGET, f"{needed} live bytes a thread exceed {PAGED_BUDGET}")
