"""The parameter table: block sizes and the register-spill strategy of every kernel, for every head dimension.

The rows are those of metal-flash-attention's 12 tables (Philip Turner, MIT), which were tuned on M1 Max and M4; none of
them has been timed with these kernels on a Mac yet. Every row proves itself at import.
"""

from ..problem.kinds import (
    ACCUMULATORS,
    BACKWARD_KEY,
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    COMBINE,
    DECODE,
    DELTA,
    FORWARD,
    KernelKind,
)
from .config import FULL, MIXED, TileConfig, precision_of
from .devices import FAMILIES, THREADGROUP_THREADS, Family
from .nvidia import TENSOR_TABLE, prove_tensor_row


def rows(*lines):
    return tuple(TileConfig(*line[:4], tuple(line[4].split()), *line[5:]) for line in lines)


#    max  par-  tra-  head  cached in
#    head allel versal      registers
TABLE = {
    (FORWARD, MIXED, "apple7"): rows(
        ( 96, 32, 128, 32, "Q O"),
        (128, 32, 128, 32, "Q"),
        (384, 32, 128, 32, ""),
    ),
    (FORWARD, MIXED, "apple9"): rows(
        ( 32, 16, 128, 16, "Q O"),
        ( 96, 16, 128, 32, "Q O"),
        (160, 16, 128, 32, "O"),
        (224, 16, 128, 32, "Q"),
        (384, 16, 128, 32, ""),
    ),
    (FORWARD, FULL, "apple7"): rows(
        ( 24, 32,  64, 24, "Q O"),
        ( 32, 32,  64, 32, "O"),
        ( 56, 32,  32, 56, "O"),
        (384, 32,  80, 16, ""),
    ),
    (FORWARD, FULL, "apple9"): rows(
        (  8, 16, 128, 16, "Q O"),
        ( 16, 16,  64, 16, "Q O"),
        ( 48, 16,  32,  8, "Q O"),
        (192, 16,  64, 16, "O"),
        (384, 16, 128, 16, ""),
    ),
    (BACKWARD_QUERY, MIXED, "apple7"): rows(
        ( 32, 32,  64, 32, "Q dQ"),
        ( 96, 32,  64, 32, "dQ"),
        (384, 32,  64, 32, ""),
    ),
    (BACKWARD_QUERY, MIXED, "apple9"): rows(
        ( 80, 16,  64,  8, "Q dO dQ"),
        (192, 16,  64, 32, "Q dQ"),
        (384, 16, 128, 32, ""),
    ),
    (BACKWARD_QUERY, FULL, "apple7"): rows(
        ( 16, 32,  64, 16, "Q dQ"),
        ( 32, 32,  64, 32, "dQ"),
        ( 56, 32,  64, 24, "dQ"),
        (384, 32,  80, 16, ""),
    ),
    (BACKWARD_QUERY, FULL, "apple9"): rows(
        ( 16, 16,  64,  8, "Q dO dQ"),
        ( 32, 16,  64, 16, "Q dQ"),
        (192, 16,  64, 32, "Q dQ"),
        (384, 16, 128, 16, ""),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "apple7"): rows(
        ( 16, 32,  64, 16, "V dV dK"),
        ( 32, 32,  64, 32, "dV dK"),
        ( 56, 32,  80, 32, "dV"),
        ( 96, 32,  64, 32, "dV"),
        (384, 32,  64, 32, ""),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "apple9"): rows(
        ( 56, 16,  64,  8, "K V dV dK"),
        ( 80, 16,  32, 16, "V dV dK"),
        (144, 16, 128, 16, "dV dK"),
        (224, 16, 128, 16, "dV"),
        (384, 16, 128, 32, ""),
    ),
    (BACKWARD_KEY_VALUE, FULL, "apple7"): rows(
        ( 16, 32,  32, 16, "V dV dK"),
        ( 24, 32,  64, 24, "dV dK"),
        ( 56, 32,  80, 16, "dV"),
        (384, 32,  80, 16, ""),
    ),
    (BACKWARD_KEY_VALUE, FULL, "apple9"): rows(
        ( 16, 16,  64,  8, "K V dV dK"),
        ( 32, 16,  32, 16, "K V dV dK"),
        ( 64, 16,  32, 16, "V dV dK"),
        (128, 16, 128, 16, "dV dK"),
        (160, 16, 128, 16, "dV"),
        (384, 16, 128, 16, ""),
    ),
    # Decoding: `parallel` is the most GQA rows of a threadgroup. Its simdgroups share K and V in threadgroup memory, or
    # read them directly: then 16 rows a simdgroup read each fragment once, as long as registers hold them.
    (DECODE, MIXED, "apple7"): rows(
        (128, 32,  64, 64, "Q O"),
        (256, 32,  64, 64, "O"),
        (512, 32,  64, 64, ""),
    ),
    (DECODE, MIXED, "apple9"): rows(
        (128, 16,  64, 32, "Q O", 16),
        (256, 16,  64, 32, "Q O"),
        (512, 16,  64, 32, ""),
    ),
    (DECODE, FULL, "apple7"): rows(
        ( 64, 32,  64, 32, "Q O"),
        (256, 32,  64, 32, "O"),
        (512, 32,  64, 32, ""),
    ),
    (DECODE, FULL, "apple9"): rows(
        ( 64, 16,  64, 16, "Q O", 16),
        (192, 16,  64, 16, "O", 16),
        (256, 16,  64, 16, "O"),
        (512, 16,  64, 16, ""),
    ),
    # The gradient of a mask: one simdgroup a threadgroup, which walks all that its elements sum.
    (BACKWARD_MASK, MIXED, "apple7"): rows((384, 8, 32, 32, "")),
    (BACKWARD_MASK, MIXED, "apple9"): rows((384, 8, 32, 32, "")),
    (BACKWARD_MASK, FULL, "apple7"): rows((384, 8, 32, 16, "")),
    (BACKWARD_MASK, FULL, "apple9"): rows((384, 8, 32, 16, "")),
    # delta = rowsum(dO * O) and the sum over parts stream their operands once: one simdgroup a row, nothing to block.
    (DELTA, MIXED, "apple7"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (DELTA, MIXED, "apple9"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (DELTA, FULL, "apple7"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (DELTA, FULL, "apple9"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (COMBINE, MIXED, "apple7"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (COMBINE, MIXED, "apple9"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (COMBINE, FULL, "apple7"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
    (COMBINE, FULL, "apple9"): (TileConfig(384, 8, 8, 8, simdgroup_rows=1),),
}  # fmt: skip


def candidates(step: KernelKind, precision: str, family: Family) -> tuple[TileConfig, ...]:
    """The rows that may serve a problem, in order: those of the family's tensor cores, then those of its table."""
    return TENSOR_TABLE.get((step, precision, family.tensor), ()) + TABLE.get((step, precision, family.table), ())


def splits_dk_dv(dtype: str, family: Family, head_dim: int) -> bool:
    """Are dK and dV made by kernels of their own? Where tensor cores have no row for both, but one for each."""
    both, one = (
        TENSOR_TABLE.get((step, precision_of(dtype), family.tensor), ()) for step in (BACKWARD_KEY_VALUE, BACKWARD_KEY)
    )
    return all(head_dim > row.max_head for row in both) and any(head_dim <= row.max_head for row in one)


def lookup(step: KernelKind, dtype: str, family: Family, head_dim: int) -> TileConfig:
    """The first row whose `max_head` covers `head_dim`, else the last: there is no largest head dimension."""
    rows = candidates(step, precision_of(dtype), family)
    return next((row for row in rows if head_dim <= row.max_head), rows[-1])


# Registers beyond tiles (addresses, row statistics, fragments in flight), in 16-bit registers: shrink_to on compiles of
# these loops for the M1 instruction set with Mesa's AGX compiler, accumulators cached or paged.
OVERHEAD = {
    (FORWARD, MIXED): (39, 42), (FORWARD, FULL): (40, 48), (DECODE, MIXED): (39, 42), (DECODE, FULL): (40, 48),
    (BACKWARD_QUERY, MIXED): (39, 39), (BACKWARD_QUERY, FULL): (40, 40),
    (BACKWARD_KEY_VALUE, MIXED): (46, 46), (BACKWARD_KEY_VALUE, FULL): (47, 47),
    (BACKWARD_MASK, MIXED): (46, 46), (BACKWARD_MASK, FULL): (47, 47),
}  # fmt: skip
PAGED_BUDGET = 560  # bytes a thread where registers are allocated dynamically: past it M4 loses throughput


def tile_registers(step: KernelKind, row: TileConfig, precision: str, head_dim: int) -> int:
    """16-bit registers a thread holds in tiles at the fullest moment of the traversal.

    An R x C tile costs R/8 * C/2 of them in float32, half that in 16 bits. Cached operands live throughout; over them
    come the block of scores, its gradient in the backward kernels (both float32), and the columns of a paged
    accumulator in flight.
    """
    groups = row.simdgroup_rows // 8
    quarter = 2 if precision == FULL else 1  # element size in half registers, over two
    cached = sum(head_dim // 2 if name in ACCUMULATORS else quarter * head_dim // 4 for name in row.cached)
    flight = row.head_block(head_dim) // 2 if row.paged(step) else 0
    scores = row.traversal // 2
    if step is BACKWARD_MASK:
        return groups * 3 * scores  # P, dS and their sum
    if step in (FORWARD, DECODE):
        return groups * (cached + max(scores, quarter * row.traversal // 4 + flight))
    return groups * (cached + max(2 * scores, scores + flight))


def register_demand(step: KernelKind, row: TileConfig, precision: str, head_dim: int) -> int:
    """Estimated 16-bit registers per thread; an estimate to rank rows by, not Apple's compiler's count."""
    if not step.tiled:
        return 24
    return tile_registers(step, row, precision, head_dim) + OVERHEAD[step, precision][bool(row.paged(step))]


def live_bytes(step: KernelKind, row: TileConfig, precision: str, head_dim: int) -> int:
    """Estimated bytes a thread keeps alive in tiles, row statistics and one fragment (M3 and later)."""
    statistics = 16 if step in (FORWARD, DECODE) else 12
    fragment = 8 if precision == FULL else 4
    return 2 * tile_registers(step, row, precision, head_dim) + statistics + fragment


def max_threads(step: KernelKind, row: TileConfig, precision: str, family: Family, head_dim: int) -> int | None:
    """Value of max_total_threads_per_threadgroup: the most threads whose registers hold the row without spilling.

    The compiler otherwise picks an occupancy of its own on M1 and M2. None where registers are dynamic.
    """
    if not family.register_tiers:
        return None
    demand = register_demand(step, row, precision, min(head_dim, row.max_head))
    return next((threads for registers, threads in family.register_tiers if demand <= registers), None)


def prove(step: KernelKind, precision: str, family: Family, row: TileConfig) -> None:
    """Raises ValueError unless the row is legal: what a kernel would otherwise get wrong or spill."""

    def require(holds, what):
        if not holds:
            raise ValueError(f"parameter row {row} of {step} {precision} {family.name}: {what}")

    blocks = (row.parallel, row.traversal, row.head, row.max_head)
    require(all(block > 0 and block % 8 == 0 for block in blocks), "blocks must be positive multiples of 8")
    require(row.parallel % row.simdgroup_rows == 0, "a threadgroup must hold whole simdgroups")
    require(row.threads <= THREADGROUP_THREADS, f"{row.threads} threads exceed {THREADGROUP_THREADS}")
    scratch = row.scratch_elements(family) * (4 if precision == FULL else 2)
    require(scratch <= family.threadgroup_bytes, f"{scratch} threadgroup bytes exceed {family.threadgroup_bytes}")
    require(set(row.cached) <= set(step.cacheable), f"only {step.cacheable} may be cached")
    require(len(set(row.cached)) == len(row.cached), "an operand is named twice")
    if family.register_tiers:
        threads = max_threads(step, row, precision, family, row.max_head)
        require(threads and threads >= row.threads, "the register demand fits no occupancy: it would spill")
    elif step.tiled:
        needed = live_bytes(step, row, precision, row.max_head)
        require(needed <= PAGED_BUDGET, f"{needed} live bytes a thread exceed {PAGED_BUDGET}")


def prove_table(table=None) -> None:
    """Proves every row for every family that uses it, and that `max_head` increases within each table."""
    for (step, precision, name), candidates in (table or TABLE).items():
        heads = [row.max_head for row in candidates]
        if heads != sorted(set(heads)):
            raise ValueError(f"{step} {precision} {name}: max_head must increase from row to row, got {heads}")
        for family in FAMILIES.values():
            if family.table == name:
                for row in candidates:
                    prove(step, precision, family, row)
    for (step, _, name), candidates in TENSOR_TABLE.items():
        for family in FAMILIES.values():
            if family.tensor == name:
                for row in candidates:
                    prove_tensor_row(step, family, row)


prove_table()
