"""MLX's Fourier transforms that fit a threadgroup: powers of two and mixed radices, complex and real."""

import functools

import mlx.core as mx
import numpy as np

from metal_conformance.case import Case, agree, library, normal

_RADICES = (13, 11, 8, 7, 6, 5, 4, 3, 2)
_MEMORY = 256  # minimal number of elements per threadgroup: small transforms share one


def steps(size: int) -> list[int]:
    """The number of steps of each radix, the largest radix first."""
    counts = []
    for radix in _RADICES:
        counts.append(0)
        while size % radix == 0 and not (radix & (radix - 1) == 0 and size % (2 * radix) and size > radix):
            counts[-1] += 1
            size //= radix
    assert size == 1, "a size with larger factors needs another algorithm"
    return counts


def _constants(size: int, per_thread: int, inverse: bool) -> dict:
    found = {"inv_": inverse, "is_power_of_2_": size & (size - 1) == 0}
    found |= {"elems_per_thread_": per_thread, "rader_m_": size}
    for radix, count in zip(_RADICES, steps(size)):
        found |= {f"radix_{radix}_steps_": count, f"rader_{radix}_steps_": 0}
    return found


def run(size: int, per_thread: int, kind: str, batch: int = 8):
    """kind: complex, inverse, or real (to half a spectrum). In incomplete threadgroups MLX's threads skip the
    remainder."""
    real, inverse = kind == "real", kind == "inverse"
    x = normal((batch, size), mx.float32, 1)
    if not real:
        x = x + 1j * normal((batch, size), mx.float32, 2)
    together = max(_MEMORY // size, 1)
    memory = 1 << (together * size - 1).bit_length()
    groups = -(-batch // together)
    if real:
        groups = -(-groups // 2)  # two real transforms are computed as one complex one
    lanes = -(-size // per_thread)
    template = f"fft<{memory}, {'float' if real else 'float2'}, float2>"
    kernel = library(("fft.h",)).kernel(template, _constants(size, per_thread, inverse))
    out = (batch, size // 2 + 1 if real else size)
    arguments = [x, (out, mx.complex64), np.int32(size), np.int32(batch)]
    (got,) = kernel(arguments, (groups, together, lanes), (1, together, lanes))
    values = np.array(x).astype(np.float64 if real else np.complex128)
    wanted = np.fft.rfft(values) if real else np.fft.ifft(values) if inverse else np.fft.fft(values)
    agree(got, wanted, 1e-5, "the transform")


def cases() -> list[Case]:
    """Sizes with small factors only; the third number is MLX's number of elements per thread."""
    chosen = ((256, 8, "complex"), (256, 8, "inverse"), (60, 5, "complex"), (60, 5, "inverse"), (64, 8, "real"))
    return [
        Case("fft", f"{size} {kind}", functools.partial(run, size, per_thread, kind))
        for size, per_thread, kind in chosen
    ]
