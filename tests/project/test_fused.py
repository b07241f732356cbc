"""The g++ of the tests (support/fused) compiles a header once and passes everything else on."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
FOLDER = Path(__file__).parents[1] / "support" / "fused"
HEADER = "mlx/backend/cpu/compiled_preamble.h"
RECORDS = """#!/bin/sh
echo "$*" >> {log}
case $* in *c++-header*) {header} ;; esac
"""
PRECOMPILES = "for last; do :; done; echo precompiled > $last"


@pytest.fixture
def compile(tmp_path):
    """Runs the command in front of a compiler that writes down its arguments; returns these of all runs so far."""
    real, log = tmp_path / "bin" / "g++", tmp_path / "log"
    real.parent.mkdir()

    def run(*arguments: str, header=PRECOMPILES) -> list[str]:
        real.write_text(RECORDS.format(log=log, header=header))
        real.chmod(0o755)
        path = os.pathsep.join((str(FOLDER), str(real.parent), os.environ["PATH"]))
        subprocess.run(["g++", *arguments], env=os.environ | {"PATH": path, "TMPDIR": str(tmp_path)}, check=True)
        return log.read_text().splitlines()

    return run


@pytest.fixture
def include(tmp_path) -> str:
    folder = tmp_path / "mlx" / "include"
    (folder / HEADER).parent.mkdir(parents=True)
    (folder / HEADER).touch()
    return str(folder)


def kept(folder: Path) -> list[Path]:
    return [found for found in folder.rglob("*.gch") if found.is_file()]


def test_the_header_is_compiled_once(compile, include, tmp_path):
    given = "-std=c++17", "-O3", "-Wall", "-fPIC", "-shared", "-I", include, "a.cpp"
    compile(*given)
    header, first, second = compile(*given)
    (file,) = kept(tmp_path)
    folder = str(file).removesuffix(f"/{HEADER}.gch")
    # Only flags of the language decide whether a compiler takes the kept header.
    assert header.startswith(f"-std=c++17 -O3 -Wall -fPIC -I {include} -x c++-header {include}/{HEADER} -o ")
    assert first == second == " ".join(("-I", folder, *given))


def test_without_the_header_all_is_as_ever(compile, include, tmp_path):
    """One that does not compile, or none."""
    given = "-O3", "-I", include, "a.cpp"
    assert compile(*given, header="exit 1")[-1].endswith(" ".join(given)) and kept(tmp_path) == []
    assert compile("--version")[-1] == "--version"
    assert compile("-I", str(tmp_path / "other" / "mlx" / "include"), "a b.cpp")[-1].endswith("a b.cpp")
