"""Memory, work and errors over the size of a problem: python bench/scaling.py --out bench/results/scaling.json

memory: bytes beyond the operands of one call with 8 heads of 64 columns in float16, from the launches that attention
plans; of operations that keep all scores in memory; and of the built-in's fused forward. work: 8x8 tiles of S that the
forward kernel of an M1 visits, counted from its blocks. error: of float16 results against float64, as a part of their
largest magnitude, where the scores grow; the kernels run on the simulator. Nothing is timed.

With --measured, on a GPU (bench/results/cuda_memory.json): the same memory as MLX's counters have it, ours and the
built-in's, beside what attention plans there.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_flash import __version__, attention, explain, use_backend
from mlx_flash.backends import current_backend
from mlx_flash.cli.accuracy.oracle import exact_tensors, float64
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup
from mlx_flash.problem.kinds import FORWARD

HEADS, D, FAMILY = 8, 64, "apple7"
LENGTHS = [1024 * 2**n for n in range(7)]  # to 65536
WINDOW, SEGMENT, WIDE = 1024, 2048, 4
MAGNITUDES = [1, 2, 4, 8, 16, 32]  # of q and k: logits grow with their square
ERROR_LENGTH = 128


def memory(length: int) -> dict[str, int]:
    output, scores = HEADS * length * D * 2, HEADS * length**2
    return {
        **{name.removeprefix("planned "): size for name, size in planned(length, FAMILY, "metal").items()},
        "built-in, fused forward": output,
        "unfused forward: scores and weights in float16": output + 2 * 2 * scores,
        "unfused forward and backward": 4 * output + 4 * 2 * scores,
    }


def planned(length: int, family: str, backend: str) -> dict[str, int]:
    """Bytes that the kernels of a causal call write."""
    facts = {"head_dim": D, "heads": HEADS, "dtype": "float16", "causal": True}
    told = explain(length=length, family=family, backend=backend, **facts)
    kernels = {kernel.name: kernel.output_bytes for kernel in told.kernels}
    return {"planned forward": kernels["forward"], "planned forward and backward": sum(kernels.values())}


def measured_memory(length: int) -> dict[str, int]:
    """Peak bytes beyond the operands of one causal call on this GPU, by MLX's counters, and the bytes that its kernels
    are planned to write."""
    own = current_backend()
    found = planned(length, own.family.name, own.name)
    calls = {"mlx_flash": partial(attention, causal=True, scale=D**-0.5)}
    calls["built-in"] = partial(mx.fast.scaled_dot_product_attention, mask="causal", scale=D**-0.5)
    for name, call in calls.items():
        found[f"{name}, forward"] = peak(length, lambda q, k, v, _, call=call: call(q, k, v))
        found[f"{name}, forward and backward"] = peak(length, lambda *x, call=call: mx.vjp(call, x[:3], x[3:]))
    return found


def peak(length: int, call) -> int:
    """The peak of a second call: the first one may make what later ones share."""
    keys = mx.random.split(mx.random.key(0), 4)
    drawn = [mx.random.normal((1, HEADS, length, D), key=key).astype(mx.float16) for key in keys]
    mx.eval(drawn, call(*drawn))
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(call(*drawn))
    mx.synchronize()
    return mx.get_peak_memory() - before


def tiles(length: int, before: int, after: int, segment: int | None = None) -> int:
    """8x8 tiles that simdgroups multiply, of keys from `before` the first query of a block to `after` a simdgroup's
    last. One read serves WIDE fragments, which share every group of 8 * WIDE keys: of one that is not full all are
    visited past six keys. `segment`: a multiple of the kernel's blocks."""
    row, count = lookup(FORWARD, "float16", FAMILIES[FAMILY], D), 0
    for first in range(0, length, row.simdgroup_rows):
        begin = max(0, first // row.parallel * row.parallel - before)
        end = min(length, first + row.simdgroup_rows + after)
        if segment:
            begin, end = max(begin, first // segment * segment), min(end, (first // segment + 1) * segment)
        whole, rest = divmod((end - begin) % row.traversal, 8 * WIDE)
        fragments = (end - begin) // row.traversal * (row.traversal // 8) + whole * WIDE + min(WIDE, -(-rest // 2))
        count += row.simdgroup_rows // 8 * fragments
    return count


def work(length: int) -> dict[str, int]:
    return {
        "dense": tiles(length, length, length),
        "causal": tiles(length, length, 0),
        f"causal, window {WINDOW}": tiles(length, WINDOW - 1, 0),
        f"causal, segments of {SEGMENT}": tiles(length, length, 0, SEGMENT),
    }


def error(magnitude: int) -> dict[str, float]:
    """Largest errors of O and of dQ, dK, dV: the kernels', and those of operations in float16."""
    keys = mx.random.split(mx.random.key(0), 4)
    drawn = [mx.random.normal((1, 1, ERROR_LENGTH, D), key=key) for key in keys]
    drawn = [(x * (magnitude if n < 2 else 1)).astype(mx.float16) for n, x in enumerate(drawn)]
    want = exact_tensors(*map(float64, drawn), True)

    def unfused(q, k, v):
        mask = mx.tril(mx.ones((ERROR_LENGTH, ERROR_LENGTH), mx.bool_))
        scores = mx.where(mask, (q * D**-0.5) @ k.swapaxes(-1, -2), mx.array(-mx.inf, q.dtype))
        return mx.softmax(scores, axis=-1) @ v

    found = {}
    with use_backend("simulator", FAMILY):
        for name, call in (("mlx_flash", lambda *x: attention(*x, causal=True)), ("unfused, float16", unfused)):
            outputs, gradients = mx.vjp(call, drawn[:3], drawn[3:])
            errors = [
                np.abs(float64(got) - right).max() / np.abs(right).max()
                for got, right in zip([*outputs, *gradients], want)
            ]
            found[f"{name}: O"], found[f"{name}: gradients"] = errors[0], max(errors[1:])
    return {name: float(value) for name, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file of JSON (default: it is printed)")
    parser.add_argument("--measured", action="store_true", help="instead: memory as this GPU's counters have it")
    options = parser.parse_args()
    told = {"mlx": mx.__version__, "mlx_flash": __version__, "heads": HEADS, "head_dim": D}
    if options.measured:
        told |= {"device": mx.device_info(mx.gpu)["device_name"], "family": current_backend().family.name}
        told["memory"] = {length: measured_memory(length) for length in LENGTHS}
    else:
        told |= {"family": FAMILY, "memory": {length: memory(length) for length in LENGTHS}}
        told["work"] = {length: work(length) for length in LENGTHS}
        told["error"] = {magnitude: error(magnitude) for magnitude in MAGNITUDES}
    text = json.dumps(told, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
