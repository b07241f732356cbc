"""The tile layers: one for each kind of matrix hardware, as the files that implement it and what it asks of a row."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem.kinds import ACCUMULATORS, KernelKind


@dataclass(frozen=True)
class Layer:
    """`files`: templates, in order. `joint_rows`: rows whose simdgroups multiply together (1: each on its own).
    `copiers`: simdgroups that own no rows, but copy blocks for the others. `fragment_rows`: the least a simdgroup owns.

    `target`: the NVIDIA GPU to compile for; what is for sm_80 runs on all that is newer, for sm_90a on Hopper only.
    """

    files: tuple[str, ...]
    joint_rows: int = 1
    copiers: int = 0
    target: str = "sm_80"
    fragment_rows: int = 16


LAYERS = {
    "simdgroup": Layer(("simdgroup", "synchronous"), fragment_rows=8),
    "mma": Layer(("nvidia", "nan_safe", "mma", "synchronous"), copiers=1),
    "wgmma": Layer(("nvidia", "nan_safe", "wgmma"), joint_rows=64, copiers=4, target="sm_90a"),
}

PANEL = 64  # columns of 16 bits that lie together in threadgroup memory
PIPE = 8 * PANEL  # for barriers, so that what follows stays aligned to the swizzle's 1024 bytes


REGISTERS, COPIER_REGISTERS = 255, 40  # 32-bit registers a thread may have; those a thread that only copies may keep


def register_shares(row) -> tuple[int, int] | None:
    """(registers of a thread that only copies, of one that owns rows) where threads do not share evenly.

    A launch gives all threads the same; on Hopper, 128 at a time may give some back for others to take. If more were
    taken than given, the GPU would wait for ever.
    """
    layer = LAYERS[row.tiles]
    givers, takers = layer.copiers // 4, row.threads // 128 - layer.copiers // 4
    launched = _launched(row)
    if layer.joint_rows == 1 or launched >= REGISTERS - 7:
        return None
    taken = (launched * (givers + takers) - COPIER_REGISTERS * givers) // takers // 8 * 8
    assert taken * takers + COPIER_REGISTERS * givers <= launched * (givers + takers)
    return COPIER_REGISTERS, taken


def owner_registers(row) -> int:
    """32-bit registers a thread that owns rows may use."""
    shares = register_shares(row)
    return shares[1] if shares else min(_launched(row), REGISTERS)


def _launched(row) -> int:
    """Registers a launch gives every thread: 512 are shared by those that take turns at one of 128 lanes."""
    return 512 // -(-row.threads // 128) // 8 * 8


def operand_columns(step: KernelKind, head_dim: int, value_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    """(operands whose rows belong to a simdgroup, operands that are traversed), each with its columns."""
    columns = {"Q": head_dim, "K": head_dim, "V": value_dim, "dO": value_dim}
    own = {name: columns[name] for name in step.cacheable if name not in ACCUMULATORS and name in step.inputs}
    return own, {name: columns[name] for name in columns if name in step.inputs and name not in own}


def tensor_elements(step: KernelKind, row, head_dim: int, value_dim: int) -> int:
    """16-bit elements of threadgroup memory that a row of a tensor-core layer takes."""
    own, traversed = operand_columns(step, head_dim, value_dim)
    kept = sum(row.parallel * _panels(columns) for name, columns in own.items() if name not in row.cached)
    return kept + sum(row.stages * row.traversal * _panels(columns) + PIPE for columns in traversed.values())


def threadgroup_elements(step: KernelKind, row, family, head_dim: int, value_dim: int) -> int:
    """Elements of a kernel's threadgroup memory, one at least."""
    if row.tiles == "simdgroup":
        return row.staging_elements(family)
    return tensor_elements(step, row, head_dim, value_dim)


def tensor_registers(step: KernelKind, row, head_dim: int) -> int:
    """32-bit registers a thread holds in fragments at the fullest moment, addresses and statistics not counted."""
    sixteenths = row.simdgroup_rows // 16
    accumulators = sum(head_dim // 8 * 4 for name in row.cached if name in ACCUMULATORS)
    cached = sum(-(-head_dim // 16) * 4 for name in row.cached if name not in ACCUMULATORS)
    scores = row.traversal // 8 * 4 * (1.5 if step.matmuls == 2 else 2)
    return int(sixteenths * (accumulators + cached + scores))


def _panels(columns: int) -> int:
    return -(-columns // PANEL) * PANEL
