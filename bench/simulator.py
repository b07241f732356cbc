"""How fast the simulator runs the kernels, and what they count: python bench/simulator.py [--out FILE.json]

Fast and check mode are measured in turns, so that a noisy machine slows both; medians and ratios are what to quote.

With --against CHECKOUT --name COMMIT (bench/results/simulator_before.json): processor seconds of forward passes and of
gradients there and here, in turns, which other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
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
COMPARED = (("float32", 64, 256, False), ("float16", 64, 512, True), ("float16", 128, 256, False))
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


def processor_seconds() -> dict[str, float]:
    """Processor seconds of calls with two heads, the least of five each. Other versions of the package run this too."""
    found = {}
    for dtype, head_dim, length, causal in COMPARED:
        drawn = [mx.random.normal((1, 2, length, head_dim)).astype(getattr(mx, dtype)) for _ in range(4)]
        mx.eval(drawn)
        calls = {
            "forward": lambda q, k, v, d_o, causal=causal: attention(q, k, v, causal=causal),
            "with gradients": lambda *x, causal=causal: mx.vjp(lambda *y: attention(*y, causal=causal), x[:3], x[3:]),
        }
        for family in FAMILIES:
            for name in MODES:
                for kind, call in calls.items():
                    with use_backend("simulator", family), mode(name):
                        mx.eval(call(*drawn))
                        times = [spent(call, drawn) for _ in range(5)]
                    found[f"{dtype} D={head_dim} N={length}, {kind}, {family}, {name}"] = round(min(times), 4)
    return found


def spent(call, drawn) -> float:
    start = time.process_time()
    mx.eval(call(*drawn))
    return time.process_time() - start


def compared(checkout: Path) -> dict[str, dict[str, float]]:
    """For each case the least seconds of two rounds, in the other checkout and in this one."""
    trees, rounds = {"before": checkout, "now": Path(__file__).parents[1]}, []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            found = {}
            for name, tree in trees.items():
                own = {"PYTHONPATH": str(tree.resolve()), "MLX_FLASH_CACHE": f"{cache}/{name}"}
                command = [sys.executable, str(Path(__file__).resolve()), "--processor"]
                done = subprocess.run(command, env=os.environ | own, cwd=cache, stdout=subprocess.PIPE, check=True)
                found[name] = json.loads(done.stdout)
            rounds.append(found)
    return {case: {name: min(one[name][case] for one in rounds) for name in trees} for case in rounds[0]["now"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="instead: compare with another version")
    parser.add_argument("--name", help="the name of that version")
    parser.add_argument("--processor", action="store_true", help=argparse.SUPPRESS)  # for the processes of --against
    options = parser.parse_args()
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "mlx": mx.__version__}
    if options.processor:
        print(json.dumps(processor_seconds()))
    elif options.against:
        write(options.out, {"machine": machine, "before": options.name, "results": compared(options.against)})
    else:
        measured(options.out, machine)


def write(out: Path | None, told: dict) -> None:
    text = json.dumps(told, indent=2) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text, end="")


def measured(out: Path | None, machine: dict) -> None:
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
        write(out, {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
