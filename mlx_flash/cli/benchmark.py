"""The bench command: attention on a GPU beside that of MLX and, on NVIDIA, of torch.

Every case runs in turn through all providers in one process (torch too, where it is installed). Reported are the median
time of a call with several calls queued, as in a model, the latency of one synchronised call, TFLOP/s of the useful
work, and the memory a call takes beyond its inputs. Errors are measured against float64 on a smaller problem.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from dataclasses import asdict, dataclass

import mlx.core as mx

from ..api import attention
from ..backends import current_backend
from ..common.errors import CommandError, need
from .accuracy.oracle import exact_tensors, float64
from .console import save, write
from .mask_bench import mask_cases
from .token_bench import token_cases

CALLS = 8  # queued without waiting, so that the host prepares launches while the GPU computes, as in a model


@dataclass(frozen=True)
class Case:
    """Self-attention with batch 1. `window`: how many keys a query sees, the last one at its own position.
    `segment`: the length of the sequences in a row. `queries`: their number where it differs from the keys'."""

    head_dim: int
    length: int
    backward: bool = False
    causal: bool = True
    heads: int = 16
    key_heads: int = 16
    window: int | None = None
    segment: int | None = None
    dtype: str = "bfloat16"
    queries: int | None = None

    @property
    def name(self) -> str:
        kind = "decode" if self.queries else "fwd+bwd" if self.backward else "fwd"
        facts = [kind, f"D={self.head_dim}", f"N={self.length}"]
        facts += [] if self.queries else ["causal" if self.causal else "dense"]
        facts += [f"Hk={self.key_heads}"] if self.key_heads < 16 else []
        facts += [f"window={self.window}"] if self.window else []
        facts += [self.dtype] if self.dtype != "bfloat16" else []
        return " ".join(facts + ([f"segments={self.segment}"] if self.segment else []))

    @property
    def flops(self) -> float:
        """Useful work: two matrix products forward and five backward, over the visible pairs of query and key."""
        n, reach = self.length, min(self.window or self.length, self.segment or self.length)
        seen = reach * n - reach * (reach - 1) / 2 if self.window else n * reach / 2
        pairs = seen if self.causal else n * (self.queries or n)
        return 2 * self.heads * pairs * self.head_dim * (7 if self.backward else 2)


def cases() -> list[Case]:
    found = []
    for backward in (False, True):
        found += [Case(d, n, backward) for d in (64, 96, 128, 192, 256) for n in (1024, 4096, 16384)]
        found += [Case(d, 4097, backward) for d in (64, 128, 256)]
        found += [Case(d, 4096, backward, causal=False) for d in (64, 128, 256, 512)]
        found += [Case(128, 4096, backward, causal=False, dtype="float32")]
        found += [Case(128, 65536, backward), Case(128, 16384, backward, key_heads=4)]
        found += [Case(128, 16384, backward, window=1024), Case(128, 16384, backward, segment=2048)]
    found += [Case(128, n, causal=False, heads=32, key_heads=8, queries=1) for n in (4096, 32768, 131072)]
    return found


def ours(case: Case, q, k, v, d_o):
    options = {"causal": case.causal}
    if case.window:
        options["window"] = (case.window - 1, None)
    if case.segment:
        ids = mx.arange(case.length) // case.segment
        options["segments"] = (ids, ids)
    return differentiated(case, lambda q, k, v: attention(q, k, v, **options), q, k, v, d_o)


def built_in(case: Case, q, k, v, d_o):
    mask = "causal" if case.causal else None
    if case.window or case.segment:
        i = mx.arange(case.length)
        before = i[:, None] - i[None]
        mask = (before >= 0) & (before < (case.window or case.length))
        mask = mask & ((i // case.segment)[:, None] == (i // case.segment)[None]) if case.segment else mask
    scale = case.head_dim**-0.5

    def call(q, k, v):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    return differentiated(case, call, q, k, v, d_o)


def differentiated(case: Case, function, q, k, v, d_o):
    if not case.backward:
        return [function(q, k, v)]
    outputs, gradients = mx.vjp(function, [q, k, v], [d_o])
    return [*outputs, *gradients]


def arrays(case: Case, length: int | None = None) -> list[mx.array]:
    n = length or case.length
    query, key = (case.heads, case.queries or n), (case.key_heads, n)
    shapes = [(1, *sizes, case.head_dim) for sizes in (query, key, key, query)]
    keys = mx.random.split(mx.random.key(0), 4)
    drawn = [mx.random.normal(shape, key=key).astype(getattr(mx, case.dtype)) for shape, key in zip(shapes, keys)]
    mx.eval(drawn)
    return drawn


def rounds(call, wait, seconds: float, calls: int) -> float:
    """Median milliseconds of a call over rounds of `calls` calls; `call` queues one, `wait` waits for all of them."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 50):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        times.append((time.perf_counter() - start) / calls * 1e3)
    return round(statistics.median(times), 4)


def timed(case: Case, provider, drawn, seconds: float) -> dict:
    """Median milliseconds of a queued call, the latency of a single one, TFLOP/s, and bytes beyond the inputs."""
    mx.eval(provider(case, *drawn))
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(provider(case, *drawn))
    mx.synchronize()
    peak = mx.get_peak_memory() - before

    def call():
        mx.async_eval(provider(case, *drawn))

    milliseconds = rounds(call, mx.synchronize, seconds, CALLS)
    latency = rounds(call, mx.synchronize, seconds / 4, 1)
    tflops = round(case.flops / milliseconds / 1e9, 1)
    return {"ms": milliseconds, "latency_ms": latency, "tflops": tflops, "bytes": peak}


def torch_times(case: Case, seconds: float) -> dict:
    """torch's fused attention with each of its two libraries; empty where torch is missing or lacks the case."""
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return {}
    if case.window or case.segment or case.key_heads != case.heads:
        return {}
    shape = (1, case.heads, case.length, case.head_dim)
    q, k, v, d_o = (torch.randn(shape, device="cuda", dtype=getattr(torch, case.dtype)) for _ in range(4))
    for array in (q, k, v):
        array.requires_grad_(case.backward)
    results, wait = {}, torch.cuda.synchronize
    for name, library in (("torch flash", SDPBackend.FLASH_ATTENTION), ("torch cuDNN", SDPBackend.CUDNN_ATTENTION)):

        def call(library=library):
            with sdpa_kernel(library):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=case.causal)
            return torch.autograd.grad(out, (q, k, v), d_o) if case.backward else out

        try:
            call()
            milliseconds = rounds(call, wait, seconds, CALLS)
            results[name] = {"ms": milliseconds, "latency_ms": rounds(call, wait, seconds / 4, 1)}
        except RuntimeError as error:
            results[name] = {"failure": str(error).splitlines()[0][:200]}
    return results


def errors(case: Case, length: int = 1000) -> dict:
    """Relative L2 errors of mlx_flash and of the built-in function against float64 (numpy), for each tensor."""
    import numpy as np

    small = Case(**{**asdict(case), "length": length, "heads": 2, "key_heads": 1, "backward": True})
    drawn = arrays(small)
    want = exact_tensors(*map(float64, drawn), small.causal)
    found = {}
    for name, provider in (("mlx_flash", ours), ("mx.fast", built_in)):
        got = provider(small, *drawn)
        found[name] = {
            tensor: float(np.linalg.norm(float64(mine) - right) / np.linalg.norm(right))
            for tensor, mine, right in zip(("O", "dQ", "dK", "dV"), got, want)
        }
    return found


def measured(case: Case, seconds: float) -> dict:
    drawn, results = arrays(case), {}
    for name, provider in (("mlx_flash", ours), ("mx.fast", built_in)):
        try:
            results[name] = timed(case, provider, drawn, seconds)
        except (RuntimeError, ValueError) as error:
            results[name] = {"failure": str(error).splitlines()[0][:200]}
        mx.clear_cache()
    del drawn
    mx.clear_cache()
    return results | torch_times(case, seconds)


def shown(result: dict) -> str:
    parts = []
    for name, figures in result["providers"].items():
        memory = f" {figures['bytes'] / 2**20:.0f} MiB" if "bytes" in figures else ""
        parts.append(f"{name} {figures.get('ms', figures.get('failure'))}{' ms' if 'ms' in figures else ''}{memory}")
    return f"{result['name']:40} " + " | ".join(parts)


def plot(results: list[dict], path: str) -> None:
    need("matplotlib", "bench --plot").use("Agg")
    import matplotlib.pyplot as plt

    served = [r for r in results if "ms" in r["providers"].get("mlx_flash", {}) and "backward" in r["case"]]
    served = [r for r in served if not r["case"]["queries"]]
    # Bars compare only at one length: the longest of those that many cases have.
    lengths = [r["case"]["length"] for r in served]
    length = max((n for n in lengths if 5 * lengths.count(n) >= len(lengths)), default=0)
    chosen = [r for r in served if r["case"]["length"] == length]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for axis, backward in zip(axes, (False, True)):
        rows = [r for r in chosen if r["case"]["backward"] == backward]
        names = list(dict.fromkeys(name for r in rows for name in r["providers"]))
        for place, name in enumerate(names):
            values = [r["providers"].get(name, {}).get("ms", float("nan")) for r in rows]
            axis.barh([y + 0.8 * place / len(names) for y in range(len(rows))], values, 0.8 / len(names), label=name)
        labels = [re.sub(rf"fwd(.bwd)? | N={length}| causal", "", r["name"]) for r in rows]
        axis.set_yticks([y + 0.3 for y in range(len(rows))], labels)
        axis.set(xscale="log", xlabel="milliseconds (logarithmic)")
        ticks = ("0.2", "0.5", "1", "2", "5", "10", "20", "50", "100")
        axis.set_xticks([float(tick) for tick in ticks], ticks)
        axis.xaxis.set_minor_formatter("")
        axis.set_xlim(float(ticks[0]), float(ticks[-1]))
        axis.set_title("forward and backward" if backward else "forward")
        axis.invert_yaxis()
        if rows:
            axis.legend()
    figure.suptitle(f"{length} queries and keys, causal unless dense, 16 heads, bfloat16")
    save(figure, "--plot", path, dpi=120)


def bench(only: str, seconds: float, out: str | None, picture: str | None) -> int:
    """Measures the cases whose name matches and prints each when it is done; returns the exit status."""
    try:
        chosen = [case for case in (*cases(), *mask_cases(), *token_cases()) if re.search(only, case.name)]
    except re.error as error:
        raise CommandError(f"--only: expected a regular expression, got {only!r} ({error})") from None
    backend = current_backend()
    if not backend.gpu:
        raise CommandError("there is no GPU here to measure: run it on a Mac or on a machine with MLX for CUDA")
    if not chosen:
        raise CommandError(f"--only: no case matches {only!r}; their names look like {cases()[0].name!r}")
    results = []
    for case in chosen:
        providers = measured(case, seconds) if isinstance(case, Case) else case.measured(seconds)
        results.append({"name": case.name, "case": asdict(case), "providers": providers})
        print(shown(results[-1]), flush=True)
        _write(out, results, {})  # after every case: what was measured outlives an interruption
    widths = sorted({case.head_dim for case in chosen if isinstance(case, Case)})
    accuracy = {str(d): errors(Case(d, 1000)) for d in widths}
    for d, found in accuracy.items():
        for name, tensors in found.items():
            figures = "  ".join(f"{tensor} {error:.1e}" for tensor, error in tensors.items())
            print(f"relative error D={d:4} {name:10} {figures}")
    _write(out, results, accuracy)
    if picture:
        plot(results, picture)
    return 0


def _write(out: str | None, results: list[dict], accuracy: dict) -> None:
    if not out:
        return
    facts = mx.device_info(mx.gpu)
    device = {name: facts[name] for name in ("device_name", "architecture", "memory_size") if name in facts}
    whole = {"device": device, "mlx": mx.__version__, "results": results, "relative_errors": accuracy}
    write(out, json.dumps(whole, indent=1))
