"""What patch() makes of the bench's cases on a GPU: python bench/policy.py --out bench/results/cuda_policy.json

Every case is MLX's built-in attention, called as a model would call it, without the patch, without it once more, and
with it, in turns: 32 calls queued (fewer where they take long), the median of 20 rounds of each. The policy is the
default, so that a case which the built-in serves faster should cost what it costs without the patch. The noise is how
far the two without the patch lie apart. Exit status 1 if a case is more than 3 % slower.

Kernels are compiled first, by several processes at once. Results are written after every case; a case that is in the
file already is not measured again, so that an interrupted run goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
from rich.console import Console

from mlx_flash import __version__, patch
from mlx_flash.backends import current_backend
from mlx_flash.cli.benchmark import Case, arrays, built_in, cases
from mlx_flash.cli.console import progress
from mlx_flash.cli.token_bench import TokenStep, token_cases
from mlx_flash.integrations.policy import Asked, decide

CALLS, ROUNDS, LEAST_ROUNDS, WARM_CALLS = 32, 20, 5, 8
KINDS = ("ms", "again_ms", "patched_ms")  # of rounds: without the patch twice, and with it
SLOWER = 1.03  # than without the patch: no case may be
WARM_LENGTH = 384  # lengths are no part of a kernel's text


def every_case() -> list[Case | TokenStep]:
    return [*cases(), *(case for case in token_cases() if isinstance(case, TokenStep))]


def attention_calls(case: Case):
    """A function that times this many queued calls of the case, in milliseconds for each."""
    drawn = arrays(case)

    def round_of(calls: int) -> float:
        mx.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            mx.async_eval(built_in(case, *drawn))
        mx.synchronize()
        return (time.perf_counter() - start) / calls * 1e3

    return round_of


def token_calls(case: TokenStep):
    """The same of a token's calls through all layers; their number is the case's own."""
    q, k, v = case.operands()
    scale = case.head_dim**-0.5

    def call(*qkv):
        return mx.fast.scaled_dot_product_attention(*qkv, scale=scale)

    return lambda _: case.round_of(call, q, k, v, case.keys)


def measured(case: Case | TokenStep, seconds: float) -> dict:
    """Median milliseconds of a call with and without the patch, and who served it."""
    round_of = attention_calls(case) if isinstance(case, Case) else token_calls(case)
    for kind in (nullcontext, patch):
        with kind() as report:
            round_of(1), round_of(1)
            once = round_of(1)
    calls = max(1, min(CALLS, int(seconds * 1e3 / (2 * ROUNDS * once))))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    end, turns = time.perf_counter() + len(KINDS) * seconds, 0
    while turns < LEAST_ROUNDS or (turns < ROUNDS and time.perf_counter() < end):
        first = turns % len(KINDS)
        for kind in KINDS[first:] + KINDS[:first]:
            # A model enters a patch once. Here all kinds of rounds follow its search of all modules, through which the
            # GPU idles and caches grow cold.
            with patch() as entered:
                if kind != "patched_ms":
                    entered.undo()
                round_of(min(calls, WARM_CALLS))
                times[kind].append(round_of(calls))
        turns += 1
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    rules = sorted({rule for _, rule in report.rules}) or sorted(report.built_in)
    return {kind: round(found, 4) for kind, found in medians.items()} | {
        "ratio": round(medians["patched_ms"] / medians["ms"], 4),
        "noise": round(abs(medians["again_ms"] / medians["ms"] - 1), 4),
        "served": "mlx_flash" if report.ours else "built-in", "rule": "; ".join(rules), "calls": calls, "rounds": turns,
    }  # fmt: skip


def is_ours(case: Case) -> bool:
    """Whether the rules of this GPU's family send the case to mlx_flash. Windows and segments are array masks here."""
    mask = "array" if case.window or case.segment else "causal" if case.causal else None
    asked = Asked(
        getattr(mx, case.dtype), case.head_dim, case.head_dim, case.queries or case.length, case.length,
        case.heads // case.key_heads, mask, training=case.backward,
    )  # fmt: skip
    return decide(None, current_backend().family, asked).ours


def warm(part: int, parts: int) -> None:
    """Compiles the kernels of every `parts`-th case that is served by kernels."""
    for case in list(filter(is_ours, cases()))[part::parts]:
        short = replace(case, length=min(case.length, WARM_LENGTH))
        with patch(policy="always"):
            mx.eval(built_in(short, *arrays(short)))


def compiled(processes: int) -> None:
    """Has all kernels compiled by this many processes."""
    command = [sys.executable, __file__, "--warm"]
    started = [subprocess.Popen([*command, f"{part}/{processes}"]) for part in range(processes)]
    for one in started:
        one.wait()


def facts() -> dict:
    device = mx.device_info(mx.gpu) if mx.metal.is_available() or mx.cuda.is_available() else {}
    named = {name: device[name] for name in ("device_name", "architecture") if name in device}
    return {"device": named, "mlx": mx.__version__, "mlx_flash": __version__, "calls": CALLS, "rounds": ROUNDS}


def kept(path: Path | None) -> dict:
    """The contents of the file if it is of this machine and these versions, otherwise empty."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        found = {}
    same = isinstance(found, dict) and all(found.get(name) == fact for name, fact in facts().items())
    return found if same else {**facts(), "results": []}


def run(chosen: list, out: Path | None, seconds: float, limit: float) -> list[dict]:
    """Measures what `out` does not hold yet, until `limit` seconds have passed; writes after every case."""
    told, end = kept(out), time.monotonic() + limit
    done = {result["name"] for result in told["results"]}
    console = Console(stderr=True)
    with progress("bench/policy.py", console) as bars:
        bar = bars.add_task("policy", total=len(chosen), note="")
        for case in chosen:
            bars.update(bar, note=case.name)
            if case.name not in done and time.monotonic() < end:
                told["results"].append({"name": case.name, "case": asdict(case)} | measured(case, seconds))
                mx.clear_cache()
                if out:
                    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            bars.update(bar, advance=1)
    return told["results"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file of JSON, which is continued if it is of this machine")
    parser.add_argument("--only", default="", help="a regular expression of names of cases")
    parser.add_argument("--seconds", type=float, default=0.8, help="for each case (default: 0.8)")
    parser.add_argument("--limit", type=float, default=70.0, help="seconds after which no case begins (default: 70)")
    parser.add_argument("--processes", type=int, default=12, help="that compile kernels at once (default: 12)")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        warm(*map(int, options.warm.split("/")))
        return 0
    if current_backend().name not in ("metal", "cuda"):
        parser.error("there is no GPU here, so that no policy chooses: run it on a Mac or with MLX for CUDA")
    compiled(options.processes)
    chosen = [case for case in every_case() if re.search(options.only, case.name)]
    results = run(chosen, options.out, options.seconds, options.limit)
    for result in results:
        times = f"{result['ms']:9.3f} {result['patched_ms']:9.3f} {result['ratio']:.3f}"
        print(f"{result['name']:40} {times} {result['served']}: {result['rule']}")
    missing, slower = len(chosen) - len(results), [result for result in results if result["ratio"] > SLOWER]
    print(f"{len(results)} cases, {len(slower)} slower by more than 3 %, {max(missing, 0)} not measured")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
