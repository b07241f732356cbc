"""The workflow runs what README.md promises, on every system, and publishes only what passed."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import mlx_flash

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]
SYSTEMS = {"ubuntu-latest", "macos-15"}  # macos-15 runners are arm64


def scripts(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def matrix(job: str) -> dict:
    return JOBS[job]["strategy"]["matrix"]


@pytest.mark.process
@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_complete(job):
    """A job has a runner, a time limit, and steps that are an action with a version or a valid script."""
    facts = JOBS[job]
    assert facts["runs-on"] in ("ubuntu-latest", "${{ matrix.os }}")
    assert 0 < facts["timeout-minutes"] <= 90
    for step in facts["steps"]:
        assert ("run" in step) != ("uses" in step), step
        assert "uses" not in step or re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", step["uses"]), step
        text = re.sub(r"\$\{\{.*?\}\}", "x", step.get("run", ""))
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for other in facts.get("needs", []) if isinstance(facts.get("needs"), list) else [facts.get("needs")]:
        assert other is None or other in JOBS


def test_the_readmes_commands_run_on_both_systems():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert [("demo" in one, "pytest" in one) for one in commands] == [(True, False), (False, True)]
    assert scripts("readme") == commands and set(matrix("readme")["os"]) == SYSTEMS


def test_the_quick_tests_run_on_the_oldest_and_the_newest_mlx():
    oldest = re.search(r'^dependencies = \["mlx>=([\d.]+)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert matrix("quick")["mlx"] == [f"mlx=={oldest}", "mlx"]
    assert set(matrix("quick")["os"]) == SYSTEMS and "3.10" in matrix("quick")["python"]
    install, test = scripts("quick")
    assert "-e '.[test]' '${{ matrix.mlx }}'" in install and test == "python -m pytest -m quick -n auto"


def test_the_wheel_is_tried_without_extras_on_both_systems():
    built, tried = "\n".join(scripts("build")), "\n".join(scripts("install"))
    assert "python -m build" in built and "dist/*.tar.gz" in built and "pytest -m quick" in built
    assert {(one["os"], one["mlx"], one["backend"]) for one in matrix("install")["include"]} == {
        ("ubuntu-latest", "mlx[cpu]", "reference"), ("macos-15", "mlx", "metal"),
    }  # fmt: skip
    assert "dist/*.whl" in tried and ".[" not in tried and "-e" not in tried.split()


@pytest.mark.process
def test_the_first_snippet_is_found(tmp_path):
    """The command that cuts it out of README.md, as the workflow has it."""
    command = next(line for script in scripts("install") for line in script.splitlines() if line.startswith("awk"))
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    first = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert (tmp_path / "first.py").read_text(encoding="utf-8") == first


def test_only_a_tag_publishes_and_only_what_passed():
    publish = JOBS["publish"]
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')" and WORKFLOW[True]["push"]["tags"] == ["v*"]
    assert set(publish["needs"]) == set(JOBS) - {"publish"}
    # Trusted publishing: no password, and the right to ask for a token in this job alone.
    assert publish["permissions"] == {"id-token": "write"} and WORKFLOW["permissions"] == {"contents": "read"}
    assert all("permissions" not in facts for job, facts in JOBS.items() if job != "publish")
    _, check, upload = publish["steps"]
    assert "with" not in upload and upload["uses"].startswith("pypa/gh-action-pypi-publish@")
    check = check["run"].replace("${GITHUB_REF_NAME#v}", mlx_flash.__version__)
    assert f"mlx_flash_attention-{mlx_flash.__version__}-py3-none-any.whl" in check


def test_the_changelog_has_the_version():
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## ([\d.]+)", changelog, re.MULTILINE)
    assert versions[0] == mlx_flash.__version__ and versions == sorted(versions, reverse=True)
