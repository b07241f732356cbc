"""`python -m mlx_flash serve-bench`: the same requests with mlx-lm's caches and with pages, in one run."""

import json

import bounds
import pytest
from refusals import refused, status_of

from mlx_flash import use_backend
from mlx_flash.cli.serve_bench import requests_of
from mlx_flash.cli.token_bench import ServedBatch

FEW = ["serve-bench", "--requests", "3", "--backend", "reference", "--seed", "5"]


@pytest.mark.long
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


def test_a_batch_of_the_bench_is_the_same_in_pages_and_padded():
    batch = ServedBatch(3, 16, 150, heads=4, key_heads=2, head_dim=16, page=8, dtype="float32")
    with use_backend("reference"):
        results = {name: call() for name, call in batch.providers().items()}
        times = batch.measured(0.0)
    want = bounds.float64(results.pop("mx.fast"))
    for name, got in results.items():
        bounds.check("O", got, want, name, "float32", terms=4.0)
    assert set(times) == {*results, "mx.fast"} and batch.name == "3 rows of 16 to 150 keys"
