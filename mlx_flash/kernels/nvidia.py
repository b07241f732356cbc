"""Rows of the parameter table for NVIDIA's tensor cores (16-bit operands), and their proof.

They come before a family's other rows, which serve float32 and head dimensions beyond the last row here. Registers hold
256 columns of an accumulator: beyond that, threadgroups that own the same rows share its columns.
"""

from __future__ import annotations

from dataclasses import replace

from ..problem.kinds import (
    ACCUMULATORS,
    BACKWARD_KEY,
    BACKWARD_KEY_KEPT,
    BACKWARD_KEY_VALUE,
    BACKWARD_QUERY,
    BACKWARD_VALUE,
    BACKWARD_VALUE_KEPT,
    DECODE,
    FORWARD,
    KernelKind,
)
from .config import FULL, MIXED, TileConfig, requirement
from .devices import DEQUANTIZING, Family
from .tile_layers import LAYERS, consumer_registers, tensor_bytes, tensor_registers


def rows(tiles: str, *lines) -> tuple[TileConfig, ...]:
    return tuple(
        TileConfig(
            *line[:3],
            64,
            tuple(line[4].split()),
            16,
            tiles,
            line[3],
            overlaps="overlaps" in line[5:],
            plain=next((word for word in line[5:] if type(word) is tuple), None),
        )  # fmt: skip
        for line in lines
    )


#    max  par-  tra-  stages cached in   products that    parallel, traversal and stages
#    head allel versal       registers   overlap          of plain scores
TENSOR_TABLE = {
    (FORWARD, MIXED, "sm80"): rows(
        "mma",
        (128,  64,  64, 2, "Q O"),
        (256,  64,  32, 2, "O"),
        (384,  64,  16, 2, "O"),
        (512,  32,  16, 2, "O"),
    ),
    (BACKWARD_QUERY, MIXED, "sm80"): rows(
        "mma",
        ( 64,  64,  64, 2, "Q dO dQ"),
        (128,  64,  48, 2, "dQ"),
        (256,  64,  16, 2, "dQ"),
        (384,  32,  16, 2, "dQ"),
        (512,  16,  16, 2, "dQ"),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "sm80"): rows(
        "mma",
        ( 64,  64,  48, 2, "K V dK dV"),
        (128,  64,  32, 2, "dK dV"),
    ),
    (BACKWARD_KEY, MIXED, "sm80"): rows(
        "mma",
        (256,  64,  16, 2, "dK"),
        (384,  32,  16, 2, "dK"),
        (512,  16,  16, 2, "dK"),
    ),
    (BACKWARD_VALUE, MIXED, "sm80"): rows(
        "mma",
        (256,  64,  16, 2, "dV"),
        (384,  64,  16, 2, "dV"),
        (512,  32,  16, 2, "dV"),
    ),
    (FORWARD, MIXED, "sm90"): rows(
        "wgmma",
        ( 64, 128, 208, 2, "O", "overlaps", (192, 128, 3)),
        ( 96, 128, 128, 2, "O", "overlaps"),
        (128, 128, 160, 2, "O", "overlaps"),
        (192, 128, 112, 2, "O", "overlaps"),
        (256, 128,  80, 2, "O", "overlaps"),
        (320, 128,  64, 2, "O"),
        (384, 128,  48, 2, "O"),
        (512, 128,  32, 2, "O"),
        (576,  64,  32, 2, "O"),
    ),
    (BACKWARD_QUERY, MIXED, "sm90"): rows(
        "wgmma",
        ( 64, 128,  96, 2, "dQ", (128, 128, 2)),
        (128, 128,  96, 2, "dQ", (128, 128, 2)),
        (192, 128,  64, 2, "dQ"),
        (256, 128,  48, 2, "dQ"),
        (320,  64,  48, 2, "dQ"),
        (384,  64,  32, 2, "dQ"),
        (512,  64,  16, 2, "dQ"),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "sm90"): rows(
        "wgmma",
        ( 64, 128,  80, 2, "dK dV", "overlaps", (128, 96, 2)),
        ( 96, 128,  64, 2, "dK dV", "overlaps"),
        (128, 128,  48, 2, "dK dV", "overlaps", (128, 64, 2)),
    ),
    (BACKWARD_KEY, MIXED, "sm90"): rows(
        "wgmma",
        (192, 128,  64, 2, "dK"),
        (256, 128,  48, 2, "dK"),
        (320,  64,  48, 2, "dK"),
        (384,  64,  32, 2, "dK"),
        (512,  64,  16, 2, "dK"),
    ),
    (BACKWARD_VALUE, MIXED, "sm90"): rows(
        "wgmma",
        (192, 128,  96, 2, "dV"),
        (256, 128,  64, 2, "dV"),
        (320, 128,  64, 2, "dV"),
        (384, 128,  48, 2, "dV"),
        (512, 128,  32, 2, "dV"),
    ),
    (BACKWARD_KEY_KEPT, MIXED, "sm80"): rows("mma", (128,  64,  64, 2, "dK"), (256,  64,  32, 2, "dK")),
    (BACKWARD_VALUE_KEPT, MIXED, "sm80"): rows("mma", (128,  64,  64, 2, "dV"), (256,  64,  32, 2, "dV")),
    (BACKWARD_KEY_KEPT, MIXED, "sm90"): rows(
        "wgmma",
        (128, 128, 128, 3, "dK"),
        (256, 128,  64, 4, "dK"),
    ),
    (BACKWARD_VALUE_KEPT, MIXED, "sm90"): rows(
        "wgmma",
        (128, 128, 128, 3, "dV"),
        (256, 128,  64, 4, "dV"),
    ),
    # Decoding uses mma.sync, since few queries would leave most of wgmma's 64 rows empty; `parallel` is the most GQA
    # rows of a threadgroup. Blocks are so small that a core holds several threadgroups: while one waits for keys,
    # others multiply.
    (DECODE, MIXED, "sm80"): rows(
        "mma",
        ( 64,  64,  64, 2, "Q O"),
        (128,  64,  32, 2, "Q O"),
        (256,  64,  16, 2, "O"),
    ),
    (DECODE, MIXED, "sm90"): rows(
        "mma",
        ( 64,  64,  64, 3, "Q O"),
        (128,  64,  64, 2, "Q O"),
        (192,  64,  32, 3, "Q O"),
        (256,  64,  32, 2, "O"),
    ),
    # float32, each product as three of TF32
    (FORWARD, FULL, "sm80"): rows(
        "tf32",
        ( 64,  64,  64, 2, "O"),
        (128,  64,  32, 2, "O"),
        (256,  32,  16, 2, "O"),
    ),
    (BACKWARD_QUERY, FULL, "sm80"): rows(
        "tf32",
        ( 64,  64,  32, 2, "dQ"),
        (128,  64,  16, 2, "dQ"),
    ),
    (BACKWARD_KEY_VALUE, FULL, "sm80"): rows(
        "tf32",
        ( 64,  64,  32, 2, "dK dV"),
        (128,  64,  16, 2, "dK dV"),
    ),
    (FORWARD, FULL, "sm90"): rows(
        "tf32_wgmma",
        ( 64, 128,  96, 2, "O"),
        (128, 128,  48, 2, "O"),
    )
    + rows("tf32_hopper", (256, 128, 16, 2, "O")),
    (BACKWARD_QUERY, FULL, "sm90"): rows(
        "tf32_hopper",
        ( 64, 128,  32, 2, "dQ"),
        (128, 128,  32, 2, "dQ"),
        (256,  64,  16, 2, "dQ"),
    ),
    (BACKWARD_KEY_VALUE, FULL, "sm90"): rows(
        "tf32_hopper",
        ( 64, 128,  32, 2, "dK dV"),
    ),
    (BACKWARD_KEY, FULL, "sm90"): rows(
        "tf32_hopper",
        (128, 128,  32, 2, "dK"),
        (256,  64,  16, 2, "dK"),
    ),
    (BACKWARD_VALUE, FULL, "sm90"): rows(
        "tf32_hopper",
        (128, 128,  32, 2, "dV"),
        (256,  64,  16, 2, "dV"),
    ),
    (FORWARD, MIXED, DEQUANTIZING): rows(
        "dequantizing",
        (128,  64,  64, 2, "Q O"),
        (256,  64,  32, 2, "O"),
    ),
    (DECODE, MIXED, DEQUANTIZING): rows(
        "dequantizing",
        ( 64,  64,  64, 2, "Q O"),
        (128,  64,  32, 2, "Q O"),
        (256,  64,  16, 2, "O"),
    ),
}  # fmt: skip


def mma_rows(family: Family) -> int:
    """Rows of the largest matrix instruction of these tensor cores: 64 with wgmma, else 1."""
    tables = (rows for (_, _, name), rows in TENSOR_TABLE.items() if name == family.tensor)
    return max((LAYERS[row.tiles].mma_rows for rows in tables for row in rows), default=1)


OVERHEAD = 32  # 32-bit registers of a thread beyond fragments: addresses, statistics


def thread_registers(kind: KernelKind, row: TileConfig, head_dim: int) -> int:
    """Estimated 32-bit registers of a thread."""
    return tensor_registers(kind, row, head_dim) + OVERHEAD


MOST_CONSUMERS = 3  # warpgroups of a threadgroup
MOST_RESIDENT = 4  # more leave a thread fewer registers than any row takes


def sharing_cores(kind: KernelKind, row: TileConfig, family: Family, head_dim: int, value_dim: int) -> TileConfig:
    """The row with as many threadgroups per core as registers and threadgroup memory suffice for, where a threadgroup
    has one warpgroup of consumers: one multiplies while others compute exponentials. Else the row itself."""
    if LAYERS[row.tiles].mma_rows != row.parallel:
        return row
    taken = tensor_bytes(kind, row, head_dim, value_dim)
    needed = thread_registers(kind, row, max(head_dim, value_dim))
    for count in range(MOST_RESIDENT, 1, -1):
        shared = replace(row, resident=count)
        if count * taken <= family.threadgroup_bytes and needed <= consumer_registers(shared):
            return shared
    return row


def prove_tensor_row(kind: KernelKind, family: Family, row: TileConfig) -> None:
    """Raises ValueError for a row with which a kernel would be wrong, or would not fit the GPU."""
    require = requirement(f"parameter row {row} of {kind} {family.name}")
    instruction = LAYERS[row.tiles].mma_rows
    require(row.stages >= 2, "a block is copied while another is read: two stages at least")
    if instruction > 1:
        require(row.simdgroup_rows == 16, "a simdgroup has 16 of the 64 rows of a wgmma instruction")
        require(set(row.cached) <= ACCUMULATORS, "operands are read from threadgroup memory")
        require(
            row.parallel <= MOST_CONSUMERS * instruction, "a kernel with more consumers than three fails on an H200"
        )
    overlapping = kind is FORWARD or {"dK", "dV"} <= set(kind.outputs)
    require(not row.overlaps or (instruction > 1 and overlapping), "no products of this kernel overlap")
    if LAYERS[row.tiles].element_bytes == 4:
        require(row.simdgroup_rows == 16 and row.max_head <= 256, "sums of float32 are of 16 rows and 256 columns")
        require(set(row.cached) <= ACCUMULATORS, "operands are read from threadgroup memory")
    require(row.simdgroup_rows % 16 == 0 and row.traversal % 16 == 0, "fragments are 16 rows by 16")
    require(row.splits == 1 or "Q" in row.cached, "simdgroups of the same rows have q in registers")
    require(row.parallel % max(instruction, row.simdgroup_rows) == 0, "a threadgroup must hold whole simdgroups")
    require(set(row.cached) <= set(kind.cacheable), f"only {kind.cacheable} may be cached")
    missing = set(kind.outputs) & ACCUMULATORS - set(row.cached)
    require(not missing, f"{missing} must be cached: accumulators are not paged here")
    taken = tensor_bytes(kind, row, row.max_head, row.max_head)
    require(taken <= family.threadgroup_bytes, f"{taken} threadgroup bytes exceed {family.threadgroup_bytes}")
    needed = thread_registers(kind, row, row.max_head)
    given = consumer_registers(row)
    require(needed <= given, f"{needed} registers a thread exceed {given}")
    if row.plain:
        prove_tensor_row(kind, family, row.for_scores(plain=True))
