"""What a call of attention costs the host before the GPU can start: python bench/host_cost.py [--out FILE.json]

A kernel object that launches nothing takes the place of mx.fast.metal_kernel's and notes when it is called. The time up
to there is the cost up to the launch; the whole call includes what wraps the outputs. The built-in function is timed in
turns with it, so that a noisy machine slows both; over a quantized cache that is mlx-lm's. Nothing is evaluated. In
the growing cases the cache has one key more with every call, as in generation.

A call with its gradient is timed as a whole: as it is, under transforms.installed(), and in the built-in's place under
patch(), as are calls without one there. On a CPU the built-in's own gradient is composed, and not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from rich.console import Console
from rich.table import Table

from mlx_flash import api, attention, backends, patch, quantized_attention
from mlx_flash.backends import Backend
from mlx_flash.backends.metal import run_with
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.transforms import installed

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
    "one query, growing cache": (1, {}, {}, False, True),
    "quantized, one query": (1, QUANTIZED, {"mask": None} | QUANTIZED, True),
    "quantized, causal": (256, {"causal": True} | QUANTIZED, {"mask": "causal"} | QUANTIZED, True),
}


PATCHED = {"patched, 1024 queries": 1024, "patched, one query": 1}
ROUNDS, CALLS = 100, 40


class Stub:
    """A backend up to the launch: `launched` is when its kernel object was last called."""

    def __init__(self, family: str = "apple9"):
        self.launched = 0.0
        self.backend = Backend("metal", FAMILIES[family], self._run, decodes=True, dequantizes=True)
        self._outputs = {}

    def _run(self, kind, plan, problem, inputs, stream):
        launch = plan.launch(problem)
        return launch.results(run_with(self._kernel, launch, inputs, stream), stream)

    def _kernel(self, *, output_shapes, output_dtypes, **_):
        self.launched = time.perf_counter()
        if output_shapes not in self._outputs:
            made = [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]
            self._outputs[output_shapes] = made
        return self._outputs[output_shapes]

    @contextmanager
    def chosen(self):
        token = backends._choices.set((*backends._choices.get(), (None, self.backend, True)))
        try:
            yield
        finally:
            backends._choices.reset(token)

    def install(self) -> None:
        api.current_backend = lambda *_: self.backend


def measure(
    stub: Stub, queries: int, ours: dict, theirs: dict | None, quantized: bool = False, growing: bool = False
) -> dict:
    q = mx.zeros((1, 8, queries, 64), mx.float16)
    k = mx.zeros((1, 2, 256, 64), mx.float16)
    call, built_in = attention, mx.fast.scaled_dot_product_attention
    if quantized:
        k = mx.quantize(k, **QUANTIZED)
        call, built_in = quantized_attention, quantized_scaled_dot_product_attention
    cache = mx.zeros((1, 2, 256 + WARM + REPEATS, 64), mx.float16)
    mx.eval(q, k, MASK, SINKS, cache)
    times = {"up_to_launch": [], "whole": [], "built_in": []}
    for token in range(WARM + REPEATS):
        k = cache[:, :, : 256 + token] if growing else k
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


def built_in(q, k, v):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask="causal" if q.shape[2] > 1 else None)


def in_turns(functions: dict) -> dict:
    """Microseconds of a call of each (function, context), the lowest tenth of the rounds."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, (function, context) in functions.items():
            with context():
                for _ in range(CALLS // 4):
                    function()
                start = time.perf_counter()
                for _ in range(CALLS):
                    function()
                times[name].append((time.perf_counter() - start) / CALLS)
    return {f"{name}_us": round(1e6 * statistics.quantiles(found, n=10)[0], 2) for name, found in times.items()}


def measure_training() -> list[dict]:
    """Calls with gradients and calls under patch(), for which a backend has to be chosen by name."""
    q, k = mx.zeros((1, 8, 1024, 64), mx.float16), mx.zeros((1, 2, 1024, 64), mx.float16)
    mx.eval(q, k)

    def gradient(function):
        return lambda: mx.vjp(function, [q, k, k], [q])

    always = partial(patch, policy="always")
    own = gradient(lambda *qkv: attention(*qkv, causal=True))
    ways = {"whole": (own, nullcontext), "installed": (own, installed), "patched": (gradient(built_in), always)}
    found = [{"case": "gradient, 1024 queries", **in_turns(ways)}]
    for name, queries in PATCHED.items():
        one = q[:, :, :queries]
        mx.eval(one)
        found.append({"case": name, **in_turns({"patched": (partial(built_in, one, k, k), always)})})
    return found


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
    with stub.chosen():
        results += measure_training()
    Console().print(*results[len(CASES) :], sep="\n")
    if out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "mlx": mx.__version__}
        out.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
