"""The row of the parameter tables that serves a kernel, and the proof of every row when the package is imported."""

from __future__ import annotations

from itertools import product

from ..problem.kinds import BACKWARD_KEY, BACKWARD_KEY_VALUE, DECODE, KernelKind
from .apple import TABLE, prove
from .config import TileConfig, precision_of
from .devices import FAMILIES, TABLE_PREFIX, Family, TunedRow
from .neural import NEURAL_TABLE, prove_neural_row
from .nvidia import TENSOR_TABLE, prove_tensor_row
from .original import ORIGINAL
from .split_kv import decoding_config


def matrix_rows(kind: KernelKind, precision: str, family: Family) -> tuple[TileConfig, ...]:
    """The rows for tensor cores or neural accelerators, if the family has any."""
    key = (kind, precision, family.tensor)
    return TENSOR_TABLE.get(key) or NEURAL_TABLE.get(key, ())


def candidates(kind: KernelKind, precision: str, family: Family) -> tuple[TileConfig, ...]:
    """The rows that may serve a problem, in order: those of the family's own matrix unit, then those of its table."""
    table, listed = family.table.removeprefix(TABLE_PREFIX), kind.table
    found = TABLE.get((kind, precision, table)) if kind is not listed else None  # rows that differ from those listed
    if not found and table != family.table:
        found = ORIGINAL.get((listed, precision, table))
    return matrix_rows(listed, precision, family) + (found or TABLE.get((listed, precision, table), ()))


def splits_dk_dv(dtype: str, family: Family, head_dim: int) -> bool:
    """Whether dK and dV have separate kernels: where a matrix unit has no row for both together, but one for each."""
    both, one = (matrix_rows(kind, precision_of(dtype), family) for kind in (BACKWARD_KEY_VALUE, BACKWARD_KEY))
    return all(head_dim > row.max_head for row in both) and any(head_dim <= row.max_head for row in one)


def lookup(kind: KernelKind, dtype: str, family: Family, head_dim: int) -> TileConfig:
    """The row that was tuned on this machine; without one the first whose `max_head` covers `head_dim`, or else the
    last, which serves all larger head dimensions."""
    tuned = tuned_row(kind, dtype, family, head_dim)
    if tuned:
        return tuned.row
    rows = candidates(kind, precision_of(dtype), family)
    return next((row for row in rows if head_dim <= row.max_head), rows[-1])


def tuned_row(kind: KernelKind, dtype: str, family: Family, head_dim: int) -> TunedRow | None:
    """The row that the tuner found for exactly this kernel, if any."""
    wanted = (kind.table.name, dtype, head_dim)
    for one in family.tuned.rows:
        if one[:3] == wanted:
            return one
    return None


def prove_row(kind: KernelKind, precision: str, family: Family, row: TileConfig) -> None:
    """Raises ValueError unless kernels of the row's tile layer can work with it on the family."""
    if row.tiles == "simdgroup":
        prove(kind, precision, family, row)
    elif row.tiles == "nax":
        prove_neural_row(kind, family, row)
    else:
        prove_tensor_row(kind, family, row)


def prove_table(table=None) -> None:
    """Proves every row for every family that uses it, and that `max_head` increases within each table.

    `table`: in place of TABLE.
    """
    for (kind, precision, name), rows in (table or TABLE).items():
        heads = [row.max_head for row in rows]
        if heads != sorted(set(heads)):
            raise ValueError(f"{kind} {precision} {name}: max_head must increase from row to row, got {heads}")
        for family, row in product((one for one in FAMILIES.values() if one.table == name), rows):
            prove_row(kind, precision, family, row)
            if kind is DECODE:  # where rows are few, its simdgroups split the keys
                prove_row(kind, precision, family, decoding_config(row, 8, family))
    for (kind, precision, name), rows in (TENSOR_TABLE | NEURAL_TABLE).items():
        for family, row in product((one for one in FAMILIES.values() if name in one.matrix_units), rows):
            prove_row(kind, precision, family, row)
            if kind is DECODE:
                prove_row(kind, precision, family, decoding_config(row, 8, family))


prove_table()
