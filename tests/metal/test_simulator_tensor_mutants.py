"""Would the tests of tensor operations notice? Each mistake is made in a copy of the simulator; a test must fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[2]
TESTS = "tests/metal/test_simulator_tensors.py"


class Mutant(NamedTuple):
    name: str
    file: str  # below mlx_flash/metal/cpu
    old: str
    new: str
    killed_by: str


MUTANTS = [
    Mutant("rows-in-pairs", "runtime/tensors.c", "(quad & 4 | lane >> 1 & 3) + (element & 4) * 2",
           "(quad & 4 | lane >> 1 & 3) * 2 + (element >> 2 & 1)", "test_layout_of_m5[2-16-32]"),
    Mutant("parts-below-each-other", "runtime/tensors.c", "across = columns / 16;", "across = 1;",
           "test_layout_of_m5[0-16-32]"),
    Mutant("transpose-forgotten", "runtime/tensors.c", "transposed ? column * columns + row : row * columns + column",
           "row * columns + column", "test_every_shape_and_transpose[check-opaque]"),
    Mutant("always-truncates", "runtime/tensors.c", "if (!truncates) n.u += 0xfff + (n.u >> 13 & 1);", "",
           "test_float_factors_of_relaxed_products_lose_bits[True-nearest]"),
    Mutant("relaxed-or-not", "runtime/tensors.c", "s->relaxed && type == FLOAT", "type == FLOAT",
           "test_float_factors_of_relaxed_products_lose_bits[False-nearest]"),
    Mutant("always-accumulates", "include/shim/tensor_ops.h", "(ulong)(matmul_mode == mode::multiply_accumulate) << 39",
           "(ulong)1 << 39", "test_the_destination_is_added_to_or_replaced"),
    Mutant("any-capacity", "include/shim/tensor_ops.h", "if (i >= msl_capacity) msl_tensor_index(i);", "",
           "test_what_is_reported[an index past the capacity]"),
    Mutant("past-the-end-of-a-matrix", "include/shim/tensor_ops.h",
           "column < from.get_extent(0) && row < from.get_extent(1) ?", "column < from.get_extent(0) ?",
           "test_matrices_in_memory_end_where_they_end[sizes1]"),
]  # fmt: skip


def ended(folder: Path, killed_by: str) -> subprocess.CompletedProcess:
    """A test of TESTS on the package in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "MLX_FLASH_CACHE": str(folder / "cache")}
    own = ["-o", f"pythonpath={folder} tests/support"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *own,
        f"{TESTS}::{killed_by}",
    ]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of the package and its templates."""
    for name in ("mlx_flash", "templates"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_one_change(mutant):
    assert (PROJECT / "mlx_flash/metal/cpu" / mutant.file).read_text().count(
        mutant.old
    ) == 1 and mutant.old != mutant.new


@pytest.mark.simulator
@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=[pytest.mark.slow] if number else []) for number, m in enumerate(MUTANTS)],
)
def test_a_mutant_is_killed(mutant, copied):
    """A test fails, and not because a kernel does not compile or a test is missing."""
    file = copied / "mlx_flash/metal/cpu" / mutant.file
    file.write_text(file.read_text().replace(mutant.old, mutant.new))
    done = ended(copied, mutant.killed_by)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert "CompileError" not in done.stdout and "ToolchainError" not in done.stdout, done.stdout[-2000:]
