"""NVIDIA's driver, where one is installed: its CUDA version and its PTX assembler."""

from __future__ import annotations

import ctypes
from functools import lru_cache


class AssemblerError(RuntimeError):
    """The driver refuses a kernel; the message quotes its assembler."""


_LOG_BYTES = 8192
# CUjit_option: the buffer for error messages and its size in bytes
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6
# CUresult: the assembler refuses the text; or the driver does not know the container format.
_REFUSALS = {209: "it is for another GPU", 218: "it is not valid PTX", 222: "it is for a newer driver"}
_UNREADABLE = {200: "not an image of a kernel"}


@lru_cache
def library() -> ctypes.CDLL | None:
    """The driver's library, or None if it is not installed."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def version() -> tuple[int, int] | None:
    """The newest CUDA version (major, minor) that the driver supports, or None without a driver."""
    known = ctypes.c_int()
    if library() is None or library().cuDriverGetVersion(ctypes.byref(known)):
        return None
    return known.value // 1000, known.value % 1000 // 10


def _context(driver: ctypes.CDLL) -> ctypes.c_void_p | None:
    """The first GPU's primary context, which MLX uses too; it is never released."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) else context


def takes(image: bytes, name: str) -> bool | None:
    """Whether the driver loads a kernel given as PTX or as a fatbin; None where it cannot be asked.

    The driver caches what it assembles, on disk too, so that loading it again costs a millisecond. Raises
    AssemblerError with the assembler's message if the driver refuses the code itself.
    """
    driver = library()
    context = _context(driver) if driver else None
    if context is None or driver.cuCtxPushCurrent_v2(context):
        return None
    try:
        return _loads(driver, image, name)
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _loads(driver: ctypes.CDLL, image: bytes, name: str) -> bool | None:
    log, module = ctypes.create_string_buffer(_LOG_BYTES), ctypes.c_void_p()
    options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
    text = ctypes.create_string_buffer(image)  # appends the terminating zero
    refused = driver.cuModuleLoadDataEx(ctypes.byref(module), text, ctypes.c_uint(2), options, values)
    if not refused:
        driver.cuModuleUnload(module)
        return True
    if refused in _UNREADABLE:
        return False
    if refused not in _REFUSALS:
        return None
    said = log.value.decode(errors="replace").strip()
    raise AssemblerError(f"[metal_kernel] The driver does not assemble {name}: {_REFUSALS[refused]}\n{said}")
