"""Runs a loaded kernel over a grid: passes the buffers and distributes the threadgroups over OS threads."""

import ctypes
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from ..frontend.errors import ToolchainError
from .target import here

_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64
MAX_BUFFERS, MAX_VARIABLES, MAX_REPORTS = 64, 64, 16


class Buffer(ctypes.Structure):
    _fields_ = [
        ("base", _U64),
        ("bytes", _U64),
        ("item", _U32),
        ("writable", _U32),
        ("start", _U64),
        ("shift", _U32),
        ("initialised", _U32),
        ("shadow", _U64),
    ]


class Report(ctypes.Structure):
    _fields_ = [
        ("kind", _U32), ("space", _U32), ("buffer", _U32), ("size", _U32), ("is_write", _U32), ("other_is_write", _U32),
        ("thread", _U32 * 3), ("group", _U32 * 3), ("other_thread", _U32 * 3), ("other_group", _U32 * 3),
        ("offset", ctypes.c_int64), ("pc", _U64), ("other_pc", _U64), ("value", _U64),
    ]  # fmt: skip


class Counters(ctypes.Structure):
    _fields_ = [
        ("matmuls", _U64), ("tensor_matmuls", _U64), ("exp2", _U64), ("log2", _U64), ("shuffles", _U64),
        ("reductions", _U64), ("group_barriers", _U64), ("simd_barriers", _U64), ("loaded", _U64 * 3),
        ("stored", _U64 * 3), ("reads", _U64 * 3), ("writes", _U64 * 3), ("buffer_loaded", _U64 * MAX_BUFFERS),
        ("buffer_stored", _U64 * MAX_BUFFERS),
    ]  # fmt: skip


class Launch(ctypes.Structure):
    _fields_ = [
        ("grid", _U32 * 3), ("group", _U32 * 3), ("groups", _U32 * 3),
        ("check", _U32), ("schedule", _U32), ("seed", _U32), ("stop", _U32),
        ("tensor_layout", _U32), ("tensor_rounding", _U32),
        ("total", _U64), ("next", _U64), ("step_limit", _U64), ("stride", _U64),
        ("buffer_count", _U32), ("report_count", _U32), ("window", _U64), ("window_bits", _U32), ("arena_bytes", _U32),
        ("arena_limit", _U32), ("variable_size", _U32 * MAX_VARIABLES), ("buffers", Buffer * MAX_BUFFERS),
        ("reports", Report * MAX_REPORTS), ("counters", Counters), ("order", _U64), ("fence_time", _U32),
        ("running", _U32),
    ]  # fmt: skip


class DamagedError(ToolchainError):
    """The file of a built kernel is not what was written; it is gone, so that the kernel can be built again."""


def _whole(path: Path) -> bool:
    """Whether an ELF file begins as one and reaches to the end of its table of sections, which comes last.

    The loader does not look: a process that runs a file which was cut off ends with a bus error.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF"):
        return False
    (table,), (entry, entries) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return table + entry * entries <= path.stat().st_size


def load(path: str | Path) -> ctypes.CDLL:
    """Loads a library that `Target.link` made, which may call mathematical functions of the C library."""
    if not here().mach_o:  # on macOS it is linked in; elsewhere Python may not have loaded it globally
        if not _whole(Path(path)):
            Path(path).unlink(missing_ok=True)
            raise DamagedError(f"A built kernel was damaged and is removed: {path}. Call the kernel again.")
        ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ToolchainError(
            f"A built kernel cannot be loaded: {error}. If programs may not run from its folder, set "
            "MLX_FLASH_CACHE to another."
        ) from error


def missing_function(error: ToolchainError) -> str | None:
    """The name of a function without a definition, for which a kernel could not be loaded."""
    # Methods carry their qualifiers: _ZNU9CLprivate1S1fEf, _ZNU9CLprivateK1S1fEf.
    qualifiers = r"(?:U\d+CL[a-z]+|K)*"
    found = re.search(rf"(?:undefined symbol: |namespace '_)_Z(N?){qualifiers}(\d\w*)", str(error.__cause__))
    parts, rest = [], found[2] if found else ""
    while number := re.match(r"\d+", rest):
        end = number.end() + int(number[0])
        parts.append(rest[number.end() : end])
        rest = rest[end:] if found[1] else ""
    return "::".join(parts) or None


class Library:
    """A built kernel, loaded."""

    def __init__(self, path):
        handle = load(path)
        self.run = handle.msl_run
        self.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.run.restype = None
        self.create_region = handle.msl_create_region
        self.create_region.restype = ctypes.c_void_p
        handle.msl_image.restype = ctypes.c_void_p
        self.base = handle.msl_image()
        self.reserve = handle.msl_reserve
        self.reserve.argtypes, self.reserve.restype = [_U64], ctypes.c_void_p
        self.forget = handle.msl_forget
        self.forget.argtypes, self.forget.restype = [ctypes.c_void_p, _U64], None


_idle_regions: list[int] = []
_pool: ThreadPoolExecutor | None = None
_pool_lock = Lock()
_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(library: Library, launch: Launch):
    try:
        region = _idle_regions.pop()
    except IndexError:
        region = library.create_region()
        if not region:
            raise MemoryError("The Metal simulator could not reserve memory for its threads.") from None
    try:
        library.run(ctypes.addressof(launch), region)
    finally:
        _idle_regions.append(region)


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, _workers - 1), thread_name_prefix="metal-simulator")
    return _pool


def execute(library: Library, launch: Launch):
    """Runs all threadgroups and returns when the last one has ended."""
    helpers = min(_workers, launch.total) - 1
    waiting = [_threads().submit(_work, library, launch) for _ in range(helpers)] if helpers > 0 else []
    _work(library, launch)
    for job in waiting:
        job.result()
