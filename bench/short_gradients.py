"""Short causal gradients with head dimensions beyond 128 on a GPU, beside the built-in's, called and compiled:
python bench/short_gradients.py --out bench/results/cuda_short_gradients.json

The built-in has no fused kernel there and holds all scores. Called one by one both wait for the host, which has more to
do for ours; in a compiled function it has next to nothing to do. Milliseconds of a call of 32 queued ones, the median
of 20 rounds in turns, and the part of them until all are queued.
"""

from __future__ import annotations

import statistics
import time
from itertools import product

import mlx.core as mx
from on_gpu import write_results

from mlx_flash import patch
from mlx_flash.cli.benchmark import Case, arrays, built_in

CALLS, ROUNDS = 32, 20
HEAD_DIMS, SIZES = (192, 256), ((1, 256), (1, 512), (1, 1024), (4, 1024), (16, 1024), (1, 2048))


def round_of(function, drawn: list[mx.array]) -> tuple[float, float]:
    """(milliseconds of a call, those until it is queued) of CALLS calls."""
    mx.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        mx.async_eval(function(*drawn))
    queued = time.perf_counter() - start
    mx.synchronize()
    return (time.perf_counter() - start) / CALLS * 1e3, queued / CALLS * 1e3


def measured(head_dim: int, batch: int, length: int, compiled: bool) -> dict:
    case = Case(head_dim, length, backward=True)
    drawn = [mx.concatenate([array] * batch) for array in arrays(case)]
    mx.eval(drawn)

    def step(*qkv):
        return built_in(case, *qkv)

    functions = {}
    for name in ("built-in", "mlx_flash"):
        with patch(policy="always") as report:
            if name == "built-in":
                report.undo()
            functions[name] = mx.compile(lambda *qkv: step(*qkv)) if compiled else step
            mx.eval(functions[name](*drawn))
    times = {name: [] for name in functions}
    for turn in range(ROUNDS):
        for name in list(functions)[:: 1 if turn % 2 else -1]:
            with patch(policy="always") as report:
                if name == "built-in":
                    report.undo()
                mx.eval(functions[name](*drawn))
                times[name].append(round_of(functions[name], drawn))
    found = {name: [round(statistics.median(column), 4) for column in zip(*rounds)] for name, rounds in times.items()}
    (theirs, theirs_queued), (ours, ours_queued) = found["built-in"], found["mlx_flash"]
    return {
        "head_dim": head_dim, "batch": batch, "length": length, "compiled": compiled, "built_in_ms": theirs,
        "built_in_queued_ms": theirs_queued, "ms": ours, "queued_ms": ours_queued, "ratio": round(ours / theirs, 3),
    }  # fmt: skip


def main() -> None:
    cases = product((False, True), HEAD_DIMS, SIZES)
    write_results(__doc__, (measured(head_dim, *size, compiled) for compiled, head_dim, size in cases))


if __name__ == "__main__":
    main()
