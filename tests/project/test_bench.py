"""The bench command: what it counts, writes and draws, on tiny cases; it times nothing without a GPU."""

import json
from types import SimpleNamespace

import bounds
import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.cli import benchmark as bench
from mlx_flash.cli import main as cli
from mlx_flash.cli.mask_bench import Neighbourhood

TINY = [
    bench.Case(16, 48, heads=2, key_heads=2),
    bench.Case(16, 48, True, heads=2, key_heads=1, window=8),
    bench.Case(16, 48, True, heads=2, key_heads=2, segment=16),
    bench.Case(16, 48, causal=False, heads=4, key_heads=2, queries=1),
]


@pytest.mark.parametrize(
    "window, segment, causal", [(None, None, True), (None, None, False), (9, None, True), (None, 16, True)]
)
def test_useful_work_is_that_of_the_pairs_that_see_each_other(window, segment, causal):
    case = bench.Case(32, 64, causal=causal, heads=3, window=window, segment=segment)
    i, j = np.indices((64, 64))
    seen = (j <= i) | (not causal)
    seen = seen & ((i - j < window) if window else True) & ((i // segment == j // segment) if segment else True)
    # Of an unbounded triangle the diagonal counts half, as is usual for causal attention.
    half = 64 / 2 if causal and not window else 0
    assert case.flops == 2 * 3 * (seen.sum() - half) * 32 * 2


def test_decoding_is_measured_too():
    """The work of one query, and names of their own."""
    decoding = [case for case in bench.cases() if case.queries]
    assert [case.name for case in decoding] == [f"decode D=128 N={n} Hk=8" for n in (4096, 32768, 131072)]
    assert [case.flops for case in decoding] == [4 * 32 * 128 * case.length for case in decoding]
    assert [array.shape for array in bench.arrays(decoding[0])] == [
        (1, 32, 1, 128),
        *[(1, 8, 4096, 128)] * 2,
        (1, 32, 1, 128),
    ]
    names = [case.name for case in bench.cases()]
    assert len(set(names)) == len(names)


@pytest.mark.long
def test_both_are_measured_and_agree(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "cases", lambda: TINY)
    monkeypatch.setattr(bench, "mask_cases", lambda: [])
    monkeypatch.setattr(bench, "token_cases", lambda: [])  # whole models: minutes without a GPU
    monkeypatch.setattr(bench, "torch_times", lambda *_: {})
    monkeypatch.setattr(bench, "current_backend", lambda: SimpleNamespace(gpu=True))
    monkeypatch.setattr(mx, "device_info", lambda *_: {"device_name": "a GPU", "uuid": "nobody's business"})
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    assert cli.main(["bench", "--seconds", "0.01", "--out", str(out), "--plot", str(picture)]) == 0
    told = json.loads(out.read_text())
    assert told["device"] == {"device_name": "a GPU"} and picture.stat().st_size > 1000
    assert [result["name"] for result in told["results"]] == [case.name for case in TINY]
    for result in told["results"]:
        assert all(result["providers"][name]["ms"] > 0 for name in ("mlx_flash", "mx.fast"))
    for tensors in told["relative_errors"]["16"].values():
        assert set(tensors) == {"O", "dQ", "dK", "dV"} and 0 < max(tensors.values()) < bounds.BENCH
    for case in TINY:
        drawn = bench.arrays(case)
        for mine, other in zip(bench.ours(case, *drawn), bench.built_in(case, *drawn)):
            mine, other = (np.array(array.astype(mx.float32)) for array in (mine, other))
            assert np.linalg.norm(mine - other) < bounds.BENCH * np.linalg.norm(other), case.name


@pytest.mark.long
@pytest.mark.parametrize("backward", [False, True])
def test_neighbourhoods_beside_the_same_mask(backward):
    case = Neighbourhood((6, 5), (3, 3), backward, heads=2, head_dim=16, block=32, dtype="float32")
    assert case.name == f"{'fwd+bwd' if backward else 'fwd'} neighbourhood 3x3 of 6x5"
    results = [call() for call in case.providers().values()]
    flat = [[part for group in one for part in group] if backward else [one] for one in results]
    assert [len(one) for one in flat] == [4 if backward else 1] * 3
    for mine, of_array, other in zip(*(map(np.array, one) for one in flat)):
        for one in (mine, of_array):
            assert np.linalg.norm(one - other) < bounds.BENCH * np.linalg.norm(other)
    providers = ("mlx_flash", "mlx_flash, array", "mx.fast")
    assert {name: found["ms"] > 0 for name, found in case.measured(0.0).items()} == dict.fromkeys(providers, True)


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(bench, "current_backend", lambda: SimpleNamespace(gpu=False))
    assert cli.main(["bench"]) == 2 and "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("only, words", [("(", "regular expression"), ("no such case", "no case matches")])
def test_wrong_names(monkeypatch, capsys, only, words):
    monkeypatch.setattr(bench, "current_backend", lambda: SimpleNamespace(gpu=True))
    assert cli.main(["bench", "--only", only]) == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("option, name", [("--out", "bench.json"), ("--plot", "bench.png")])
def test_files_that_cannot_be_written(monkeypatch, tmp_path, capsys, option, name):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "current_backend", lambda: SimpleNamespace(gpu=True))
    monkeypatch.setattr(bench, "measured", lambda *_: {"mlx_flash": {"ms": 1.0}})
    monkeypatch.setattr(bench, "errors", lambda _: {})
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    monkeypatch.setattr(bench, "cases", lambda: TINY[:1])
    monkeypatch.setattr(bench, "mask_cases", lambda: [])
    monkeypatch.setattr(bench, "token_cases", lambda: [])
    assert cli.main(["bench", option, str(tmp_path / "no folder" / name)]) == 2
    assert "No such file or directory" in capsys.readouterr().err
