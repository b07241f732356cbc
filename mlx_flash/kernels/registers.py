"""Estimates of the registers that a table row demands, and the occupancy that follows from them on M1 and M2."""

from ..problem.kinds import (
    ACCUMULATORS,
    BACKWARD_KEY_KEPT,
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_VALUE_KEPT,
    DECODE,
    FORWARD,
    SCORES,
    KernelKind,
)
from .config import FULL, MIXED, TileConfig
from .devices import Family
from .split_kv import keys_are_unshared

# 16-bit registers beyond tiles (addresses, row statistics, fragments in flight, code for edges): for every kernel of
# the kind, for each operand that is read again in every block, and for each paged accumulator. Fitted on compiles of
# the generated text for the M1 instruction set (bench/results/apple_rows.csv), to within 16 registers.
OVERHEAD = {
    (FORWARD, MIXED): (90, 13, 57), (FORWARD, FULL): (76, 33, 66),
    (DECODE, MIXED): (123, 0, 32), (DECODE, FULL): (138, 0, 34),
    (BACKWARD_QUERY, MIXED): (64, 19, 40), (BACKWARD_QUERY, FULL): (75, 14, 63),
    (BACKWARD_KEY_VALUE, MIXED): (78, 17, 12), (BACKWARD_KEY_VALUE, FULL): (69, 35, 18),
    (BACKWARD_KEY_KEPT, MIXED): (94, 0, 0), (BACKWARD_KEY_KEPT, FULL): (94, 0, 0),
    (BACKWARD_VALUE_KEPT, MIXED): (94, 0, 0), (BACKWARD_VALUE_KEPT, FULL): (94, 0, 0),
    (BACKWARD_MASK, MIXED): (86, 21, 0), (BACKWARD_MASK, FULL): (73, 34, 0),
}  # fmt: skip
# Added to these:
PAIRED = {(FORWARD, FULL): 27}  # where a simdgroup owns 16 rows
WIDER = {BACKWARD_QUERY: 26}  # where it does, and a loop goes over head blocks
# Where the last head block is narrower; but for the forward kernels in 16 bits, where a loop goes over the others
RAGGED = {
    (FORWARD, MIXED): 20, (FORWARD, FULL): 20, (DECODE, MIXED): 22, (DECODE, FULL): 22, (BACKWARD_QUERY, MIXED): 48,
    (BACKWARD_QUERY, FULL): 19, (BACKWARD_KEY_VALUE, MIXED): 45, (BACKWARD_KEY_VALUE, FULL): 30,
}  # fmt: skip
# Paged accumulators that no loop over head blocks goes over: if one block has all columns; if a narrower one follows
UNROLLED = {(BACKWARD_QUERY, FULL): (0, -10), (BACKWARD_KEY_VALUE, FULL): (-27, 0)}
ROLLED = {BACKWARD_KEY_VALUE: 20}  # where loops go over the two accumulators
KEEPING = 11  # where P and dS are written
UNSHARED_KEYS = 16  # where a simdgroup reads keys directly because no other simdgroup reads the same ones
# Past the last tier, code for edges spills first: the loop of whole blocks needs about this many registers fewer.
EDGE_SPILL = 32


def tile_registers(kind: KernelKind, row: TileConfig, precision: str, head_dim: int) -> int:
    """16-bit registers a thread holds in tiles at the fullest moment of the traversal.

    An R x C tile takes R/8 * C/2 registers in float32, half of that in 16 bits. Cached operands live throughout. To
    them are added the block of scores, its gradient in the backward kernels (both float32), and the columns of a paged
    accumulator in flight.
    """
    groups = row.simdgroup_rows // 8
    quarter = 2 if precision == FULL else 1  # element size in half registers, over two
    cached = sum(head_dim // 2 if name in ACCUMULATORS else quarter * head_dim // 4 for name in row.cached)
    blocked = kind is FORWARD and precision == FULL  # float32 sums each block by itself, then adds it
    flight = row.head_block(head_dim) // 2 if row.paged(kind) or blocked else 0
    scores = row.traversal // 2
    if kind is BACKWARD_MASK:
        return groups * 3 * scores  # P, dS and their sum
    if kind in (BACKWARD_KEY_KEPT, BACKWARD_VALUE_KEPT):
        block = row.head_block(head_dim) // 2 if precision == FULL else 0  # float32 sums each block by itself
        return groups * (cached + quarter * row.traversal // 4 + block)
    if kind in (FORWARD, DECODE):
        return groups * (cached + max(scores, quarter * row.traversal // 4 + flight))
    return groups * (cached + max(2 * scores, scores + flight))


def register_demand(kind: KernelKind, row: TileConfig, precision: str, head_dim: int) -> int:
    """Estimated 16-bit registers per thread on M1 and M2, as an offline compiler for the M1 instruction set counts
    them; Apple's own may differ."""
    if not kind.tiled:
        return 24
    base, again, page = OVERHEAD[kind.table, precision]
    inputs = [name for name in kind.cacheable if name not in ACCUMULATORS]
    again *= sum(name not in row.cached for name in inputs)
    block = row.head_block(head_dim)
    loops = head_dim // block > 1
    paired = PAIRED.get((kind.table, precision), 0) if row.simdgroup_rows > 8 else 0
    wider = WIDER.get(kind.table, 0) if row.simdgroup_rows > 8 and loops else 0
    narrower = head_dim % block and (loops or (precision == MIXED and kind in (FORWARD, DECODE)))
    ragged = RAGGED.get((kind.table, precision), 0) if narrower else 0
    rolled = 0
    if row.paged(kind):
        few = UNROLLED.get((kind.table, precision), (0, 0))[head_dim != block]
        rolled = ROLLED.get(kind.table, 0) if loops else few
    keeping = 0 if SCORES.isdisjoint(kind.outputs) else KEEPING
    more = paired + wider + ragged + rolled + keeping + (UNSHARED_KEYS if keys_are_unshared(kind, row) else 0)
    return tile_registers(kind, row, precision, head_dim) + base + again + page * len(row.paged(kind)) + more


def live_bytes(kind: KernelKind, row: TileConfig, precision: str, head_dim: int) -> int:
    """Estimated bytes a thread keeps alive in tiles, row statistics and one fragment (M3 and later)."""
    statistics = 16 if kind in (FORWARD, DECODE) else 12
    fragment = 8 if precision == FULL else 4
    return 2 * tile_registers(kind, row, precision, head_dim) + statistics + fragment


def max_threads(kind: KernelKind, row: TileConfig, precision: str, family: Family, head_dim: int) -> int | None:
    """The value of max_total_threads_per_threadgroup: the largest number of threads at which the row does not spill, or
    the smallest that a core holds where it always does.

    Without the attribute the compiler chooses the occupancy on M1 and M2. None where registers are dynamic.
    """
    if not family.register_tiers:
        return None
    demand = register_demand(kind, row, precision, min(head_dim, row.max_head))
    tiers = family.register_tiers
    return next((threads for registers, threads in tiers if demand <= registers), tiers[-1][1])
