"""The simulator runs where the locale knows ASCII alone: characters beyond it in a folder's name and in a text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """import mlx.core as mx
from mlx_flash.simulator import metal_kernel
kernel = metal_kernel("plain", [], ["y"], bytes.fromhex({body!r}).decode("utf-8"))
one = (1, 1, 1)
print(kernel(inputs=[], grid=one, threadgroup=one, output_shapes=[(1,)], output_dtypes=[mx.int32])[0].item())
"""


def run(body: str, cache: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8",
        "MLX_FLASH_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM.format(body=body.encode("utf-8").hex())]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize("folder", ["café", "plain"])
def test_a_kernel_is_built_and_runs(folder, tmp_path):
    done = run("y[0] = 7; // é", tmp_path / folder)
    assert done.stdout.strip() == "7", done.stderr


def test_what_the_compiler_says_is_shown(tmp_path):
    done = run("y[0] = missing; // é", tmp_path / "café")
    assert "undeclared identifier 'missing'" in done.stderr, done.stderr
