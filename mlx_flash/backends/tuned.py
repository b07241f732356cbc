"""Measurements of `python -m mlx_flash tune` on this machine, kept in one file of the user's cache folder.

Only that command writes the file. Kernels use its rows, and patch() its times, where neither a family nor a table was
named. A file that is damaged, or from another chip, system, MLX or version of the kernels, is ignored with one warning.
A row that is not legal counts as damage, so that a bad file can cost time but never a result.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path

from ..common.environment import switched_off
from ..common.errors import CommandError, warn
from ..common.files import write_json
from ..kernels.config import TileConfig
from ..kernels.devices import Family, Tuned, TunedCall, TunedRow
from ..kernels.search import is_legal
from ..kernels.source import fingerprint
from ..problem.kinds import BACKWARD_KINDS, DECODE, FORWARD
from . import guard
from .guard import machine_facts

VARIABLE = "MLX_FLASH_TUNED"  # 0: measurements are not used
GAIN = 1.02  # the least speedup over the table's row that counts; less is noise
KINDS = {kind.name: kind for kind in (FORWARD, DECODE, *BACKWARD_KINDS)}


def folder() -> Path:
    return guard.folder().parent / "tuned"


def file_here() -> Path:
    """The file of this chip."""
    return folder() / f"{re.sub(r'[^a-zA-Z0-9]+', '-', machine_facts()['chip']).strip('-')}.json"


def identity() -> dict[str, str]:
    """The scope of measurements: chip, system, MLX and kernel texts."""
    return {**machine_facts(), "kernels": fingerprint()}


@cache
def tuned(family: Family) -> Tuned:
    """The measurements in this machine's file; none without a file, where it is ignored, or with MLX_FLASH_TUNED=0."""
    if switched_off(VARIABLE, "Set 0 to use the tables as they are, or unset it."):
        return Tuned()
    found, reason = read(family)
    if reason:
        warn(
            f"mlx_flash does not use what was tuned in {file_here()}: {reason}. Run `python -m mlx_flash tune` again, "
            "or delete the file."
        )
    return winners(found, family)


def read(family: Family) -> tuple[dict, str]:
    """(contents of this machine's file, why it is ignored or ""); without measurements where it is missing or
    ignored."""
    empty = {"identity": identity(), "rows": [], "calls": []}
    try:
        found = json.loads(file_here().read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return empty, ""
    except (OSError, ValueError) as error:
        return empty, f"it cannot be read ({error})"
    try:
        other = [name for name, value in identity().items() if found["identity"].get(name) != value]
        if other:
            return empty, f"it is of another {' and '.join(other)}"
        for one in found["rows"]:
            row, ms = row_of(one), float(one["ms"])
            if not is_legal(KINDS[one["kind"]], one["dtype"], family, row) or not (ms > 0 or one["failure"]):
                return empty, f"its row {row} cannot work here"
        list(map(_call, found["calls"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return empty, f"it is damaged ({type(error).__name__}: {error})"
    return found, ""


def row_of(measured: dict) -> TileConfig:
    """The row of one measurement."""
    facts = {**measured["row"], "cached": tuple(measured["row"]["cached"])}
    row = TileConfig(**facts)
    numbers = (
        row.max_head, row.parallel, row.traversal, row.head, row.simdgroup_rows, row.stages,
        row.splits, row.head_parts,
    )  # fmt: skip
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"sizes of {row}")
    return row


def _call(measured: dict) -> TunedCall:
    call = TunedCall(**measured)
    if not (call.ms > 0 and call.built_in_ms > 0):
        raise ValueError(f"times of {call}")
    return call


def winners(contents: dict, family: Family) -> Tuned:
    """The fastest row of every timed kernel, where it beats the table's by GAIN, and the timed calls."""
    timed: dict[tuple, list] = {}
    for one in contents["rows"]:
        if one.get("ms"):
            timed.setdefault((one["kind"], one["dtype"], one["head_dim"]), []).append(one)
    rows = []
    for key, found in timed.items():
        table = next((one["ms"] for one in found if one["table"]), None)
        best = min(found, key=lambda one: one["ms"])
        if table and table >= GAIN * best["ms"]:
            rows.append(TunedRow(*key, row_of(best), best["ms"], table))
    return Tuned(tuple(rows), tuple(map(_call, contents["calls"])))


def rivals(contents: dict, facts: tuple[str, str, int]) -> list[dict]:
    """The measurements of one kernel (kind, dtype, head dimension) that beat the table's row, and that row's; none
    where no row does."""
    timed = [one for one in contents["rows"] if (one["kind"], one["dtype"], one["head_dim"]) == facts and one["ms"]]
    table = next((one["ms"] for one in timed if one["table"]), 0)
    found = [one for one in timed if one["table"] or GAIN * one["ms"] <= table]
    return found if len(found) > 1 else []


def write(contents: dict) -> None:
    """Writes the file as a whole or not at all. Raises CommandError where the folder cannot be written."""
    path = file_here()
    try:
        write_json(path, contents)
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error}): set MLX_FLASH_CACHE to another folder") from None


@contextmanager
def tuning_lock() -> Iterator[None]:
    """Holds a lock for a block. Raises CommandError if another process is tuning this machine. The system releases the
    lock with the process."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = (folder() / "lock").open("w")
    except OSError as error:
        raise CommandError(f"{folder()} cannot be written ({error}): set MLX_FLASH_CACHE to another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError("another tune runs on this machine, and both would be slower: wait for it") from None
        except OSError:  # some network drives have no locks
            pass
        yield


def measurement(kind: str, dtype: str, head_dim: int, row: TileConfig, table: bool, ms: float, failure: str) -> dict:
    """One timed row as the file holds it; `table`: whether it is the table's own."""
    facts = {"kind": kind, "dtype": dtype, "head_dim": head_dim, "row": asdict(row), "table": table}
    return {**facts, "ms": ms, "failure": failure}
