"""A user's installation: a wheel that holds everything and works outside the checkout."""

import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import mlx_flash

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTSIDE = """
import sys
sys.path[:0] = {paths!r}
import mlx.core as mx
import mlx_flash
from mlx_flash import attention, use_backend
assert mlx_flash.__file__.startswith({target!r}), mlx_flash.__file__
q = mx.random.normal((1, 2, 9, 16), key=mx.random.key(0))
def total(q): return (attention(q, q, q, causal=True) ** 2).sum()
results = []
for name in ("reference", "simulator"):
    with use_backend(name):
        results.append([mx.grad(total)(q), attention(q, q, q)])
for a, b in zip(*results):
    assert mx.abs(a - b).max().item() < 1e-5 * mx.abs(a).max().item()
from mlx_flash.cli.main import main
assert main(["source", "--head-dim", "64"]) == 0
"""


def build(folder: Path) -> Path:
    """Builds the wheel: in place where hatchling is installed, else isolated, which fetches hatchling."""
    here = find_spec("hatchling") is not None
    command = ["hatchling", "build", "-t", "wheel", "-d", str(folder)]
    if not here:
        command = ["pip", "wheel", ".", "--no-deps", "--disable-pip-version-check", "-w", str(folder)]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        hint = "" if here else "hatchling is not installed and may not have been fetched: pip install hatchling\n"
        pytest.fail(f"{hint}{' '.join(command)}\n{done.stdout}{done.stderr}")
    (wheel,) = folder.glob("mlx_flash_attention-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"mlx_flash/{path.relative_to(ROOT)}" for path in (ROOT / "templates").rglob("*") if path.is_file()}
    for path in (ROOT / "mlx_flash").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            wanted.add(path.relative_to(ROOT).as_posix())
    assert wanted <= held, sorted(wanted - held)
    assert {name.split("/")[0] for name in held} == {"mlx_flash", f"{wheel.name.split('-py3')[0]}.dist-info"}


def test_the_wheel_names_itself_and_its_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = archive.read(name).decode("utf-8")
    needs = re.findall(r"^Requires-Dist: ([^;\n]+)$", facts, re.MULTILINE)
    assert f"Version: {mlx_flash.__version__}\n" in facts and "Name: mlx-flash-attention\n" in facts
    assert sorted(needs) == ["mlx>=0.32.0", "numpy"]


@pytest.mark.simulator
def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    """Unpacked alone, without site-packages but for what the package needs."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    for name in ("mlx", "numpy", "ziglang"):
        found = find_spec(name)
        for place in found.submodule_search_locations if found else ():
            for companion in Path(place).parent.glob(f"{name}*"):  # numpy.libs and the like
                if not companion.name.startswith("mlx_flash") and not (target / companion.name).exists():
                    (target / companion.name).symlink_to(companion)
    script = OUTSIDE.format(paths=[str(target)], target=str(target))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[[kernel]] void" in done.stdout


@pytest.mark.process
def test_the_sdist_holds_every_file_of_the_project(tmp_path):
    """It builds the wheel and runs the tests by itself, so it needs all that they read."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"}
    for folder in ("mlx_flash", "templates", "tests", "bench", ".ci", ".github"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                wanted.add(path.relative_to(ROOT).as_posix())
    assert wanted <= held, sorted(wanted - held)


def test_ci_runs_the_readmes_test_command():
    command = [line for line in README.splitlines() if re.match(r"python3 -m venv .*pytest", line)]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(command) == 1 and "[test]" in command[0]
    assert "README.md" in script and "^python3 -m venv .*pytest" in script
