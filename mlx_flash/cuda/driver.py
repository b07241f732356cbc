"""NVIDIA's driver, where there is one: which CUDA it speaks, and the assembler inside it."""

from __future__ import annotations

import ctypes
from functools import lru_cache


class AssemblerError(RuntimeError):
    """The driver refuses a kernel; the message has the assembler's words."""


_LOG_BYTES = 8192
# CUjit_option: where error messages go, and how many bytes there are; CUjitInputType
_ERROR_LOG, _ERROR_LOG_BYTES, _PTX = 5, 6, 1
# CUresult: the driver's assembler refuses the text, or cannot know it.
_REFUSALS = {209: "it is for another GPU", 218: "it is no valid PTX", 222: "it is for a newer driver"}


@lru_cache
def library() -> ctypes.CDLL | None:
    """The driver's library; None where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def version() -> tuple[int, int] | None:
    """The newest CUDA version that the driver knows; None where there is none to ask."""
    known = ctypes.c_int()
    if library() is None or library().cuDriverGetVersion(ctypes.byref(known)):
        return None
    return known.value // 1000, known.value % 1000 // 10


def _context(driver: ctypes.CDLL) -> ctypes.c_void_p | None:
    """The first GPU's primary context, which MLX uses too; it is never given back."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) else context


def assemble(code: bytes, name: str) -> bytes | None:
    """The machine code of PTX for this machine's GPU; None where the driver does not give it.

    MLX copies and hashes the code of a kernel at every call: machine code is shorter, and compiled once for all
    processes. Raises AssemblerError if it refuses the text.
    """
    driver = library()
    context = _context(driver) if driver else None
    if context is None or driver.cuCtxPushCurrent_v2(context):
        return None
    try:
        return _linked(driver, code, name)
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _linked(driver: ctypes.CDLL, code: bytes, name: str) -> bytes | None:
    log, state = ctypes.create_string_buffer(_LOG_BYTES), ctypes.c_void_p()
    options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
    if driver.cuLinkCreate_v2(ctypes.c_uint(2), options, values, ctypes.byref(state)):
        return None
    try:
        text = ctypes.create_string_buffer(code)  # adds the zero that has to end it
        refused = driver.cuLinkAddData_v2(
            state, ctypes.c_int(_PTX), text, ctypes.c_size_t(len(text)), name.encode(), ctypes.c_uint(0), None, None
        )
        made, size = ctypes.c_void_p(), ctypes.c_size_t()
        refused = refused or driver.cuLinkComplete(state, ctypes.byref(made), ctypes.byref(size))
        if not refused:
            return ctypes.string_at(made, size.value)
        if refused not in _REFUSALS:
            return None
        said = log.value.decode(errors="replace").strip()
        raise AssemblerError(f"[metal_kernel] The driver does not assemble {name}: {_REFUSALS[refused]}\n{said}")
    finally:
        driver.cuLinkDestroy(state)
