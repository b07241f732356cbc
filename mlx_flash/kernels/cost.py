"""The cost of a table row on an Apple GPU: from counted instructions and bytes to the time of one block.

One simdgroup visits one block of the traversal. `Work` counts the instructions that it issues and the bytes that it
moves, `cycles` turns these into time on a chip, and `utilisation` into the share of the multipliers' peak that
metal-flash-attention's GINSTRS express: (products * D + 5) instructions for each element of the attention matrix, 32
lanes a cycle.

    time = soft maximum of (issue slots, bytes of threadgroup memory and L1 over their rate, bytes of P and dS in
           device memory over its rate), plus paging

No constant is fitted for a head dimension. Cycles of products, issue slots and bytes per cycle are those of
philipturner/metal-benchmarks; clocks and cores of the plain chips are from there and from Apple, rates of device memory
from Apple. Neither M5's neural accelerators are modelled, nor latency, nor the capacity of caches.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..problem.kinds import ACCUMULATORS, FORWARD, SCORES, KernelKind
from .config import FULL, TileConfig

LANES = 32
ELEMENT_SLOTS = 8  # issue slots for an element of S: FMA, maximum, sum and conversion take one each, exp2 four
SHARPNESS = 12  # exponent of the soft maximum: how well issue and memory hide behind each other
FILL = 1.5  # bytes moved to fill threadgroup memory, for each byte that is read back
STREAMED = 0.83  # share of the rate of device memory that kernels reach (Huebner et al. 2025, arXiv 2502.05317: M4)


@dataclass(frozen=True)
class Chip:
    """`clock` in GHz, `cores` of the GPU; `half`, `single`: cycles of an 8x8x8 product with 16-bit factors and with a
    float32 one; `bytes_per_cycle`: of a core's threadgroup memory, or of its L1 where operands are read directly;
    `bandwidth`: GB/s of device memory."""

    name: str
    clock: float
    cores: int
    bandwidth: float
    half: int = 17
    single: int = 18
    bytes_per_cycle: int = 64

    @property
    def peak(self) -> float:
        """Instructions of 32 lanes a second, in units of 10^9 lanes: GINSTRS."""
        return self.clock * self.cores * 4 * LANES


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("M1", 1.278, 8, 68), Chip("M1 Max", 1.296, 32, 400), Chip("M2", 1.398, 10, 100),
        Chip("M3", 1.38, 10, 100, single=17), Chip("M4", 1.47, 10, 120, single=17),
        Chip("M5", 1.58, 10, 153, single=17),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """The work of one simdgroup for one block: 8x8x8 products, products with a float32 factor, issue slots of other
    instructions, bytes moved to and from threadgroup memory or L1, bytes of accumulators that are paged, and bytes of P
    and dS that are kept in device memory or read from there."""

    products: int
    singles: int
    slots: float
    memory_bytes: float
    page_bytes: float
    device_bytes: float = 0


def cycles(work: Work, chip: Chip, overlaps: bool = True) -> float:
    """Cycles of one of a core's four schedulers for one visit of a block.

    The schedulers share the core's memory. Paging stands between barriers, so it overlaps with nothing. `overlaps`:
    whether P and dS are written and read during products.
    """
    issue = work.slots + work.products * chip.half + work.singles * (chip.single - chip.half)
    memory = 4 * work.memory_bytes / chip.bytes_per_cycle
    device = work.device_bytes * 4 * chip.cores * chip.clock / (STREAMED * chip.bandwidth)
    soft = (issue**SHARPNESS + memory**SHARPNESS + (overlaps * device) ** SHARPNESS) ** (1 / SHARPNESS)
    return soft + (0 if overlaps else device) + 4 * work.page_bytes / chip.bytes_per_cycle


def utilisation(kind: KernelKind, row: TileConfig, head_dim: int, work: Work, chip: Chip) -> float:
    """The share of the multipliers' peak, as published for metal-flash-attention; 1: they never wait."""
    elements = row.simdgroup_rows * row.traversal
    return (kind.matmuls * head_dim + 5) * elements / LANES / cycles(work, chip)


def ginstrs(kind: KernelKind, row: TileConfig, head_dim: int, work: Work, chip: Chip) -> float:
    return utilisation(kind, row, head_dim, work, chip) * chip.peak


def _padded(head_dim: int) -> int:
    return -(-head_dim // 8) * 8


def _size(precision: str) -> int:
    return 4 if precision == FULL else 2


def _products(kind: KernelKind, row: TileConfig, columns: int) -> int:
    return kind.matmuls * row.simdgroup_rows // 8 * (row.traversal // 8) * (columns // 8)


def _singles(kind: KernelKind, precision: str, products: int) -> int:
    """Products with a float32 factor: all of them in float32, and in 16 bits those of dS in the backward kernels, one
    product in three or four."""
    if precision == FULL:
        return products
    return 0 if kind is FORWARD or reads_scores(kind) else products // kind.matmuls


def reads_scores(kind: KernelKind) -> bool:
    """Whether it reads P or dS, in 16 bits where operands have as many, in place of computing them."""
    return not SCORES.isdisjoint(kind.inputs)


def _read_again(kind: KernelKind, row: TileConfig) -> int:
    """The number of inputs that every visit reads again, because registers do not keep the simdgroup's rows of them."""
    return sum(name not in row.cached for name in kind.cacheable if name not in ACCUMULATORS)


def own_work(kind: KernelKind, row: TileConfig, precision: str, head_dim: int, copied: bool = True) -> Work:
    """The work of our kernels, which read 16 bytes at once.

    `copied`: operands are copied to threadgroup memory by all threads first.
    """
    size, columns = _size(precision), _padded(head_dim)
    fragments, products, groups = columns // 8, _products(kind, row, columns), row.simdgroup_rows // 8
    paged, again = len(row.paged(kind)), _read_again(kind, row)
    run = 16 // size  # elements of one copy; an operand of S is stored transposed, element by element
    copies = row.traversal * columns // run / row.threads
    abt = kind.matmuls - (1 if kind is FORWARD else len([name for name in kind.cacheable if name in ACCUMULATORS]))
    copying = copies * (abt * (3 + run) + (kind.matmuls - abt) * 4) if copied else 0
    reads = products / groups / (run // 2)
    rescaled = 2 * groups * fragments if kind is FORWARD else 0
    own = row.simdgroup_rows * row.traversal / LANES  # elements of S that a lane has
    elements = own if reads_scores(kind) else (ELEMENT_SLOTS + 2 * (kind.matmuls - 2)) * own
    kept = len(SCORES.intersection((*kind.inputs, *kind.outputs)))
    if not reads_scores(kind):
        elements += kept * own * (1 + 1 / run)  # converted, and written 16 bytes at a time
    slots = reads + copying + groups * (again + 4 * paged) * fragments + rescaled + elements
    filled = FILL * kind.matmuls * row.traversal * columns * size * row.simdgroup_rows / row.parallel if copied else 0
    memory = products / groups * 64 * size + groups * again * fragments * 64 * size + filled
    device = kept * own * LANES * size
    singles = _singles(kind, precision, products)
    return Work(products, singles, slots, memory + device, groups * paged * 2 * 256 * fragments, device)


def pass_cycles(works: list[tuple[TileConfig, Work]], chip: Chip, overlaps: bool = True) -> float:
    """Cycles of a scheduler for one pair of a query and a key in kernels that run one after the other."""
    return sum(cycles(work, chip, overlaps) / (row.simdgroup_rows * row.traversal) for row, work in works)
