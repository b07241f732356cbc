"""bench/on_gpu.py: results are kept as they are measured, and a machine without a GPU measures none."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    import on_gpu

    yield on_gpu
    del sys.modules["on_gpu"]


def test_a_run_that_ends_early_keeps_its_results(on_gpu, monkeypatch, tmp_path, capsys):
    file = tmp_path / "results.json"

    def results():
        yield {"ms": 1.5}
        raise KeyboardInterrupt

    monkeypatch.setattr(on_gpu, "current_backend", lambda: SimpleNamespace(gpu=True))
    monkeypatch.setattr(on_gpu.mx, "device_info", lambda device: {"device_name": "a GPU"})
    monkeypatch.setattr(sys, "argv", ["script", "--out", str(file)])
    with pytest.raises(KeyboardInterrupt):
        on_gpu.write_results("what it measures", results())
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["results"] == [{"ms": 1.5}] == [json.loads(capsys.readouterr().out)]
    assert told["device"] == {"device_name": "a GPU", "architecture": None} and told["mlx"] == on_gpu.mx.__version__


def test_without_a_gpu(on_gpu, monkeypatch, capsys):
    measured = iter([{"ms": 1.5}])
    monkeypatch.setattr(on_gpu, "current_backend", lambda: SimpleNamespace(gpu=False))
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit):
        on_gpu.write_results("what it measures", measured)
    assert "there is no GPU here" in capsys.readouterr().err and list(measured)
