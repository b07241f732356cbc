"""Throughput in metal-flash-attention's unit: python bench/ginstrs.py --out bench/results/NAME.jsonl

GINSTRS are (2 D + 5) N^2 instructions a head of the forward pass, (3 D + 5) N^2 of dQ and (4 D + 5) N^2 of dK and dV,
in units of 10^9 a second. On a GPU every call is timed beside MLX's built-in attention, in turns, and the roofline is
the chip's peak in cost.py, where that knows the chip. On the simulator, which has no clock, the work is counted: 8x8x8
products over those of a dense call.

One line of JSON a measurement, with machine and versions, written at once: what the file holds of this machine and
these versions is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from rich.console import Console

from mlx_flash import __version__, use_backend
from mlx_flash.backends import current_backend, kernel_backend
from mlx_flash.cli.benchmark import Case, arrays, ours
from mlx_flash.cli.console import progress
from mlx_flash.cli.report.measures import instructions
from mlx_flash.cli.tune.measure import call_times
from mlx_flash.kernels.cost import CHIPS
from mlx_flash.simulator import mode, profile

HEAD_DIMS, DTYPES = (32, 64, 96, 128, 256), ("float32", "float16")
SIZES = {"metal": (8, 4096), "cuda": (16, 8192), "simulator": (1, 256)}  # heads and length
FRAGMENT = 8**3  # multiplications of one product


def cases(name: str) -> list[Case]:
    """Dense and causal calls, without and with gradients."""
    heads, length = SIZES[name]
    return [
        Case(head_dim, length, backward, causal, heads, heads, dtype=dtype)
        for backward in (False, True)
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for causal in (False, True)
    ]


def facts() -> dict:
    """The facts for which a measurement holds."""
    device = mx.device_info(mx.gpu) if mx.metal.is_available() or mx.cuda.is_available() else {}
    named = {name: device[name] for name in ("device_name", "architecture") if name in device}
    return {"backend": current_backend().name, "device": named, "mlx": mx.__version__, "mlx_flash": __version__}


def peak() -> float | None:
    """GINSTRS of this chip if its multipliers never waited; None for a chip that the model does not know."""
    name = facts()["device"].get("device_name", "").removeprefix("Apple ")
    return CHIPS[name].peak if name in CHIPS else None


def timed(case: Case) -> Iterator[dict]:
    """One line for each contender. The work of a causal call is half of a dense one's."""
    work, limit = instructions(case) / (2 if case.causal else 1), peak()
    for provider, ms in zip(("mlx_flash", "mx.fast"), call_times(case)):
        speed = work / ms / 1e6
        share = {"roofline": round(speed / limit, 4)} if limit else {}
        yield {"provider": provider, "ms": round(ms, 5), "ginstrs": round(speed, 1), **share}


def counted(case: Case) -> Iterator[dict]:
    """Products of all kernels of a call, and what share that is of every pair of query and key."""
    with mode("fast"), profile() as profiled:
        mx.eval(ours(case, *arrays(case)))
    dense = case.heads * case.length**2 * case.head_dim * (9 if case.backward else 2)  # 2 forward, 3 of dQ, 4 of dK, dV
    yield {
        "provider": "mlx_flash",
        "products": profiled.matmuls,
        "of_dense": round(profiled.matmuls * FRAGMENT / dense, 4),
    }


def kept(path: Path | None) -> set[str]:
    """Names of the cases in the file that are of this machine and these versions; lines that are damaged count not."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
        try:
            one = json.loads(line)
            if all(one.get(name) == fact for name, fact in facts().items()):
                found.add(one["name"])
        except (ValueError, KeyError, AttributeError):
            continue
    return found


def name_of(case: Case) -> str:
    return f"{case.name} {case.dtype}"


def run(chosen: list[Case], out: Path | None) -> None:
    measure, done = counted if current_backend().name == "simulator" else timed, kept(out)
    with progress("bench/ginstrs.py", Console(stderr=True)) as bars:
        bar = bars.add_task("ginstrs", total=len(chosen), note="")
        for case in chosen:
            bars.update(bar, note=name_of(case))
            if name_of(case) not in done:
                lines = [{"name": name_of(case), **asdict(case), **facts(), **found} for found in measure(case)]
                text = "".join(json.dumps(line) + "\n" for line in lines)
                if out:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(text)
                else:
                    print(text, end="", flush=True)
            bars.update(bar, advance=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file of JSON lines that grows (default: they are printed)")
    parser.add_argument("--family", help="of the simulator, which counts where there is no GPU")
    options = parser.parse_args()
    if kernel_backend() == "simulator" or options.family:
        use_backend("simulator", options.family)
    run(cases(current_backend().name), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
