"""bench/ginstrs.py: the unit, counted work where there is no clock, and a file of lines that grows."""

import importlib.util
import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_flash import use_backend
from mlx_flash.cli.benchmark import Case

SCRIPT = Path(__file__).parents[2] / "bench" / "ginstrs.py"
DENSE, CAUSAL = (Case(16, 256, False, causal, 1, 1, dtype="float32") for causal in (False, True))


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_ginstrs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.simulator
def test_work_is_counted_on_the_simulator(bench):
    with use_backend("simulator", "apple7"):
        (dense,), (causal,) = bench.counted(DENSE), bench.counted(CAUSAL)
        (both,) = bench.counted(Case(16, 64, True, False, 1, 1, dtype="float32"))
    assert dense["products"] == 2 * 256**2 * 16 // 512 and dense["of_dense"] == 1
    assert 0.5 < causal["of_dense"] < 0.7 and both["of_dense"] == 1


def test_the_unit_is_metal_flash_attentions(bench, monkeypatch, reference):
    monkeypatch.setattr(bench, "call_times", lambda case: (2.0, 4.0))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"device_name": "Apple M1 Max", "memory_size": 1})
    ours, theirs = bench.timed(Case(64, 1000, True, False, 3, 3))
    for line, seconds in ((ours, 2e-3), (theirs, 4e-3)):
        assert line["ginstrs"] == round(3 * 1000**2 * (133 + 197 + 261) / seconds / 1e9, 1)
    assert ours["roofline"] == round(ours["ginstrs"] / (1.296 * 32 * 4 * 32), 4)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"device_name": "Apple M9"})
    assert all("roofline" not in line for line in bench.timed(CAUSAL))


def test_a_file_grows_and_is_not_measured_again(bench, monkeypatch, tmp_path, reference):
    asked, out = [], tmp_path / "lines.jsonl"
    monkeypatch.setattr(bench, "timed", lambda case: asked.append(case) or [{"provider": "mlx_flash", "ms": 1.0}])
    bench.run([DENSE], out)
    with out.open("a") as file:
        file.write(
            '{"name": "cut\n[]\n' + json.dumps({**json.loads(out.read_text()), "mlx": "0.1.0", "name": "old"}) + "\n"
        )
    bench.run([DENSE, CAUSAL], out)
    assert asked == [DENSE, CAUSAL]
    last = json.loads(out.read_text().splitlines()[-1])
    assert last["mlx"] == mx.__version__ and last["causal"] and last["backend"] == "reference"


def test_cases_are_for_every_backend_with_kernels(bench):
    for name in bench.SIZES:
        names = list(map(bench.name_of, bench.cases(name)))
        assert len(set(names)) == len(names) == 40
