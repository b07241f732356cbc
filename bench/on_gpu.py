"""What scripts that measure on a GPU share: one option, and a file of JSON that is written after every result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx

from mlx_flash import __version__
from mlx_flash.backends import current_backend


def write_results(description: str, results: Iterable[dict]) -> None:
    """Prints `results`, which are measured as they are asked for, and writes them to the file that --out names, beside
    the machine and the versions. Without a GPU the script ends with a sentence."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file of JSON")
    out = parser.parse_args().out
    if not current_backend().gpu:
        parser.error("there is no GPU here: run it on a Mac or with MLX for CUDA")
    device = {name: mx.device_info(mx.gpu).get(name) for name in ("device_name", "architecture")}
    told = {"device": device, "mlx": mx.__version__, "mlx_flash": __version__, "results": []}
    for one in results:
        told["results"].append(one)
        print(json.dumps(one), flush=True)
        if out:
            out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
