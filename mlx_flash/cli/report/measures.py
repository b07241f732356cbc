"""A report's measurements: agreement with the simulator, speed beside the built-in's, and whether an append copies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np

from ...api import attention
from ...backends import use_backend
from ..accuracy.check import results
from ..accuracy.oracle import FRACTION_BITS, TENSORS
from ..benchmark import CALLS, Case, arrays, built_in, ours, rounds

LENGTH, LEAST_LENGTH, HEADS, LEAST_HEADS = 2048, 128, 8, 1  # of the timed problems
SECONDS = 0.3  # for each of them, and for one call at most
DECODE_KEYS = 32768
APPENDS, CACHE = 8, (8, 128)  # steps one ahead of the GPU; heads and head dimension of the cache


@cache
def fitting() -> tuple[int, int]:
    """(length, heads) of the timed problems: less than LENGTH and HEADS on a slow GPU, where a call of them would
    take more than SECONDS."""
    short = Case(128, min(LEAST_LENGTH, LENGTH), causal=False, heads=HEADS, key_heads=HEADS, dtype="float32")
    seconds, length, heads = milliseconds(short, ours, arrays(short)) / 1e3, LENGTH, HEADS
    while length > LEAST_LENGTH and seconds * (length / short.length) ** 2 > SECONDS:
        length //= 2
    while heads > LEAST_HEADS and seconds * heads / short.heads > SECONDS:
        heads //= 2
    return length, heads


def speed_cases(length: int, heads: int = HEADS) -> list[Case]:
    """Head dimensions of 64 and 128, float32 and float16, without and with gradients."""
    return [
        Case(head_dim, length, backward, causal=False, heads=heads, key_heads=heads, dtype=dtype)
        for backward in (False, True)
        for head_dim in (64, 128)
        for dtype in ("float32", "float16")
    ]


def instructions(case: Case) -> int:
    """Metal FlashAttention's count of a call: (2 D + 5) N^2 forward, (3 D + 5) N^2 and (4 D + 5) N^2 backward."""
    factors = (2, 3, 4) if case.backward else (2,)
    return case.heads * case.length**2 * sum(factor * case.head_dim + 5 for factor in factors)


def speed(case: Case) -> tuple[float, float]:
    """Milliseconds of a call: ours, the built-in's."""
    drawn = arrays(case)
    return milliseconds(case, ours, drawn), milliseconds(case, built_in, drawn)


def milliseconds(case: Case, provider: Callable, drawn: list[mx.array]) -> float:
    """Median milliseconds of a queued call; of one call that is waited for where that takes more than SECONDS."""
    for _ in range(2):  # the first one compiles
        start = time.perf_counter()
        mx.eval(provider(case, *drawn))
        mx.synchronize()
        seconds = time.perf_counter() - start
    if seconds > SECONDS:
        return seconds * 1e3
    return rounds(lambda: mx.async_eval(provider(case, *drawn)), mx.synchronize, SECONDS, CALLS)


def decode_case(length: int, heads: int = HEADS) -> Case:
    """One token of a model with grouped heads, over as many keys as suits a GPU that takes problems of this length and
    number of heads."""
    keys = max(1, DECODE_KEYS * length // LENGTH)
    return Case(128, keys, causal=False, heads=4 * heads, key_heads=heads, queries=1, dtype="float16")


def ulps(dtype: str, head_dim: int, family: str) -> dict[str, float]:
    """The largest difference between this GPU and the simulator for O, dQ, dK and dV, in units in the last place of
    the tensor's largest magnitude."""
    keys = mx.random.split(mx.random.key(0), 4)
    drawn = [mx.random.normal((1, 2, 65, head_dim), key=key).astype(getattr(mx, dtype)) for key in keys]

    def here(backend, *family):
        with use_backend(backend, *family):
            found = results(lambda q, k, v: attention(q, k, v, causal=True), *drawn)
        return [np.array(array.astype(mx.float32), np.float64) for array in found]

    pairs = zip(TENSORS, here("metal"), here("simulator", family))
    return {name: _ulps(gpu, simulated, FRACTION_BITS[dtype]) for name, gpu, simulated in pairs}


def _ulps(got: np.ndarray, want: np.ndarray, bits: int) -> float:
    difference, largest = np.abs(got - want).max(), np.abs(want).max()
    if not math.isfinite(difference):
        return math.inf
    return float(difference / 2.0 ** (math.frexp(largest)[1] - 1 - bits))


def append_copies(keys: int = DECODE_KEYS) -> float:
    """Peak memory beyond the cache, by its size, of steps that append a token and read the cache, one step ahead of the
    GPU as generation decodes: about 1 or more where an append copies the cache, about 0 where it does not."""
    heads, dimension = CACHE
    cache = mx.zeros((1, heads, keys + 256, dimension), mx.float16)
    token = mx.ones((1, heads, 1, dimension), mx.float16)
    mx.eval(cache, token)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before, running = mx.get_active_memory(), None
    for step in range(APPENDS):
        at = keys + step + 3  # not at a multiple of 256, where caches grow
        cache[:, :, at : at + 1] = token
        seen = cache[:, :, : at + 1]
        out = mx.fast.scaled_dot_product_attention(token, seen, seen, scale=dimension**-0.5)
        mx.async_eval(out, cache)
        if running is not None:
            mx.eval(running)
        running = out
    mx.eval(running)
    return (mx.get_peak_memory() - before) / cache.nbytes
