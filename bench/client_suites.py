"""Test suites of mlx-lm, mlx-vlm and mlx-embeddings, as they are and under patch().

`python bench/client_suites.py mlx-lm=CHECKOUT/tests mlx-vlm=CHECKOUT/mlx_vlm/tests` runs each suite twice and writes
bench/results/client_suites.json: how many tests passed, failed and were skipped, the tests whose outcome differs, and
the calls that were served. In place of a folder: files, with commas between them. A package's requirements have to be
installed; tests that fetch models fail without a network, both times alike. This file is the suites' pytest plugin too.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "client_suites.json"
PATCHED, WRITES = "CLIENT_SUITES_PATCH", "CLIENT_SUITES_OUT"


class Suite:
    """The outcome of every test; with PATCHED set, under patch()."""

    def __init__(self):
        self.outcomes, self.report = {}, None
        if os.environ.get(PATCHED) == "1":
            import mlx_flash

            self.report = mlx_flash.patch()

    def pytest_runtest_logreport(self, report):
        # A failure in setup or teardown is one of the test.
        if report.when == "call" or report.outcome != "passed":
            if self.outcomes.get(report.nodeid) != "failed":
                self.outcomes[report.nodeid] = report.outcome

    def pytest_collectreport(self, report):
        if report.outcome == "failed":  # a file whose imports fail
            self.outcomes[report.nodeid] = "failed"

    def pytest_sessionfinish(self):
        found = {"outcomes": self.outcomes}
        if self.report is not None:
            self.report.undo()
            found |= {"served": dict(self.report.served), "built_in": dict(self.report.built_in)}
        Path(os.environ[WRITES]).write_text(json.dumps(found))


def pytest_configure(config):
    if WRITES in os.environ:
        config.pluginmanager.register(Suite())


def run(tests: list[Path], patched: bool) -> dict:
    """One run of the suite in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.json"
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(_root(tests[0]))]
        environment = os.environ | {
            PATCHED: str(int(patched)), WRITES: str(out), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "-p", "client_suites", *map(str, tests)]
        command.append("--continue-on-collection-errors")
        subprocess.run(command, env=environment, cwd=_root(tests[0]), check=False)
        return json.loads(out.read_text())


def _root(tests: Path) -> Path:
    """The folder that has to be on the import path: above the package that the tests lie in."""
    root = tests
    while (root / "__init__.py").exists() or root == tests:
        root = root.parent
    return root


def compared(tests: list[Path]) -> dict:
    before, after = run(tests, False), run(tests, True)
    differ = {
        name: [before["outcomes"].get(name), outcome]
        for name, outcome in after["outcomes"].items()
        if before["outcomes"].get(name) != outcome
    }
    return {
        "tests": [path.name for path in tests],
        "before": dict(Counter(before["outcomes"].values())),
        "under_patch": dict(Counter(after["outcomes"].values())),
        "differ": differ,
        "served": after["served"],
        "built_in": after["built_in"],
    }


def main() -> int:
    suites = dict(argument.split("=", 1) for argument in sys.argv[1:])
    kept = json.loads(RESULTS.read_text())["suites"] if RESULTS.exists() else {}
    import mlx.core as mx

    for name, tests in suites.items():
        kept[name] = compared([Path(path).resolve() for path in tests.split(",")])
        print(name, {key: value for key, value in kept[name].items() if key != "built_in"})
        found = {"machine": platform.machine(), "mlx": mx.__version__, "suites": kept}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(suite["differ"] for suite in kept.values()))


if __name__ == "__main__":
    sys.exit(main())
