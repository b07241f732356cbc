"""Counts the work of launches: operations always, bytes where accesses are instrumented (mode "check")."""

import json
import re
from contextlib import contextmanager

OPERATIONS = ("matmuls", "tensor_matmuls", "exp2", "log2", "shuffles", "reductions", "group_barriers", "simd_barriers")
_SPACES = ("device", "constant", "threadgroup")
_ACCESSES = ("buffers", "loaded", "stored", "reads", "writes")


class Profile:
    """The launches of one `with profile()` block, each a dict:

    kernel, threadgroups, threads, threadgroup_bytes: the launch; bytes of threadgroup memory a threadgroup uses
    matmuls: 8x8x8 simdgroup matmuls
    tensor_matmuls: 16x16x16 parts of the products of mpp::tensor_ops
    exp2, log2: calls of any exponential and any logarithm, per scalar and thread
    shuffles, reductions: simdgroup operations, once per simdgroup
    group_barriers, simd_barriers: once per threadgroup, once per simdgroup
    loaded, stored: bytes by address space, of all threads
    buffers: {name: {"space", "loaded", "stored"}}
    reads, writes: accesses of at most 16 bytes by one thread, of buffers ("device", constant ones too) and of
        threadgroup memory

    Bytes and accesses are those of the compiled code, after the compiler has kept values in registers; None in mode
    "fast".
    """

    def __init__(self):
        self.launches: list[dict] = []

    @property
    def matmuls(self) -> int:
        """8x8x8 simdgroup matmuls of all launches."""
        return self.total("matmuls")

    def total(self, what: str) -> int:
        """The sum of one count over all launches."""
        return sum(launch[what] for launch in self.launches)

    def json(self) -> str:
        """All launches as JSON."""
        return json.dumps(self.launches, indent=1)

    def table(self) -> str:
        """One aligned line for each launch."""
        columns = ("kernel", "threadgroups", "threadgroup_bytes", *OPERATIONS)
        heads = [*columns, *(f"{space} {way}" for space in _SPACES for way in ("loaded", "stored"))]
        rows = [heads]
        for launch in self.launches:
            moved = [launch[way][space] if launch[way] else "-" for space in _SPACES for way in ("loaded", "stored")]
            rows.append([str(cell) for cell in [*(launch[column] for column in columns), *moved]])
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)

    __str__ = table


def _space(text: str, name: str) -> str:
    """The address space of a kernel's buffer, from its declaration."""
    declared = re.search(rf"\b(device|constant)\b[^,()]*[*&]\s*{re.escape(name)}\s*\[\[", text)
    return declared[1] if declared else "device"


def _accesses(kernel, launch) -> dict:
    counters = launch.counters
    buffers = {
        name: {
            "space": _space(kernel.text, name),
            "loaded": counters.buffer_loaded[index],
            "stored": counters.buffer_stored[index],
        }
        for index, name in enumerate(kernel.buffer_names[: launch.buffer_count])
    }
    moved = {"buffers": buffers}
    for way, local in (("loaded", counters.loaded), ("stored", counters.stored)):
        moved[way] = {space: sum(b[way] for b in buffers.values() if b["space"] == space) for space in _SPACES[:2]}
        moved[way]["threadgroup"] = local[1]
    for way, found in (("reads", counters.reads), ("writes", counters.writes)):
        moved[way] = {"device": found[0], "threadgroup": found[1]}
    return moved


class _Record:
    def __init__(self):
        self.active: list[Profile] = []

    def counting(self) -> bool:
        """Whether a profile is open: kernels are then built to count their exponentials."""
        return bool(self.active)

    def add(self, kernel, launch):
        """Records a finished launch."""
        if not self.active:
            return
        threads = launch.grid[0] * launch.grid[1] * launch.grid[2]
        entry = {"kernel": kernel.name, "threadgroups": launch.total, "threads": threads}
        entry["threadgroup_bytes"] = launch.arena_bytes
        entry.update({name: getattr(launch.counters, name) for name in OPERATIONS})
        entry.update(_accesses(kernel, launch) if launch.check else dict.fromkeys(_ACCESSES))
        for profile in self.active:
            profile.launches.append(entry)


record = _Record()


@contextmanager
def profile():
    """`with profile() as p:` counts the launches inside the block: `print(p)`, `p.launches`, `p.json()`."""
    counted = Profile()
    record.active.append(counted)
    try:
        yield counted
    finally:
        record.active.remove(counted)
