"""Moves arrays between MLX and the simulated device."""

import ctypes
import functools
import mmap
import threading

import mlx.core as mx
import numpy as np

from .launch import Launch, Library

# The bits of a NaN as half, as bfloat16 and, twice over, as float32: memory that was never written shows in results.
POISON = 0x7FED
_NUMPY = {
    mx.bool_: np.bool_, mx.uint8: np.uint8, mx.uint16: np.uint16, mx.uint32: np.uint32, mx.uint64: np.uint64,
    mx.int8: np.int8, mx.int16: np.int16, mx.int32: np.int32, mx.int64: np.int64,
    mx.float16: np.float16, mx.bfloat16: np.uint16, mx.float32: np.float32, mx.complex64: np.complex64,
}  # fmt: skip
_FLOATS = (mx.float16, mx.bfloat16, mx.float32, mx.complex64)
# Every allocation is aligned to this, as on a GPU: no load that a kernel may issue needs more.
_ALIGNMENT = 64
_OFFSET = 16  # The start of a view is kept modulo this: no type has a larger alignment.
_SLOT_BITS = 36
_CELL_BYTES = 32  # sizeof(Cell) in runtime/shadow.h


def view(array: mx.array) -> np.ndarray:
    """The memory of an evaluated array, without a copy and with its strides; bfloat16 as uint16."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.asarray(array)


def row_contiguous(array: np.ndarray) -> bool:
    """Whether an array is row-contiguous in MLX's sense: axes of length one may have any stride."""
    return array.flags.c_contiguous


def allocate(shape, dtype: mx.Dtype, init_value: float | None) -> np.ndarray:
    """The memory of an output: filled with init_value, or poisoned if that is None."""
    memory = np.empty(int(np.prod(shape)) * dtype.size + _ALIGNMENT, np.uint8)
    array = memory[_gap(memory) : memory.size - _ALIGNMENT + _gap(memory)].view(_NUMPY[dtype]).reshape(shape)
    if init_value is not None:
        filled = np.array(mx.array(init_value).astype(dtype).view(mx.uint16) if dtype == mx.bfloat16 else init_value)
        array.fill(filled.astype(array.dtype) if dtype == mx.bfloat16 else filled)
    elif dtype in _FLOATS:
        array.reshape(-1).view(np.uint16).fill(POISON)
    else:
        array.reshape(-1).view(np.uint8).fill(0xFF)
    return array


def _gap(memory: np.ndarray) -> int:
    """The number of bytes before the first aligned one."""
    return -memory.__array_interface__["data"][0] % _ALIGNMENT


@functools.cache
def _header() -> int:
    """The address of MLX's allocations modulo _OFFSET, which need not be 0."""
    return view(mx.ones(1024) + 1).__array_interface__["data"][0] % _OFFSET


def _begin(array: np.ndarray) -> int:
    """The address, modulo _OFFSET, of the memory that an array is a view of: MLX's, or what numpy allocated."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    owned = array.base is None or isinstance(array.base, (bytes, bytearray))
    return array.__array_interface__["data"][0] % _OFFSET if owned else _header()


def to_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """An MLX array that owns a copy of the output's memory."""
    result = mx.array(array)
    return result.view(mx.bfloat16) if dtype == mx.bfloat16 else result


def extent(array: np.ndarray) -> tuple[int, int]:
    """(offset of the lowest byte from element 0, number of bytes from there to the highest)."""
    if array.size == 0:
        return 0, 0
    low = sum(min(0, (n - 1) * s) for n, s in zip(array.shape, array.strides))
    high = sum(max(0, (n - 1) * s) for n, s in zip(array.shape, array.strides)) + array.itemsize
    return low, high - low


class Window:
    """Address space for the buffers of a checked launch, which are 64 GiB apart: an index out of bounds of one buffer
    never hits another one.
    """

    _idle: list[tuple[int, int]] = []
    _lock = threading.Lock()

    def __init__(self, library: Library, count: int):
        self.library = library
        with self._lock:
            reserved = self._idle.pop() if self._idle else None
        if reserved is None:
            for bits in (_SLOT_BITS, _SLOT_BITS - 2, _SLOT_BITS - 4):
                base = library.reserve(64 << bits)
                if base:
                    reserved = (base, bits)
                    break
            else:
                raise MemoryError(
                    "The Metal simulator could not reserve address space for checked buffers; use mode 'fast'."
                )
        self.base, self.bits = reserved
        self.used: list[tuple[int, int]] = []

    def place(self, index: int, size: int) -> int:
        """The address of buffer `index`, in newly allocated memory."""
        address = self.base + (index << self.bits) + (1 << (self.bits - 2))
        self.used.append((address, size))
        return address

    def shadow(self, index: int, size: int) -> int:
        """Memory of `size` zero bytes for the shadow cells of buffer `index`."""
        address = self.base + (index << self.bits) + (1 << (self.bits - 1))
        self.used.append((address, size))
        return address

    def close(self):
        """Releases the memory and keeps the address space for the next launch."""
        for address, size in self.used:
            self.library.forget(address, size)
        with self._lock:
            self._idle.append((self.base, self.bits))


def bind(launch: Launch, index: int, array: np.ndarray, writable: bool, initialised: bool, window: Window | None):
    """Makes an array the launch's buffer `index`.

    Returns (to, from, bytes, memory to keep) for the copy that fetches an output; None if the array itself is bound.
    """
    low, size = extent(array)
    first = array.__array_interface__["data"][0]
    address, aligned = first + low, writable or first % mmap.PAGESIZE == 0  # allocated here, or mapped elsewhere
    offset = 0 if aligned else (first - _begin(array)) % _OFFSET
    buffer = launch.buffers[index]
    buffer.bytes, buffer.item, buffer.writable, buffer.start = size, array.itemsize, writable, -low
    if window is None and first % _ALIGNMENT == offset:
        buffer.base = address
        return None
    if window is None:
        memory = np.empty(size + 2 * _ALIGNMENT, np.uint8)
        buffer.base = memory.__array_interface__["data"][0] + _gap(memory) + (low + offset) % _ALIGNMENT
        ctypes.memmove(buffer.base, address, size)
        return address, buffer.base, size if writable else 0, memory
    buffer.base = window.place(index, size + _ALIGNMENT) + (low + offset) % _ALIGNMENT
    ctypes.memmove(buffer.base, address, size)
    if not writable:
        return None
    buffer.shift = min(array.itemsize, 4).bit_length() - 1
    buffer.initialised = initialised
    buffer.shadow = window.shadow(index, (size >> buffer.shift) * _CELL_BYTES)
    return address, buffer.base, size, window


def unwritten(buffer) -> np.ndarray:
    """The indices of the granules of an output that no thread has written."""
    count = buffer.bytes >> buffer.shift
    if not count or buffer.initialised:
        return np.empty(0, np.int64)
    words = _CELL_BYTES // 8
    cells = np.ctypeslib.as_array((ctypes.c_uint64 * (words * count)).from_address(buffer.shadow))
    return np.flatnonzero(cells[::words] == 0)
