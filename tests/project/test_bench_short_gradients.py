"""bench/short_gradients.py: ours beside the built-in's, one by one and compiled."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
RESULTS = json.loads((PROJECT / "bench" / "results" / "cuda_short_gradients.json").read_text(encoding="utf-8"))


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "bench")
    spec = importlib.util.spec_from_file_location("bench_short_gradients", PROJECT / "bench" / "short_gradients.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CALLS", 2)
    monkeypatch.setattr(module, "ROUNDS", 2)
    return module


@pytest.mark.parametrize("compiled", (False, True))
def test_both_are_measured_and_only_one_is_served(bench, reference, monkeypatch, compiled):
    counted, counts = bench.patch, []

    class Counted(counted):
        def __exit__(self, *more):
            counts.append(self.ours)
            super().__exit__(*more)

    monkeypatch.setattr(bench, "patch", Counted)
    found = bench.measured(16, 2, 24, compiled)
    assert min(found[name] for name in ("ms", "queued_ms", "built_in_ms", "built_in_queued_ms", "ratio")) > 0
    assert counts[:2] == [0, 1]  # the first call of each
    assert sum(counts) == (1 if compiled else 1 + 2 * (1 + 2))  # a compiled step is traced once


def test_the_readme_quotes_the_results():
    text = (PROJECT / "bench" / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if "cuda_short_gradients.json" in line)
    quoted = set(map(float, re.findall(r"(?<![=.\d])\d\.\d\d(?![\d ]*(?:ms|us))", row.split("short gradients:")[1])))
    ratios = {round(one["ratio"], 2) for one in RESULTS["results"]}
    assert quoted and quoted <= ratios
