"""Tokens a second of mlx-lm's own generation, as it is and under patch(): python bench/generation.py [--out FILE.json]

A tiny random Llama generates the same text in turns: with MLX's built-in attention, under `patch()` and under
`patch(policy="always")`. Nearly all of its time is the host's, so that a GPU shows what a token costs there beyond the
built-in. Without a GPU both policies serve every call in plain operations: that shows that the tokens are the same, and
what the reference costs beside MLX's own operations, but nothing of the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from mlx_flash import __version__
from mlx_flash.backends import current_backend
from mlx_flash.cli.console import progress
from mlx_flash.cli.token_bench import MOST_TURNS, Generation


def facts() -> dict:
    """Facts about the machine and the versions."""
    gpu = mx.device_info(mx.gpu) if mx.metal.is_available() or mx.cuda.is_available() else {}
    device = {name: gpu[name] for name in ("device_name", "architecture") if name in gpu}
    device = device or {"processor": platform.machine(), "cores": os.cpu_count()}
    return {"device": device, "backend": current_backend().name, "mlx": mx.__version__, "mlx_flash": __version__}


def run(cases: list[Generation], seconds: float) -> list[dict]:
    """The results of all cases, in the form of `python -m mlx_flash bench`."""
    results, console = [], Console(stderr=True)
    with progress("bench/generation.py", console, transient=True) as bars:
        for case in cases:
            bar = bars.add_task(case.name, total=MOST_TURNS, note="turns, or fewer where time is up")
            providers = case.measured(seconds, lambda bar=bar: bars.update(bar, advance=1))
            results.append({"name": case.name, "case": asdict(case), "providers": providers})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256, help="of a turn (default: 256)")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 16], help="of the models (default: 2 16)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model and provider (default: 20)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if min(options.tokens, *options.layers) < 1:
        parser.error("--tokens and --layers: expected numbers of at least 1")
    results = run([Generation(options.tokens, layers) for layers in options.layers], options.seconds)
    table = Table("case", "provider", "tokens/s", "ms of a token", "over the built-in", "same tokens")
    for result in results:
        for name, found in result["providers"].items():
            if "failure" in found:
                parser.error(found["failure"])
            figures = f"{found['tokens_per_s']:.0f}", f"{found['ms']:.3f}", f"{found['ratio']:.3f}"
            table.add_row(result["name"], name, *figures, "yes" if found["same"] else "no")
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps({**facts(), "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
