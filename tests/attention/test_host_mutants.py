"""Would the suite notice a mistake in the package's Python? Each of host_mutants.py is made in a copy of the package,
and the test it names must fail there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host_mutants import HOST_MUTANTS

import mlx_flash

PACKAGE = Path(mlx_flash.__file__).parent
ROOT = Path(__file__).parents[2]
FEWEST = 10  # of one kind
# The last two collect garbage at the end of every run, which takes most of the time of finding tests.
WITHOUT = ("cacheprovider", "xdist", "unraisableexception", "threadexception")
LEFT_OUT = [word for name in WITHOUT for word in ("-p", f"no:{name}")]


def path_of(test: str) -> str:
    """The id of a test with the folder of its file."""
    file, _, rest = test.partition("::")
    (path,) = (ROOT / "tests").rglob(file)
    return f"{path}::{rest}"


@pytest.mark.parametrize("mutant", HOST_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_one_change(mutant):
    assert (PACKAGE / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new


def test_there_are_many_of_every_kind():
    kinds = [mutant.kind for mutant in HOST_MUTANTS]
    assert len({mutant.name for mutant in HOST_MUTANTS}) == len(kinds)
    assert all(kinds.count(kind) >= FEWEST for kind in kinds)


@pytest.mark.long
@pytest.mark.parametrize("file", sorted({mutant.killed_by.partition("::")[0] for mutant in HOST_MUTANTS}))
def test_every_killer_is_a_test(file):
    from_pytest = CollectedIds()
    (path,) = (ROOT / "tests").rglob(file)
    pytest.main([str(path), "-q", "--collect-only", *LEFT_OUT], plugins=[from_pytest])
    wanted = {path_of(mutant.killed_by) for mutant in HOST_MUTANTS if mutant.killed_by.startswith(f"{file}::")}
    assert wanted - from_pytest.ids == set()


class CollectedIds:
    """The tests that pytest finds, without running them."""

    def __init__(self):
        self.ids = set()

    def pytest_collection_finish(self, session):
        self.ids |= {f"{item.path}::{item.nodeid.partition('::')[2]}" for item in session.items}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("mutant", HOST_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_killed(mutant, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "mlx_flash", ignore=shutil.ignore_patterns("__pycache__"))
    if not (PACKAGE / "templates").exists():
        (tmp_path / "templates").symlink_to(PACKAGE.parent / "templates")
    file = tmp_path / "mlx_flash" / mutant.file
    file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), path_of(mutant.killed_by)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and "1 failed" in found.stdout, f"{mutant.name} survives:\n{found.stdout[-2000:]}"
