"""bench/generation.py: mlx-lm generates with and without patch(), in turns, and every provider is what it says."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_flash.backends import current_backend
from mlx_flash.cli import token_bench
from mlx_flash.integrations import patch, serve

pytest.importorskip("mlx_lm")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import generation  # noqa: E402

PROVIDERS = ["mx.fast", "patch()", token_bench.ALWAYS]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(token_bench, "LEAST_TURNS", 2)


@pytest.mark.long
def test_it_writes_what_it_measured(few, monkeypatch, tmp_path, capsys):
    out = tmp_path / "generation.json"
    monkeypatch.setattr(
        sys, "argv", ["generation.py", "--tokens", "3", "--layers", "1", "--seconds", "0", "--out", str(out)]
    )
    generation.main()
    told = json.loads(out.read_text())
    (result,) = told["results"]
    assert told["backend"] == current_backend().name and result["case"] == {"tokens": 3, "layers": 1}
    assert list(result["providers"]) == PROVIDERS and result["providers"]["mx.fast"]["ratio"] == 1
    for found in result["providers"].values():
        assert found["same"] and 990 < found["tokens_per_s"] * found["ms"] < 1010
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.long
def test_attention_is_called_where_it_says(few, monkeypatch):
    """Attention is not called with the built-in, and with "always" once for each layer and step."""
    built_in, served, turns = mx.fast.scaled_dot_product_attention, serve.attention, []
    calls = {"built-in": 0, "ours": 0}

    def counting(name, function):
        def call(*given, **options):
            found = function(*given, **options)
            calls[name] += found is not None  # a call like one before may have to be decided anew
            return found

        return call

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", counting("built-in", built_in))
    monkeypatch.setattr(serve, "attention", counting("ours", served))
    monkeypatch.setattr(sys.modules[patch.__module__], "serve_again", counting("ours", serve.serve_again))
    case = token_bench.Generation(4, 2)
    plain = case.generator
    monkeypatch.setattr(token_bench.Generation, "generator", lambda self, *model: watched(plain(*model)))

    def watched(generate):
        def turn():
            before = dict(calls)
            found = generate()
            turns.append({name: calls[name] - before[name] for name in calls})
            return found

        return turn

    case.measured(0.0)
    first, _, always = turns[:3]
    assert len(turns) == 6 and first["ours"] == 0 and first["built-in"] >= 2 * 4
    assert always["built-in"] == 0 and always["ours"] == first["built-in"]


@pytest.mark.parametrize("option", ("--tokens", "--layers"))
def test_bad_options(monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["generation.py", option, "0"])
    with pytest.raises(SystemExit):
        generation.main()
    assert "at least 1" in capsys.readouterr().err
