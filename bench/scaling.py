"""Memory, work and errors over the size of a problem: python bench/scaling.py --out bench/results/scaling.json

memory: bytes beyond the operands of one call with 8 heads of 64 columns in float16, from the launches that attention
plans; of operations that keep all scores in memory; and of the built-in's fused forward. work: 8x8 tiles of S that the
forward kernel of an M1 visits, counted from its blocks. error: of float16 results against float64, as a part of their
largest magnitude, where the scores grow; the kernels run on the simulator. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_flash import __version__, attention, explain, use_backend
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
    told = explain(head_dim=D, heads=HEADS, length=length, dtype="float16", family=FAMILY, backend="metal", causal=True)
    kernels = {kernel.name: kernel.output_bytes for kernel in told.kernels}
    output, scores = HEADS * length * D * 2, HEADS * length**2
    return {
        "forward": kernels["forward"],
        "forward and backward": sum(kernels.values()),
        "built-in, fused forward": output,
        "unfused forward: scores and weights in float16": output + 2 * 2 * scores,
        "unfused forward and backward": 4 * output + 4 * 2 * scores,
    }


def tiles(length: int, before: int, after: int, segment: int | None = None) -> int:
    """8x8 tiles that blocks of queries visit, of keys from `before` a query to `after` it. One read serves WIDE
    fragments, which share every group of 8 * WIDE keys: of one that is not full all are visited past six keys.
    `segment`: a multiple of the kernel's blocks."""
    row, count = lookup(FORWARD, "float16", FAMILIES[FAMILY], D), 0
    for first in range(0, length, row.parallel):
        begin, end = max(0, first - before), min(length, first + row.parallel + after)
        if segment:
            begin, end = max(begin, first // segment * segment), min(end, (first // segment + 1) * segment)
        whole, rest = divmod((end - begin) % row.traversal, 8 * WIDE)
        fragments = (end - begin) // row.traversal * (row.traversal // 8) + whole * WIDE + min(WIDE, -(-rest // 2))
        count += row.parallel // 8 * fragments
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
    options = parser.parse_args()
    told = {
        "mlx": mx.__version__, "mlx_flash": __version__, "family": FAMILY, "heads": HEADS, "head_dim": D,
        "memory": {length: memory(length) for length in LENGTHS}, "work": {length: work(length) for length in LENGTHS},
        "error": {magnitude: error(magnitude) for magnitude in MAGNITUDES},
    }  # fmt: skip
    text = json.dumps(told, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
