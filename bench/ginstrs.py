"""Throughput in metal-flash-attention's unit: python bench/ginstrs.py --out bench/results/NAME.jsonl

GINSTRS are (2 D + 5) N^2 instructions a head of the forward pass, (3 D + 5) N^2 of dQ and (4 D + 5) N^2 of dK and dV,
in units of 10^9 a second. On a GPU every call is timed beside MLX's built-in attention, in turns, and every kernel
alone; the roofline is the chip's peak where it is known. The simulator has no clock. It counts the work of every kernel
instead: 8x8x8 products, their share of every pair of query and key, and the bytes of device memory that a product
costs, beside MLX's own forward kernel for Apple GPUs, whose headers come with its macOS wheel.

One line of JSON a measurement, with machine and versions, written at once: what the file holds of this machine and
these versions is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import mlx.core as mx
from rich.console import Console

from mlx_flash import __version__, use_backend
from mlx_flash.autodiff.operands import array_inputs
from mlx_flash.autodiff.vjp import attend
from mlx_flash.backends import current_backend, kernel_backend
from mlx_flash.cli.benchmark import Case, arrays, ours
from mlx_flash.cli.console import progress
from mlx_flash.cli.report.measures import instructions
from mlx_flash.cli.tune.measure import call_times, milliseconds
from mlx_flash.kernels.cost import CHIPS, LANES
from mlx_flash.kernels.plan import key_value_kinds
from mlx_flash.problem.kinds import BACKWARD_QUERY, DELTA, FORWARD, KINDS, KernelKind
from mlx_flash.problem.problem import Signature
from mlx_flash.problem.variants import Variants
from mlx_flash.simulator import mode, profile

HEAD_DIMS, DTYPES = (32, 64, 80, 96, 128, 256), ("float32", "float16")
SIZES = {"metal": (8, 4096), "cuda": (16, 8192), "simulator": (1, 256)}  # heads and length
FRAGMENT = 8**3  # multiplications of one product
# Dense multiply-adds of the tensor cores in units of 10^9 a second, by NVIDIA's data sheet; float32 as TF32.
NVIDIA_PEAKS = {"NVIDIA H200": {"float16": 494_700, "float32": 247_350}}
# Head dimensions of the forward kernel for Apple GPUs in MLX, but for 256: there it reads misaligned places.
STEEL = (64, 72, 80, 96, 128, 192)


def cases(name: str) -> list[Case]:
    """Dense and causal calls, without and with gradients."""
    heads, length = SIZES[name]
    head_dims = sorted({*HEAD_DIMS, *STEEL}) if name == "simulator" else HEAD_DIMS
    return [
        Case(head_dim, length, backward, causal, heads, heads, dtype=dtype)
        for backward in (False, True)
        for dtype in DTYPES
        for head_dim in head_dims
        for causal in (False, True)
    ]


def facts() -> dict:
    """The facts for which a measurement holds."""
    device = mx.device_info(mx.gpu) if mx.metal.is_available() or mx.cuda.is_available() else {}
    named = {name: device[name] for name in ("device_name", "architecture") if name in device}
    own = current_backend()
    versions = {"mlx": mx.__version__, "mlx_flash": __version__}
    return {"backend": own.name, "family": own.family and own.family.name, "device": named, **versions}


def peak(dtype: str) -> float | None:
    """GINSTRS of this chip if its multipliers never waited; None for a chip that is not known."""
    name = facts()["device"].get("device_name", "").removeprefix("Apple ")
    return CHIPS[name].peak if name in CHIPS else NVIDIA_PEAKS.get(name, {}).get(dtype)


def timed(case: Case) -> Iterator[dict]:
    """One line for each contender and for each of our kernels alone. A causal call has half of a dense one's work."""
    limit = peak(case.dtype)

    def line(provider: str, kernel: str, work: float, ms: float) -> dict:
        speed = work / (2 if case.causal else 1) / ms / 1e6
        share = {"roofline": round(speed / limit, 4)} if limit else {}
        return {"provider": provider, "kernel": kernel, "ms": round(ms, 5), "ginstrs": round(speed, 1), **share}

    for provider, ms in zip(("mlx_flash", "mx.fast"), call_times(case)):
        yield line(provider, "call", instructions(case), ms)
    for kind, ms in kernel_times(case):
        yield line("mlx_flash", kind.name, case.heads * case.length**2 * (kind.matmuls * case.head_dim + 5), ms)


def kernel_times(case: Case) -> Iterator[tuple[KernelKind, float]]:
    """Milliseconds of the forward kernel, or of those of the backward pass, by the tables' rows."""
    own = current_backend()
    variants = Variants(causal=case.causal)
    sizes = (case.heads, case.key_heads, case.head_dim, case.head_dim)
    signature = Signature(*sizes, case.dtype, case.head_dim**-0.5, variants)
    attention, found = attend(signature, (), own), dict(zip(("Q", "K", "V", "dO"), arrays(case)))
    found["O"], found["L"] = attention.run(FORWARD, *(found[name] for name in "QKV"))
    found["delta"] = attention.run(DELTA, found["dO"], found["O"])[0]
    mx.eval(found)
    for kind in (BACKWARD_QUERY, *key_value_kinds(signature, own.family)) if case.backward else (FORWARD,):
        inputs = [found[name] for name in array_inputs(kind)]
        run = partial(attention.run, kind, *inputs)
        mx.eval(run())
        yield kind, milliseconds(lambda run=run: mx.async_eval(run()))


def counted(case: Case) -> Iterator[dict]:
    """The work of the forward kernel and of MLX's, or of each kernel of the backward pass that multiplies matrices."""
    with mode("check"), profile() as profiled:
        mx.eval(ours(case, *arrays(case)))
    for launch in profiled.launches:
        if launch["matmuls"] and ("flash_forward" in launch["kernel"]) != case.backward:
            yield {"provider": "mlx_flash", **work_of(launch, case)}
    if not case.backward and case.head_dim in STEEL and current_backend().family.uses_threadgroup_memory:
        yield {"provider": "mx.fast", **work_of(steel_launch(case), case)}


def work_of(launch: dict, case: Case) -> dict:
    """Products of one launch and their share of every pair of query and key; a product's bytes of device memory, and
    reads of a lane from there and from threadgroup memory."""
    name = launch["kernel"].removeprefix("flash_").split("_float")[0].split("<")[0]
    products = KINDS.get(name, FORWARD).matmuls  # MLX's kernel has a name of its own
    dense = case.heads * case.length**2 * case.head_dim * products / FRAGMENT
    count = launch["matmuls"]
    moved = {way: round(launch[way]["device"] / count, 3) for way in ("loaded", "stored")}
    moved |= {f"{space}_reads": round(launch["reads"][space] / count / LANES, 3) for space in ("device", "threadgroup")}
    return {"kernel": name, "products": count, "of_dense": round(count / dense, 4), **moved}


def steel_launch(case: Case) -> dict:
    """MLX's forward kernel with its own block sizes, on the simulator."""
    support = str(Path(__file__).parents[1] / "tests" / "support")
    if support not in sys.path:
        sys.path.insert(0, support)
    from metal_conformance.attention import block_sizes, run_steel

    dtype = getattr(mx, case.dtype)
    blocks, mask = block_sizes(case.head_dim, dtype), "causal" if case.causal else "no"
    with mode("check"), profile() as profiled:
        run_steel(case.head_dim, dtype, mask, blocks, case.length, case.length, heads=case.heads)
    return profiled.launches[0]


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


def run(chosen: list[Case], out: Path | None) -> None:
    measure, done = counted if current_backend().name == "simulator" else timed, kept(out)
    with progress("bench/ginstrs.py", Console(stderr=True)) as bars:
        bar = bars.add_task("ginstrs", total=len(chosen), note="")
        for case in chosen:
            bars.update(bar, note=case.name)
            if case.name not in done:
                told = {name: value for name, value in asdict(case).items() if value is not None}
                lines = [{"name": case.name, **told, **facts(), **found} for found in measure(case)]
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
