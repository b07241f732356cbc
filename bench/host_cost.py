"""What a call of attention costs the host before the GPU can start: python bench/host_cost.py [--out FILE.json]

A kernel object that launches nothing takes the place of mx.fast.metal_kernel's and notes when it is called. The time up
to there is the cost up to the launch; the whole call includes what wraps the outputs. The built-in function is timed in
turns with it, so that a noisy machine slows both; over a quantized cache that is mlx-lm's. Nothing is evaluated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import time
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from rich.console import Console
from rich.table import Table

from mlx_flash import attention, quantized_attention
from mlx_flash.backends import Backend
from mlx_flash.backends.metal import run_with
from mlx_flash.kernels.devices import FAMILIES

REPEATS, WARM = 5000, 200
SINKS, MASK = mx.zeros((8,), mx.float16), mx.ones((256, 256), mx.bool_)
QUANTIZED = {"group_size": 64, "bits": 4}
CASES = {  # queries, our options, the built-in's, whether the keys are quantized
    "plain": (256, {}, {}),
    "causal": (256, {"causal": True}, {"mask": "causal"}),
    "one query": (1, {}, {}),
    "bool mask": (256, {"mask": MASK}, {"mask": MASK}),
    "causal, sinks": (256, {"causal": True, "sinks": SINKS}, {"mask": "causal", "sinks": SINKS}),
    "window, softcap": (256, {"window": (64, 0), "softcap": 30.0}, None),
    "quantized, one query": (1, QUANTIZED, {"mask": None} | QUANTIZED, True),
    "quantized, causal": (256, {"causal": True} | QUANTIZED, {"mask": "causal"} | QUANTIZED, True),
}


class Stub:
    """A backend up to the launch: `launched` is when its kernel object was last called."""

    def __init__(self, family: str = "apple9"):
        self.launched = 0.0
        self.backend = Backend("metal", FAMILIES[family], self._run)
        self._outputs = lru_cache(self._outputs)
        self._compiled = lru_cache(lambda kernel: self._kernel)

    def _run(self, plan, inputs, stream):
        return run_with(self._compiled, plan, inputs, stream)

    def _kernel(self, *, output_shapes, output_dtypes, **_):
        self.launched = time.perf_counter()
        return self._outputs(output_shapes, output_dtypes)

    def _outputs(self, shapes, dtypes) -> list[mx.array]:
        return [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes)]

    def install(self) -> None:
        for name in ("attention", "quantized"):
            importlib.import_module(f"mlx_flash.{name}").current_backend = lambda: self.backend


def measure(stub: Stub, queries: int, ours: dict, theirs: dict | None, quantized: bool = False) -> dict:
    q = mx.zeros((1, 8, queries, 64), mx.float16)
    k = mx.zeros((1, 2, 256, 64), mx.float16)
    call, built_in = attention, mx.fast.scaled_dot_product_attention
    if quantized:
        k = mx.quantize(k, **QUANTIZED)
        call, built_in = quantized_attention, quantized_scaled_dot_product_attention
    mx.eval(q, k, MASK, SINKS)
    times = {"up_to_launch": [], "whole": [], "built_in": []}
    for _ in range(WARM + REPEATS):
        start = time.perf_counter()
        call(q, k, k, **ours)
        times["whole"].append(time.perf_counter() - start)
        times["up_to_launch"].append(stub.launched - start)
        if theirs is not None:
            start = time.perf_counter()
            built_in(q, k, k, scale=0.125, **theirs)
            times["built_in"].append(time.perf_counter() - start)
    kept = {name: values[WARM:] for name, values in times.items() if values}
    result = {f"{name}_us": round(1e6 * statistics.median(values), 2) for name, values in kept.items()}
    if theirs is not None:
        ratios = [a / b for a, b in zip(kept["up_to_launch"], kept["built_in"])]
        result["up_to_launch_over_built_in"] = round(statistics.median(ratios), 2)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    out = parser.parse_args().out
    stub = Stub()
    stub.install()
    results = [{"case": name, **measure(stub, *case)} for name, case in CASES.items()]
    table = Table("case", "up to the launch", "whole call", "built-in", "up to the launch / built-in")
    for row in results:
        built_in = f"{row['built_in_us']:.1f} us" if "built_in_us" in row else "-"
        ratio = f"{row['up_to_launch_over_built_in']:.2f}" if "built_in_us" in row else "-"
        table.add_row(row["case"], f"{row['up_to_launch_us']:.1f} us", f"{row['whole_us']:.1f} us", built_in, ratio)
    Console().print(table)
    if out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "mlx": mx.__version__}
        out.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
