"""bench/policy.py: what patch() makes of the bench's cases, and when it says that one has become slower."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_flash.cli.benchmark import Case
from mlx_flash.cli.token_bench import TokenStep

SCRIPT = Path(__file__).parents[2] / "bench" / "policy.py"
TINY = Case(16, 48, True, heads=2, key_heads=2)
STEP = TokenStep(40, layers=2, heads=2, key_heads=1, head_dim=16)


@pytest.fixture
def policy():
    spec = importlib.util.spec_from_file_location("bench_policy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
@pytest.mark.parametrize("case", (TINY, replace(TINY, window=8), replace(TINY, queries=1, backward=False), STEP))
def test_a_case_is_measured_both_ways(policy, case, reference):
    """A backend that was named serves all calls."""
    found = policy.measured(case, 0.01)
    assert min(found[name] for name in ("ms", "patched_ms", "ratio")) > 0
    assert found["served"] == "mlx_flash" and found["rule"] == "always"
    assert found["rounds"] >= policy.LEAST_ROUNDS and 1 <= found["calls"] <= policy.CALLS


def test_it_goes_on_where_it_ended(policy, monkeypatch, tmp_path):
    asked, out = [], tmp_path / "policy.json"
    monkeypatch.setattr(policy, "measured", lambda case, seconds: asked.append(case.name) or {"ratio": 1.0})
    assert policy.run([TINY, STEP], out, 0.1, 0) == []  # no time
    policy.run([TINY], out, 0.1, 60)
    assert [result["name"] for result in policy.run([TINY, STEP], out, 0.1, 60)] == asked == [TINY.name, STEP.name]
    told = json.loads(out.read_text())
    assert told["results"][0]["case"]["head_dim"] == 16 and {"device", "mlx", "mlx_flash"} <= set(told)
    for contents in ("{", "[]", json.dumps({**told, "mlx": "0.1.0"})):
        out.write_text(contents)
        policy.run([TINY], out, 0.1, 60)
        assert json.loads(out.read_text())["mlx"] == told["mlx"]
    assert len(asked) == 5


def test_the_readme_tells_what_was_measured(policy):
    """Slower cases among those that were measured, and the noise."""
    measured, noise = (
        json.loads((SCRIPT.parent / "results" / f"cuda_policy{name}.json").read_text())["results"]
        for name in ("", "_noise")
    )
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    slower = sum(result["ratio"] > policy.SLOWER for result in measured)
    assert f"slower by 3 %: {slower} of the {len(measured)} measured are" in readme
    near, most = sum(result["noise"] * 100 <= 2 for result in noise), max(result["noise"] for result in noise)
    assert f"up to 2 % off in {near} of the {len(noise)}, and up to {most * 100:.0f} % in all" in readme
    ratios = [result["ratio"] for result in noise]
    slower, most = sum(ratio > policy.SLOWER for ratio in ratios), max(ratios) * 100 - 100
    assert f"with the patch {slower} are slower by more than 3 %, up to {most:.0f} %" in readme


@pytest.mark.parametrize("ratio, status", ((1.02, 0), (1.04, 1)))
def test_slower_by_more_than_3_percent_fails(policy, monkeypatch, capsys, ratio, status):
    result = {"ms": 1.0, "patched_ms": ratio, "ratio": ratio, "served": "built-in", "rule": "decoding"}
    monkeypatch.setattr(policy, "measured", lambda *_: result)
    monkeypatch.setattr(policy, "compiled", lambda _: None)
    monkeypatch.setattr(policy, "current_backend", lambda: SimpleNamespace(name="cuda"))
    monkeypatch.setattr("sys.argv", ["policy.py", "--only", "decode"])
    assert policy.main() == status
    assert f"3 cases, {3 * status} slower by more than 3 %, 0 not measured" in capsys.readouterr().out


def test_without_a_gpu(policy, monkeypatch, capsys):
    monkeypatch.setattr(policy, "current_backend", lambda: SimpleNamespace(name="simulator"))
    monkeypatch.setattr("sys.argv", ["policy.py"])
    with pytest.raises(SystemExit):
        policy.main()
    assert "no GPU" in capsys.readouterr().err


def test_only_cases_of_ours_are_compiled(policy, monkeypatch):
    """The GPU's rules decide which, at a length that has no rule."""

    def decide(*given):
        return SimpleNamespace(ours=given[-1].keys == 48 and given[-1].training)

    monkeypatch.setattr(policy, "decide", decide)
    monkeypatch.setattr(policy, "cases", lambda: [TINY, replace(TINY, backward=False), replace(TINY, length=50)])
    served = []
    monkeypatch.setattr(policy, "built_in", lambda case, *_: served.append(case) or [])
    policy.warm(0, 1)
    assert served == [TINY]
