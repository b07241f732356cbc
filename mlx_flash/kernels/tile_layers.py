"""The tile layers, one for each kind of matrix hardware: its template files, and its demands on a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from ..problem.kinds import ACCUMULATORS, DECODE, SCORES, KernelKind


@dataclass(frozen=True)
class Layer:
    """One tile layer.

    files: template files, in order.
    mma_rows: rows of one matrix instruction: 64 with wgmma, a warpgroup; 1 where every simdgroup multiplies alone.
    producer_warps: simdgroups that own no rows and copy blocks for the consumer warps.
    target: the NVIDIA GPU to compile for. Code for sm_80 runs on every newer GPU, code for sm_90a on Hopper only; ""
        where no NVIDIA GPU has such products.
    fragment_rows: fewest rows of a simdgroup.
    looks: kernels look at an array mask once per tile, and do not visit blocks that it hides (mask_look.metal).
    loads_early: the row statistics of a block are loaded before its products, which hide the latency; this needs
        registers to hold them.
    stages_statistics: the kernel of dK and dV gets them through its pipeline instead (statistics.metal).
    fuses_exponents: operands have 16 bits, so that exponents may be rounded as online_softmax.metal says.
    rescales_late: the forward kernel rescales O only where a row's maximum has grown by much (online_softmax.metal).
    rescales_apart: with 16 bits it does so in a branch of its own, and fuses exponents.
    language: the first version of Metal that the layer compiles with; "": any.
    uses_threadgroup_memory: operands go through threadgroup memory on every GPU.
    element_bytes: of operands in the panels of tensor cores.
    heads_between: results lie in memory as [B, L, H, D] (tile.metal).
    low_parts: the forward kernel's producer warps put the low parts of keys behind them.
    kept: the file by which kernels keep P and dS in device memory; "": they cannot.
    quantized: the files of quantized operands, where the layer's own do not serve these.
    """

    files: tuple[str, ...]
    mma_rows: int = 1
    producer_warps: int = 0
    target: str = "sm_80"
    fragment_rows: int = 16
    looks: bool = False
    loads_early: bool = False
    stages_statistics: bool = False
    fuses_exponents: bool = False
    rescales_late: bool = False
    rescales_apart: bool = False
    language: str = ""
    uses_threadgroup_memory: bool = True
    element_bytes: int = 2
    heads_between: bool = False
    low_parts: bool = False
    kept: str = ""
    quantized: tuple[str, ...] = ()


_NVIDIA = ("nvidia", "nvidia_results")
TF32 = Layer((*_NVIDIA, "tf32", "synchronous"), producer_warps=1, loads_early=True, element_bytes=4, heads_between=True)
_MMA = Layer(
    (*_NVIDIA, "nan_safe", "mma", "synchronous"), producer_warps=1, loads_early=True, fuses_exponents=True,
    heads_between=True, kept="kept",
)  # fmt: skip
LAYERS = {
    "simdgroup": Layer(
        ("simdgroup", "simdgroup_operands", "simdgroup_results", "simdgroup_products", "synchronous"),
        fragment_rows=8, looks=True, uses_threadgroup_memory=False, kept="simdgroup_kept",
        quantized=("simdgroup_quantized",), rescales_apart=True,
    ),
    "nax": Layer(
        ("simdgroup", "nax_operands", "nax_products", "synchronous"), target="", looks=True, language="4.0",
        uses_threadgroup_memory=False,
    ),
    "mma": _MMA,
    # To dequantize a block takes longer than to multiply it.
    "dequantizing": replace(_MMA, files=(*_NVIDIA, "nvidia_quantized", *_MMA.files[2:]), producer_warps=2),
    "wgmma": Layer(
        (*_NVIDIA, "nan_safe", "wgmma"), mma_rows=64, producer_warps=4, target="sm_90a", loads_early=True,
        stages_statistics=True, fuses_exponents=True, rescales_late=True, heads_between=True, kept="kept",
    ),
    "tf32": TF32,
    "tf32_hopper": replace(TF32, producer_warps=4, target="sm_90a"),
    "tf32_wgmma": replace(
        TF32, files=(*_NVIDIA, "tf32", "tf32_wgmma", "synchronous"), mma_rows=64, producer_warps=4, target="sm_90a",
        low_parts=True,
    ),
}  # fmt: skip

TENSOR_LAYERS = tuple(name for name, layer in LAYERS.items() if layer.producer_warps)  # of NVIDIA's tensor cores

PANEL = 128  # bytes of a row that lie together in threadgroup memory
STATISTICS = 12  # bytes of a query's: m, log2 l and delta
PIPELINE = 1024  # bytes for an operand's mbarriers, as many as keep the swizzle's alignment

# 32-bit registers: the most of a thread, those of a producer thread, and those of one where consumers need all others
REGISTERS, PRODUCER_REGISTERS, LEAST_PRODUCER_REGISTERS = 255, 40, 24


def register_reallocation(row) -> tuple[int, int] | None:
    """(registers of a producer thread, of a consumer thread) after setmaxnreg, or None where the launch's count stays.

    A launch gives every thread the same number. On Hopper, warpgroups of producers release registers and warpgroups of
    consumers claim them; claiming more than was released deadlocks.
    """
    layer = LAYERS[row.tiles]
    producers, consumers = layer.producer_warps // 4, row.threads // 128 - layer.producer_warps // 4
    launched = _launched(row)
    if producers == 0 or launched >= REGISTERS - 7:
        return None
    available = launched * (producers + consumers)
    few = {"dK", "dV"} <= set(row.cached) or row.resident > 2 or consumers > 2
    kept = LEAST_PRODUCER_REGISTERS if few else PRODUCER_REGISTERS
    claimed = (available - kept * producers) // consumers // 8 * 8
    assert claimed * consumers + kept * producers <= available
    return kept, claimed


def consumer_registers(row) -> int:
    """32-bit registers that a consumer thread may use."""
    reallocated = register_reallocation(row)
    return reallocated[1] if reallocated else min(_launched(row), REGISTERS)


def _launched(row) -> int:
    """Registers a launch gives every thread: the register file holds 512 for each of 128 lanes."""
    return 512 // (-(-row.threads // 128) * row.resident) // 8 * 8


def heads_between(kind: KernelKind, row) -> tuple[bool, ...]:
    """For each output of a kernel whether it lies in memory as [B, L, H, D], and not as [B, H, L, D]. In a model, where
    results become rows of all heads, one or the other way is a copy: MLX's own attention writes a result the first way
    too where the operand lies so. Decoding has too few rows for that to count."""
    between = kind.tiled and kind is not DECODE and LAYERS[row.tiles].heads_between
    return tuple(between and name in ACCUMULATORS for name in kind.outputs)


def operand_columns(kind: KernelKind, head_dim: int, value_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    """(operands of which each simdgroup owns rows, traversed operands), each with its columns."""
    columns = {"Q": head_dim, "K": head_dim, "V": value_dim, "dO": value_dim}
    own = {name: columns[name] for name in kind.cacheable if name not in ACCUMULATORS and name in kind.inputs}
    rest = [name for name in columns if name in kind.inputs and name not in own and name not in kind.shapes]
    return own, {name: columns[name] for name in rest}


class Shares(NamedTuple):
    """The parts of an accumulator's columns: their number, and the columns of each, whole panels where there are
    several. The last part may end behind the last column."""

    parts: int
    columns: int


def column_shares(kind: KernelKind, row, head_dim: int, value_dim: int) -> Shares:
    """How threadgroups that own the same rows share the columns of their accumulator."""
    layer = LAYERS[row.tiles]
    widths = {"O": value_dim, "dV": value_dim, "dQ": head_dim, "dK": head_dim}
    columns = max((width for name, width in widths.items() if name in kind.outputs), default=value_dim)
    parts = -(-columns // row.columns) if layer.producer_warps else 1
    panel = PANEL // layer.element_bytes
    return Shares(parts, -(-columns // (parts * panel)) * panel) if parts > 1 else Shares(1, columns)


def tensor_bytes(kind: KernelKind, row, head_dim: int, value_dim: int) -> int:
    """Bytes of threadgroup memory that a row of a tensor-core layer takes."""
    size = LAYERS[row.tiles].element_bytes

    def panels(columns: int) -> int:
        return -(-size * columns // PANEL) * PANEL

    own, traversed = operand_columns(kind, head_dim, value_dim)
    parts, part = column_shares(kind, row, head_dim, value_dim)
    if parts > 1:  # an operand that multiplies nothing but weights is held in part; others hold whole parts
        partial = {"O": "V", "dV": "dO"}.get(kind.outputs[0])
        traversed = {
            name: part if name == partial else max(columns, parts * part) for name, columns in traversed.items()
        }
    low = sum(row.stages * row.traversal * panels(traversed["K"]) for name in "K" if LAYERS[row.tiles].low_parts)
    kept = low + sum(row.parallel * panels(columns) for name, columns in own.items() if name not in row.cached)
    kept += sum(size * row.stages * row.traversal * row.parallel + PIPELINE for name in SCORES if name in kind.inputs)
    kept += row.stages * row.traversal * STATISTICS if stages_statistics(kind, row.tiles) else 0
    rows = row.stages * row.traversal * row.splits
    return kept + sum(rows * panels(columns) + PIPELINE for columns in traversed.values())


def stages_statistics(kind: KernelKind, tiles: str) -> bool:
    """Whether a kernel gets the statistics of queries through its pipeline."""
    return LAYERS[tiles].stages_statistics and {"dK", "dV"} <= set(kind.outputs)


MERGED = 4  # fragments of columns that simdgroups add at a time in key_splits.metal


def merged_fragments(row, value_dim: int) -> int:
    """Fragments of columns that simdgroups of a row add at a time: all where blocks of tensor cores leave memory."""
    return value_dim // 8 if LAYERS[row.tiles].producer_warps else min(MERGED, value_dim // 8)


def merged_bytes(row, value_dim: int) -> int:
    """Bytes of threadgroup memory through which simdgroups that split the keys add their results: two statistics per
    row from each of them, and a few columns from all but the first."""
    if row.splits == 1:
        return 0
    columns = merged_fragments(row, value_dim) * 8
    return 4 * row.parallel * (2 * row.splits + columns * (row.splits - 1))


def votes_bytes(row) -> int:
    """Bytes in which simdgroups that share blocks tell each other whether their rows see any of the next block."""
    simdgroups = row.parallel // row.simdgroup_rows
    return 8 * simdgroups if simdgroups > 1 and row.splits == 1 else 0


def exchanged_bytes(row) -> int:
    """Bytes through which simdgroups that share the head dimension add their partial S."""
    return 4 * row.head_parts * row.parallel * row.traversal if row.head_parts > 1 else 0


def threadgroup_elements(
    kind: KernelKind, row, family, head_dim: int, value_dim: int, element_bytes: int, masked: bool
) -> int:
    """Elements of a kernel's threadgroup memory, at least one. `masked`: there is an array mask."""
    if not LAYERS[row.tiles].uses_threadgroup_memory:
        votes = votes_bytes(row) if masked and family.uses_threadgroup_memory else 0
        shared = max(merged_bytes(row, value_dim), exchanged_bytes(row))
        return max(row.scratch_elements(family) + votes // element_bytes, shared // element_bytes)
    return max(tensor_bytes(kind, row, head_dim, value_dim), merged_bytes(row, value_dim)) // element_bytes


def tensor_registers(kind: KernelKind, row, head_dim: int) -> int:
    """32-bit registers of a thread's fragments at the peak; addresses and statistics are not counted."""
    sixteenths = row.simdgroup_rows // 16
    held = column_shares(kind, row, head_dim, head_dim).columns
    accumulators = sum(held // 8 * 4 for name in row.cached if name in ACCUMULATORS)
    cached = sum(-(-head_dim // 16) * 4 for name in row.cached if name not in ACCUMULATORS)
    # P and dS, or one of them and its mask; where products overlap, P in 16 bits is an operand while dS is computed.
    # float32 operands are two numbers each, beside P that dS needs.
    if LAYERS[row.tiles].element_bytes == 4:
        tiles = 2 if kind.matmuls < 4 else 3
    else:
        tiles = 1.5 if kind.matmuls < 3 else 2.5 if row.overlaps else 2
    scores = row.traversal // 8 * 4 * tiles
    return int(sixteenths * (accumulators + cached + scores))
