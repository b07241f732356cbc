"""How fast the simulator runs the kernels, and what they count: python bench/simulator.py [--out FILE.json]

Fast and check mode are measured in turns, so that a noisy machine slows both; medians and ratios are what to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_flash import attention, use_backend
from mlx_flash.simulator import mode, profile

CASES = (
    # name, (B, H, N, D), dtype, causal
    ("one head, N=512, D=64, float32", (1, 1, 512, 64), mx.float32, False),
    ("8 heads, N=1024, D=64, float16, causal", (1, 8, 1024, 64), mx.float16, True),
)
FAMILIES, MODES, REPEATS = ("apple7", "apple9"), ("fast", "check"), 7


def seconds(call) -> float:
    start = time.perf_counter()
    mx.eval(call())
    return time.perf_counter() - start


def measure(shape, dtype, causal, family) -> dict:
    """Medians of one case on one family, the compile times of a cold cache, and the counted matmuls."""
    q, k, v = (mx.random.normal(shape).astype(dtype) for _ in range(3))
    mx.eval(q, k, v)

    def call():
        return attention(q, k, v, causal=causal)

    times, first = {name: [] for name in MODES}, {}
    with use_backend("simulator", family):
        for name in MODES:
            with mode(name):
                first[name] = seconds(call)
        for _ in range(REPEATS):
            for name in MODES:
                with mode(name):
                    times[name].append(seconds(call))
        with mode("fast"), profile() as counted:
            mx.eval(call())
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [check / fast for fast, check in zip(times["fast"], times["check"])]
    return {
        "fast_s": medians["fast"],
        "check_s": medians["check"],
        "check_over_fast": statistics.median(ratios),
        "first_call_s": first,
        "matmuls": counted.matmuls,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MLX_FLASH_CACHE"] = cache  # cold: the first call of each case compiles
        todo = [(case, family) for case in CASES for family in FAMILIES]
        results = [
            {"case": name, "family": family, **measure(shape, dtype, causal, family)}
            for (name, shape, dtype, causal), family in track(todo, "measuring")
        ]
    table = Table("case", "family", "fast", "check", "check / fast", "first call", "8x8x8 matmuls")
    for row in results:
        table.add_row(
            row["case"], row["family"], f"{row['fast_s'] * 1e3:.0f} ms", f"{row['check_s'] * 1e3:.0f} ms",
            f"{row['check_over_fast']:.1f}", f"{row['first_call_s']['fast']:.2f} s", str(row["matmuls"]),
        )  # fmt: skip
    Console().print(table)
    if out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "mlx": mx.__version__}
        out.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
