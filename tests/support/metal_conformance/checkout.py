"""Kernels that the wheel contains in compiled form only, run from a checkout ($MLX_SOURCE): arg_reduce, random bits."""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance.case import FLOATS, Case, agree, double, normal, short
from metal_conformance.norms import file_library
from metal_conformance.sweep import source_directory

_INT, _LONG, _SIZE = np.int32, np.int64, np.uint64
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def run_arg_reduce(operation: str, dtype: mx.Dtype, axis: int, shape=(5, 333, 4)):
    """Runs the kernel also along an axis that is not the last, where elements are not adjacent."""
    x = mx.round(4 * normal(shape, mx.float32, 1)).astype(dtype)  # with ties, for which the first index is right
    strides = [int(np.prod(shape[i + 1 :])) for i in range(3)]
    rest = [i for i in range(3) if i != axis]
    out = tuple(shape[i] for i in rest)
    arguments = [x, (out, mx.uint32), np.array(out, _INT), np.array([strides[i] for i in rest], _LONG)]
    arguments += [np.array([out[1], 1], _LONG), _SIZE(2), _LONG(strides[axis]), _SIZE(shape[axis])]
    lanes = min(-(-shape[axis] // 128) * 32, 1024)
    kernel = file_library("arg_reduce.metal").kernel(f"{operation}_{short(dtype)}")
    (got,) = kernel(arguments, (lanes, *reversed(out)), (lanes, 1, 1))
    wanted = getattr(np, operation)(double(x), axis=axis)
    agree(got, wanted.astype(np.float64), 0, "the indices")


def threefry(key: tuple[int, int], count: np.ndarray) -> np.ndarray:
    """Two words of random bits for each pair of counters [..., 2]: 20 rounds of Threefry."""
    k = np.array([*key, key[0] ^ key[1] ^ 0x1BD11BDA], np.uint64)
    x, y = (count[..., i] + k[i] & 0xFFFFFFFF for i in range(2))
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            x = (x + y) & 0xFFFFFFFF
            y = ((y << np.uint64(rotation)) | (y >> np.uint64(32 - rotation))) & 0xFFFFFFFF ^ x
        x = x + k[(turn + 1) % 3] & 0xFFFFFFFF
        y = y + k[(turn + 2) % 3] + np.uint64(turn + 1) & 0xFFFFFFFF
    return np.stack([x, y], -1)


def run_random(octets: int):
    """Runs the kernel for odd and even numbers of words and bytes."""
    keys = ((1, 2), (3, 0xFFFFFFFF))
    words = -(-octets // 4)
    half, odd = -(-words // 2), words % 2
    kernel = file_library("random.metal").kernel("rbitsc")
    arguments = [mx.array(keys, mx.uint32), ((len(keys), octets), mx.uint8), np.bool_(odd), _SIZE(octets)]
    (got,) = kernel(arguments, (len(keys), half, 1), (1, half, 1))
    first = np.arange(half, dtype=np.uint64)
    second = first + np.uint64(half)
    if odd:
        second[-1] = 0
    for row, key in zip(np.array(got), keys):
        bits = threefry(key, np.stack([first, second], -1)).T.reshape(-1)[:words]
        wanted = bits.astype(np.uint32).view(np.uint8)[:octets]
        agree(mx.array(row), wanted.astype(np.float64), 0, "the bits")


def cases() -> list[Case]:
    """Empty without a checkout."""
    if source_directory() is None:
        return []
    found = []
    for (operation, axis), dtype in zip((("argmax", 1), ("argmin", 2), ("argmax", 2)), FLOATS):
        run = functools.partial(run_arg_reduce, operation, dtype, axis)
        found.append(Case("arg_reduce", f"{operation} axis {axis} {short(dtype)}", run))
    found.append(Case("arg_reduce", "argmin axis 1 int32", functools.partial(run_arg_reduce, "argmin", mx.int32, 1)))
    return found + [Case("random", f"{n} bytes", functools.partial(run_random, n)) for n in (64, 36, 35)]
