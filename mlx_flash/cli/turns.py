"""Times several providers of the same result in turns, so that a change of clocks affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import mlx.core as mx

LEAST_ROUNDS, MOST_ROUNDS = 4, 40


def take_turns(providers: dict[str, Callable], calls: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median milliseconds of a call of each provider, with `calls` calls queued, over `seconds` for each of them.

    providers: functions without arguments that return arrays or nested lists of arrays. Their first round, which may
    compile kernels, does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in providers}
    end, rounds = time.perf_counter() + len(providers) * seconds, 0
    while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < end):
        for name, call in providers.items():
            mx.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                mx.async_eval(call())
            mx.synchronize()
            times[name].append((time.perf_counter() - start) / calls * 1e3)
        rounds += 1
    return {name: {"ms": round(statistics.median(found[1:]), 4)} for name, found in times.items()}
