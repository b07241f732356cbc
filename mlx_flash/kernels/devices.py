"""GPU families as plain data, with the limits that the rows of the parameter tables are proved against."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..common.mlx_private import chip_letter

DEQUANTIZING = "dequantizing"  # NVIDIA's tensor cores where keys and values are quantized
TABLE_PREFIX = "original "  # in front of a table's name: the rows of metal-flash-attention


class TunedRow(NamedTuple):
    """The fastest row for one kind of kernel, dtype and head dimension (a multiple of 8), as the tuner timed it.

    `row` is a TileConfig. `ms`, `table_ms`: milliseconds of the kernel with this row, and with the table's row.
    """

    kind: str
    dtype: str
    head_dim: int
    row: object
    ms: float
    table_ms: float


class TunedCall(NamedTuple):
    """Milliseconds of one call of attention, and of MLX's built-in. `mask`: None or "causal"; `training`: with its
    gradients."""

    dtype: str
    head_dim: int
    queries: int
    keys: int
    mask: str | None
    training: bool
    ms: float
    built_in_ms: float


class Tuned(NamedTuple):
    """A measurement of `python -m mlx_flash tune` on this machine."""

    rows: tuple[TunedRow, ...] = ()
    calls: tuple[TunedCall, ...] = ()


@dataclass(frozen=True)
class Family:
    """One generation of GPUs.

    table: the family whose parameter rows it uses.
    uses_threadgroup_memory: traversed operands go through it. Without the large L1 of M3, direct loads would halve the
        throughput.
    register_tiers: pairs (16-bit registers that a thread may use, threads that a core then holds), where registers are
        allocated statically; empty where they are allocated dynamically.
    tensor: the matrix unit whose rows come before those of `table`: NVIDIA's tensor cores ("sm80", "sm90"), the neural
        accelerators of Apple GPUs ("nax"), or none ("").
    cores: cores of the GPU; of the plain chip, unless the machine is known.
    threadgroups: threadgroups per core that decoding aims at; 0: as many as fill a core of an Apple GPU.
    split_kv_threshold: below this many K and V elements per head there is no split-KV, since the combine kernel would
        cost more than it saves.
    separate_delta: number of queries from which on delta has a separate kernel.
    tuned: measurements on this machine, whose rows come before all others.
    """

    name: str
    chips: str
    table: str
    uses_threadgroup_memory: bool
    register_tiers: tuple[tuple[int, int], ...]
    tensor: str = ""
    threadgroup_bytes: int = 32768
    cores: int = 10
    threadgroups: int = 0
    split_kv_threshold: int = 0
    separate_delta: int = 1025
    tuned: Tuned = field(default=Tuned(), hash=False)

    @property
    def apple(self) -> bool:
        return self.name.startswith("apple")

    @property
    def matrix_units(self) -> tuple[str, ...]:
        """The matrix units whose rows the family may use: its own, and on NVIDIA that for quantized operands."""
        return (self.tensor,) if self.apple else (self.tensor, DEQUANTIZING)


# Threads per threadgroup that fit at a register demand: floor(208 KB / bytes / 64) * 64 (Mesa's AGX driver).
G13_TIERS = (
    (104, 1024), (112, 896), (128, 832), (136, 768), (144, 704), (160, 640), (184, 576), (208, 512), (232, 448),
    (256, 384),
)  # fmt: skip

FAMILIES = {
    family.name: family
    for family in (
        Family("apple7", "M1, A14", "apple7", True, G13_TIERS, cores=8),
        Family("apple8", "M2, A15, A16", "apple7", True, G13_TIERS),
        Family("apple9", "M3, M4, A17, A18", "apple9", False, ()),
        Family("apple10", "M5, A19", "apple9", False, (), "nax"),
        Family("sm80", "NVIDIA Ampere, Ada and later", "original apple9", False, (), "sm80", 101376, 108, 2, 2**19),
        Family("sm90", "NVIDIA Hopper", "original apple9", False, (), "sm90", 232448, 132, 2, 2**19),
    )
}

# Cores of a GPU relative to the plain chip, by the last letter of its architecture, since MLX does not tell their
# number. A wrong guess costs time, never a result.
SIZES = {"p": 0.5, "g": 1, "s": 4, "d": 8}

THREADGROUP_THREADS = 1024


def family_of(architecture: str) -> Family:
    """The family of an MLX architecture string such as "applegpu_g13s"; unknown newer GPUs count as the newest."""
    found = re.search(r"_g(\d+)", architecture)
    generation = int(found.group(1)) if found else 13
    name = {13: "apple7", 14: "apple8", 15: "apple9", 16: "apple9"}.get(generation)
    return FAMILIES[name or ("apple10" if generation > 16 else "apple7")]


def machine_of(architecture: str) -> Family:
    """The family of an MLX architecture string, with the number of cores of a chip of that size."""
    family = family_of(architecture)
    return replace(family, cores=int(family.cores * SIZES.get(chip_letter(architecture), 1)))
