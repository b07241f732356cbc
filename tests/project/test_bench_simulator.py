"""bench/simulator.py: simulated kernels take no longer than those of an early version."""

import importlib.util
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
KEPT = json.loads((BENCH / "results" / "simulator_before.json").read_text(encoding="utf-8"))
MOST = 1.15  # of the former time


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_simulator", BENCH / "simulator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mode", ("fast", "check"))
def test_kernels_are_simulated_as_fast_as_before(mode):
    found = [seconds for case, seconds in KEPT["results"].items() if case.endswith(mode)]
    assert len(found) == 12
    assert sum(one["now"] for one in found) <= MOST * sum(one["before"] for one in found)


@pytest.mark.simulator
def test_processor_seconds(bench, monkeypatch):
    monkeypatch.setattr(bench, "COMPARED", (("float16", 16, 32, True),))
    found = bench.processor_seconds()
    assert len(found) == 8 and all(seconds > 0 for seconds in found.values())
    assert "float16 D=16 N=32, with gradients, apple9, check" in found


def test_the_lesser_of_two_rounds_counts(bench, monkeypatch, tmp_path):
    """Both versions run this file, in turns, each with kernels of its own."""
    asked, answers = [], iter((3.0, 2.0, 1.0, 4.0))

    def run(command, env, **_):
        asked.append((env["PYTHONPATH"], env["MLX_FLASH_CACHE"]))
        return bench.subprocess.CompletedProcess(command, 0, json.dumps({"case": next(answers)}))

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.compared(tmp_path) == {"case": {"before": 1.0, "now": 2.0}}
    assert [path for path, _ in asked] == 2 * [str(tmp_path), str(BENCH.parent)]
    assert len(set(asked)) == 2
