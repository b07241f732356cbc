"""What attention on neural accelerators does per tile, counted by the simulator: python bench/neural_counts.py

Ours beside MLX's own kernel for M5, whose headers come with its macOS wheel. Nothing is timed. The cycles are those of
one core with published figures: 512 multiply-adds of its accelerator and 4 instructions of 32 lanes a cycle. The 64
bytes of its cache a cycle were measured on M1 to M4; M5 may have more.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from metal_conformance import tensor_attention  # noqa: E402
from metal_conformance.headers import Unavailable  # noqa: E402
from tensor_rows import forget  # noqa: E402
from watched import chosen  # noqa: E402

from mlx_flash import attention, use_backend  # noqa: E402
from mlx_flash.kernels.config import MIXED  # noqa: E402
from mlx_flash.kernels.cost import ELEMENT_SLOTS  # noqa: E402
from mlx_flash.kernels.neural import NEURAL_TABLE  # noqa: E402
from mlx_flash.problem.kinds import FORWARD  # noqa: E402
from mlx_flash.simulator import mode, profile  # noqa: E402

HEAD_DIMS = (64, 96, 128, 256)
LENGTH = 128  # queries and keys: whole blocks of every row
MULTIPLY_ADDS, LANES, CACHE_BYTES = 512, 128, 64  # of a core a cycle
PART = 16**3  # multiply-adds of a counted part of a product


def counts(launch: dict, head_dim: int) -> dict:
    """Counts of one launch: parts of products of 16x16x16 and what each needs, and cycles of a tile of 16 x 32
    scores."""
    parts = launch["tensor_matmuls"]
    loaded = sum(buffer["loaded"] for buffer in launch["buffers"].values())
    tiles = LENGTH / 16 * (LENGTH / 32)
    softmaxes = round(launch["exp2"] / LENGTH**2)  # twice where two simdgroups share the columns of the head dimension
    return {
        "kernel": launch["kernel"].split("_float16")[0].removeprefix("flash_").split("<")[0],
        "products": parts,
        "exponentials_per_product": round(launch["exp2"] / parts, 2),
        "bytes_per_product": round(loaded / parts, 1),
        "cycles": {
            "products": round(parts / tiles * PART / MULTIPLY_ADDS, 1),
            "softmax": round(ELEMENT_SLOTS * 16 * 32 / LANES * softmaxes, 1),
            "reads": round(loaded / tiles / CACHE_BYTES, 1),
        },
    }


@contextmanager
def rows_of(simdgroup_rows: int):
    """Inside the block a simdgroup of the forward kernel owns this many rows."""
    key = (FORWARD, MIXED, "nax")
    row = replace(NEURAL_TABLE[key][0], traversal=32, simdgroup_rows=simdgroup_rows)
    with patch.dict(NEURAL_TABLE, {key: (row, *NEURAL_TABLE[key][1:])}):
        forget()
        yield
    forget()


def ours(head_dim: int) -> list[dict]:
    q, k, v = (mx.random.normal((1, 1, LENGTH, head_dim)).astype(mx.float16) for _ in range(3))
    with mode("check"), use_backend("simulator", "apple10") as backend, profile() as counted:
        family = replace(backend.family, separate_delta=0)  # as for long rows: what delta reads is not dQ's
        with chosen(replace(backend, family=family)):
            mx.eval(mx.grad(lambda *qkv: attention(*qkv).astype(mx.float32).sum(), (0, 1, 2))(q, k, v))
    return [counts(launch, head_dim) for launch in counted.launches if launch["tensor_matmuls"]]


def of_mlx(head_dim: int) -> dict:
    with mode("check"), profile() as counted:
        tensor_attention.run(head_dim, mx.float16, "no", LENGTH, LENGTH, heads=1)
    return counts(counted.launches[0], head_dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="a JSON file to write")
    arguments, found = parser.parse_args(), []
    for head_dim in HEAD_DIMS:
        found += [{"head_dim": head_dim, "whose": "ours", **one} for one in ours(head_dim)]
        try:
            found.append({"head_dim": head_dim, "whose": "MLX", **of_mlx(head_dim)})
        except Unavailable as reason:
            print(reason, file=sys.stderr)
    with rows_of(32):
        found.append({"head_dim": 64, "whose": "ours, 32 rows a simdgroup", **ours(64)[0]})
    table = Table("D", "whose", "kernel", "products", "exp2 each", "bytes each", "cycles: products", "softmax", "reads")
    for one in found:
        numbers = [one["products"], one["exponentials_per_product"], one["bytes_per_product"], *one["cycles"].values()]
        table.add_row(str(one["head_dim"]), one["whose"], one["kernel"], *map(str, numbers))
    Console().print(table)
    if arguments.out:
        result = {"mlx": mx.__version__, "length": LENGTH, "counts": found}
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
