"""`check --fuzz`: its float64 side is the oracle's, it fails where attention is wrong, and says how to repeat that."""

import re
import sys

import bounds
import mlx.core as mx
import numpy as np
import pytest
from machines import KERNELS
from oracle_variants import Attention, Facts
from refusals import refused

from mlx_flash import attention, use_backend
from mlx_flash.cli import main as cli
from mlx_flash.cli.accuracy import fuzz


def facts(drawn: fuzz.Drawn) -> Facts:
    """The same problem in the oracle's words; what is visible and the dropout's pattern are fuzz's own."""
    options, mask = drawn.options, drawn.options.get("mask")
    q_ids, k_ids = map(np.array, options["segments"]) if "segments" in options else (None, None)
    additive = isinstance(mask, mx.array) and mask.dtype != mx.bool_
    return Facts(
        keep=drawn.seen, mask=bounds.float64(mask) if additive else None, softcap=options.get("softcap"),
        slopes=bounds.float64(options["alibi_slopes"]) if "alibi_slopes" in options else None,
        sinks=bounds.float64(options["sinks"]) if "sinks" in options else None,
        survives=fuzz._kept(drawn) > 0 if "dropout" in options else None, dropout=options.get("dropout", 0.0),
        q_ids=q_ids, k_ids=k_ids,
    )  # fmt: skip


@pytest.mark.long
def test_its_float64_side_is_the_oracle():
    for number in range(40):
        drawn = fuzz.draw(number, False)
        inputs = [getattr(drawn, name).astype(np.float64) for name in ("q", "k", "v", "d_o")]
        scale = 1 / np.sqrt(drawn.q.shape[3])
        want = Attention(*inputs, scale, facts(drawn), drawn.d_lse.astype(np.float64)).results()
        for name, array in fuzz.exact(drawn).values.items():
            finite = np.isfinite(want[name])
            worst = np.abs(array[finite] - want[name][finite]).max(initial=0.0)
            assert worst <= bounds.DIFFERENCES * np.abs(want[name][finite]).max(initial=1.0), (number, name)


def test_a_number_is_a_problem():
    """The same number draws the same problem; many draw every feature."""
    one, again = (fuzz.draw(7, False) for _ in range(2))
    assert str(one) == str(again) and all(np.array_equal(getattr(one, name), getattr(again, name)) for name in "qkv")
    options = {name for number in range(60) for name in fuzz.draw(number, False).options}
    wanted = {"causal", "window", "mask", "softcap", "alibi_slopes", "sinks", "segments", "dropout", "key"}
    wanted |= {"return_lse"}
    assert options == wanted
    assert {name for number in range(4) for name in fuzz.draw(number, True).options} == wanted


@pytest.mark.parametrize("choice", KERNELS, ids=str)
def test_kernels_pass(choice):
    with use_backend(*choice):
        assert fuzz.fuzz(4, 0, True, lambda note: None) == []


@pytest.mark.long
def test_all_pass(capsys):
    assert cli.main(["check", "--backend", "reference", "--fuzz", "20"]) == 0
    assert "20 random problems on reference, all pass" in capsys.readouterr().out


@pytest.mark.long
def test_a_failure_is_printed_with_its_command(capsys, monkeypatch):
    """attention that forgets its window: every failing problem has one, and its command shows it again."""
    monkeypatch.setattr(fuzz, "attention", lambda *x, window=None, **options: attention(*x, **options))
    assert cli.main(["check", "--backend", "reference", "--fuzz", "20"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    commands = re.findall(r"python -m mlx_flash (check --backend reference --fuzz 1 --seed \d+)", said)
    assert commands and f"{len(commands)} fail" in said
    for command in commands:
        assert "window" in fuzz.draw(int(command.split()[-1]), False).options
        assert cli.main(command.split()) == 1
        assert "error" in (said := " ".join(capsys.readouterr().out.split())) and "1 fail" in said


def test_nan_fails(monkeypatch):
    monkeypatch.setattr(fuzz, "results", lambda drawn: {
        name: np.full(array.shape, np.nan) for name, array in fuzz.exact(drawn).values.items()
    })  # fmt: skip
    assert fuzz.failure_of(0, False) is not None


@pytest.mark.parametrize("arguments", [["--fuzz", "0"], ["--fuzz", "many"], ["--fuzz", "1", "--seed", "-1"]])
def test_wrong_numbers(capsys, arguments):
    assert "expected a whole number of at least" in refused(capsys, ["check", *arguments])


def test_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "needs rich" in refused(capsys, ["check", "--fuzz", "1", "--backend", "reference"])
