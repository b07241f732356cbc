"""What is said about FP8 agrees with its data, and the data with what computes it."""

import json
import re
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
KEPT = json.loads((BENCH / "results" / "fp8.json").read_text())


@pytest.fixture
def fp8(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    import fp8

    return fp8


def test_errors_are_those_that_are_kept(fp8):
    row = next(row for row in KEPT["relative_rms_errors"] if (row["D"], row["activations"]) == (64, "scattered"))
    for method in ("bfloat16", "e4m3", "e4m3_rotated"):
        errors = [fp8.error("scattered", 64, method, seed) for seed in fp8.SEEDS]
        assert round(sum(errors) / len(errors), 4) == round(row[method], 4)


def test_the_readme_quotes_the_data():
    (line,) = [line for line in (BENCH / "README.md").read_text().splitlines() if "fp8.json" in line]
    rows = KEPT["speed_on_an_h200"]
    best = [max(row["speedup"] for row in rows if row["D"] == columns) for columns in (64, 128, 256)]
    assert "up to {:.2f}, {:.2f} and {:.2f} times as fast".format(*best) in line
    ratios = [row["e4m3_rotated"] / row["bfloat16"] for row in KEPT["relative_rms_errors"]]
    least, most = map(int, re.search(r"has (\d+) to (\d+) times", line).groups())
    assert (round(min(ratios)), round(max(ratios))) == (least, most)
