"""Test suites of mlx-lm, mlx-vlm, mlx-audio and others, as they are and under patch().

`python bench/client_suites.py mlx-lm=CHECKOUT/tests mlx-vlm=CHECKOUT/mlx_vlm/tests` runs each file twice, in processes
of their own, and writes bench/results/client_suites.json: how many tests passed, failed and were skipped, the tests
whose outcome differs, and the calls that were served. A file that takes longer than `--limit`, or whose process ends
by itself, counts with the tests that it came to, and is named. In place of a folder: files, with commas between them.
A package's requirements have to be installed; tests that fetch models fail without a network, both times alike. This
file is the suites' pytest plugin too.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "client_suites.json"
PATCHED, WRITES = "CLIENT_SUITES_PATCH", "CLIENT_SUITES_OUT"


class Suite:
    """The outcome of every test; with PATCHED set, under patch(). Written after each, in case the process ends."""

    def __init__(self):
        self.outcomes, self.report, self.ended = {}, None, False
        if os.environ.get(PATCHED) == "1":
            import mlx_flash

            self.report = mlx_flash.patch()

    def pytest_runtest_logreport(self, report):
        # A failure in setup or teardown is one of the test.
        if report.when == "call" or report.outcome != "passed":
            if self.outcomes.get(report.nodeid) != "failed":
                self.outcomes[report.nodeid] = report.outcome
        if report.when == "teardown":
            self.write()

    def pytest_collectreport(self, report):
        if report.outcome == "failed":  # a file whose imports fail
            self.outcomes[report.nodeid] = "failed"

    def pytest_sessionfinish(self):
        self.ended = True
        if self.report is not None:
            self.report.undo()
        self.write()

    def write(self):
        found = {"outcomes": self.outcomes, "ended": self.ended}
        if self.report is not None:
            found |= {"served": dict(self.report.served), "built_in": dict(self.report.built_in)}
        whole = Path(f"{os.environ[WRITES]}.part")
        whole.write_text(json.dumps(found))
        whole.replace(os.environ[WRITES])


def pytest_configure(config):
    if WRITES in os.environ:
        config.pluginmanager.register(Suite())


def run(test: Path, patched: bool, limit: float) -> dict:
    """One run of a file in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.json"
        out.write_text(json.dumps({"outcomes": {}, "ended": False, "served": {}, "built_in": {}}))
        root = _root(test)
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(root)]
        environment = os.environ | {
            PATCHED: str(int(patched)), WRITES: str(out), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "-p", "client_suites", str(test)]
        command.append("--continue-on-collection-errors")
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=environment, cwd=root, check=False, timeout=limit)
        return json.loads(out.read_text())


def _root(test: Path) -> Path:
    """The folder that has to be on the import path: above the package that the tests' folder lies in."""
    root = test.parent
    while (root / "__init__.py").exists() or root == test.parent:
        root = root.parent
    return root


def compared(tests: list[Path], limit: float) -> Iterator[dict]:
    """The counts of a suite after each file. Of files that did not end both times the tests that both runs came to are
    compared."""
    before, after, served, built_in, differ, cut, done = (*(Counter() for _ in range(4)), {}, [], [])
    for test in tests:
        plain, patched = (run(test, one, limit) for one in (False, True))
        known = plain["outcomes"].keys() & patched["outcomes"].keys()
        ended = plain["ended"] and patched["ended"]
        names = plain["outcomes"].keys() | patched["outcomes"].keys() if ended else known
        pairs = {name: [found["outcomes"].get(name) for found in (plain, patched)] for name in names}
        differ |= {name: pair for name, pair in sorted(pairs.items()) if pair[0] != pair[1]}
        before.update(pair[0] for pair in pairs.values())
        after.update(pair[1] for pair in pairs.values())
        served.update(patched["served"])
        built_in.update(patched["built_in"])
        cut += [] if ended else [test.name]
        done.append(test.name)
        yield {
            "files": done, "cut_short": cut, "seconds_a_file": limit, "before": dict(before),
            "under_patch": dict(after), "differ": differ, "served": dict(served), "built_in": dict(built_in),
        }  # fmt: skip


def files(paths: str) -> list[Path]:
    """The test files of a folder, or those named."""
    found = [Path(path).resolve() for path in paths.split(",")]
    return [file for path in found for file in (sorted(path.glob("test_*.py")) if path.is_dir() else [path])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="+", metavar="NAME=TESTS")
    parser.add_argument("--limit", type=float, default=120, help="seconds of a file's run (default: 120)")
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text())["suites"] if RESULTS.exists() else {}
    import mlx.core as mx

    for name, paths in (suite.split("=", 1) for suite in given.suites):
        for kept[name] in compared(files(paths), given.limit):
            found = {"machine": platform.machine(), "mlx": mx.__version__, "suites": kept}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(name, {key: value for key, value in kept[name].items() if key != "built_in"})
    return int(any(suite["differ"] for suite in kept.values()))


if __name__ == "__main__":
    sys.exit(main())
