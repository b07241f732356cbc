"""`python -m mlx_flash serve-bench`: the same requests with mlx-lm's caches and with pages, in one run."""

import json

import pytest
from refusals import refused, status_of

from mlx_flash.cli.serve_bench import requests_of

FEW = ["serve-bench", "--requests", "3", "--backend", "reference", "--seed", "5"]


def test_both_runs_give_the_same_tokens(capsys, tmp_path):
    results, picture = tmp_path / "runs.json", tmp_path / "memory.png"
    assert status_of([*FEW, "--json", str(results), "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    found = json.loads(results.read_text())
    assert found["same"] == found["requests"] == 3 and "the same tokens in 3" in said
    assert "2 of 2 layers in pages of 64 tokens, 0 pages in use" in said
    kept = {name: max(run["active"]) for name, run in found["runs"].items()}
    assert 0 < kept["pages"] < kept["mlx-lm's caches"], "padded rows and steps of 256 take more"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_requests_follow_the_seed():
    assert requests_of(5, 64, 1) == requests_of(5, 64, 1) != requests_of(5, 64, 2)
    steps = [one.step for one in requests_of(50, 64, 1)]
    assert steps == sorted(steps) and 50 < steps[-1] < 200


@pytest.mark.parametrize(
    "more, words",
    [
        (["--requests", "0"], "at least 1"),
        (["--page", "12"], "a multiple of 8"),
        (["--kv-bits", "7"], "invalid choice"),
        (["--model", "/nowhere"], "no such folder"),
    ],
)
def test_bad_options(capsys, more, words):
    assert words in refused(capsys, [*FEW, *more])
