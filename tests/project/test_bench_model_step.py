"""bench/model_step.py: a small model with both attentions, and what bench/README.md quotes of the results."""

import importlib.util
import json
import re
from pathlib import Path

import bounds
import pytest

PROJECT = Path(__file__).parents[2]
RESULTS = json.loads((PROJECT / "bench" / "results" / "cuda_model_step.json").read_text(encoding="utf-8"))["results"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "bench")
    spec = importlib.util.spec_from_file_location("bench_model_step", PROJECT / "bench" / "model_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"WIDTH": 32, "LAYERS": 2, "HIDDEN": 48, "TOKENS": 64, "ROUNDS": 2}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_both_attentions_train_the_same_model(bench, reference):
    found = bench.measured(24, 2)
    assert found["head_dim"] == 16
    ours, theirs = found["mlx_flash"]["loss"], found["built_in"]["loss"]
    assert abs(ours - theirs) <= bounds.BENCH * theirs
    assert min(found[name]["ms"] for name in ("built_in", "mlx_flash")) > 0


def test_memory_is_that_of_the_step(bench):
    """A step that keeps a known array for its gradient, and makes another one."""
    mx = bench.mx
    tokens = mx.zeros((2**20,))
    mx.eval(tokens)

    def step(tokens):
        kept = tokens + 1  # 4 MiB, which the result of the gradient needs
        return kept.sum(), kept * mx.exp(kept)

    kept, least = bench.kept_and_least(step, tokens)
    assert (kept, least) == (4, 8)


def test_a_step_takes_no_more_memory_than_with_the_built_in():
    for one in RESULTS:
        assert one["mlx_flash"]["least"] <= one["built_in"]["least"]
        assert one["mlx_flash"]["kept"] <= 1.01 * one["built_in"]["kept"]  # L holds two numbers a row, theirs one


def test_the_readme_quotes_the_results():
    text = (PROJECT / "bench" / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if "cuda_model_step.json" in line)
    first = RESULTS[0]
    quoted = [float(one) for one in re.findall(r"\d+(?:\.\d+)?(?= (?:MiB|ms|and))", row.split("8192 tokens")[1])]
    assert quoted == [first[name][fact] for fact in ("kept", "least", "ms") for name in ("mlx_flash", "built_in")]
