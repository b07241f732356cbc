"""`tune`: what is timed, what the fastest rows do to later calls, and files that it must survive.

The machine is the pretended Mac. Clocks are stubs, so that it is known which row has to win.
"""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import bounds
import mlx.core as mx
import pretend_mac
import pytest

import mlx_flash
from mlx_flash import attention, backends, explain, use_backend
from mlx_flash.backends import tuned
from mlx_flash.cli import main as cli
from mlx_flash.cli.tune import command, measure
from mlx_flash.integrations.policy import Asked, decide
from mlx_flash.kernels.config import precision_of
from mlx_flash.kernels.devices import FAMILIES, Tuned, TunedRow
from mlx_flash.kernels.lookup import lookup
from mlx_flash.kernels.plan import plan
from mlx_flash.kernels.search import is_legal, ranked, table_row
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, DECODE, FORWARD
from mlx_flash.problem.problem import Signature
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

TUNE = ["tune", "--head-dim", "16", "--dtype", "float32", "--rows", "3"]
SIGNATURE = Signature(1, 1, 16, 16, "float32", 0.25)
KERNELS = (FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE, DECODE)


class Clock:
    """Replaces the function that runs kernels: the second of the rows is fastest, by half, and the third fails."""

    asked: list = []
    turns: list = []
    stop_after = 1000
    second = 1.0  # of the second row in turns with the first

    def __init__(self, kernel, own):
        self.rows = ranked(*kernel[:2], own.family, kernel.head_dim, 3)
        self.kernel = kernel

    def time(self, row):
        if len(Clock.asked) >= Clock.stop_after:
            raise KeyboardInterrupt
        Clock.asked.append((self.kernel.kind.name, row))
        return [(2.0, ""), (1.0, ""), (0.0, "RuntimeError: refused")][self.rows.index(row)]

    def in_turns(self, rows):
        Clock.turns.append((self.kernel.kind.name, rows))
        return [[2.0, Clock.second][self.rows.index(row)] for row in rows]


@pytest.fixture
def tuner(mac, monkeypatch, tmp_path):
    """The folder of tuned files, and a clock that is known."""
    monkeypatch.delenv("MLX_FLASH_TUNED")
    monkeypatch.setattr(tuned, "folder", lambda: tmp_path / "tuned")
    monkeypatch.setattr(command, "Bench", Clock)
    monkeypatch.setattr(measure, "call_times", lambda case: (3.0, 1.0) if case.backward else (1.0, 3.0))
    monkeypatch.setattr(Clock, "asked", [])
    monkeypatch.setattr(Clock, "turns", [])
    monkeypatch.setattr(Clock, "stop_after", 1000)
    forget()
    yield tmp_path / "tuned"
    forget()


def forget():
    command.forget()
    pretend_mac.forget()


def family():
    return backends.current_backend().family


def test_the_fastest_rows_serve_later_calls(tuner, capsys):
    assert cli.main(TUNE) == 0
    assert "+100%" in capsys.readouterr().out
    assert [row.kind for row in family().tuned.rows] == [kind.name for kind in KERNELS]
    for kind in KERNELS:
        wanted = ranked(kind, "float32", FAMILIES["apple7"], 16, 3)[1]
        assert lookup(kind, "float32", family(), 16) == wanted
        assert lookup(kind, "float32", family(), 24).max_head != 16
    told = explain(mx.zeros((1, 1, 30, 16)), mx.zeros((1, 1, 40, 16)), mx.zeros((1, 1, 40, 16)))
    assert "`tune` timed on this machine: 1 ms, the table's row 2 ms" in told.kernels[0].why
    assert told.kernels[0].row == "tuned for 16"
    with use_backend("metal", table="own") as own:
        assert own.family.tuned == Tuned()
    with use_backend("metal", "apple7") as named:
        assert named.family.tuned == Tuned()


def test_results_by_tuned_rows(tuner):
    """The second row of each kernel, on the simulator."""
    assert cli.main(TUNE) == 0
    q, k = mx.random.normal((1, 2, 30, 16)), mx.random.normal((1, 2, 40, 16))
    found = mx.grad(lambda q: attention(q, k, k).square().sum())(q)
    with use_backend("reference"):
        want = mx.grad(lambda q: attention(q, k, k).square().sum())(q)
    bounds.check("dQ", found, bounds.float64(want), "tuned", "float32")


def test_the_policy_follows_the_times(tuner):
    asked = Asked(mx.float32, 16, 16, 2048, 2048, mask="causal")
    fused = asked._replace(head_dim=64, value_dim=64)
    assert decide(None, family(), fused).name == "fused forward"
    assert cli.main([*TUNE[:2], "64", *TUNE[3:]]) == 0
    rule = decide(None, family(), fused)
    assert (rule.name, rule.ours) == ("timed on this machine", True) and "1 ms here, the built-in 3 ms" in rule.why
    assert not decide(None, family(), fused._replace(training=True)).ours
    assert decide(None, family(), fused._replace(queries=3000, keys=1500)).ours
    # No call like it was timed.
    assert decide(None, family(), fused._replace(queries=300, keys=300)).name == "fused forward"
    assert decide(None, family(), fused._replace(mask="array")).name == "array mask"  # the built-in keeps all scores
    assert decide("always", family(), fused).name == "always"
    with mlx_flash.patch() as report:
        q = mx.zeros((1, 1, 1500, 64))
        mx.fast.scaled_dot_product_attention(q[:, :, :9], q, q, scale=1.0)
    assert report.ours == 0  # 9 queries are no 2048


def test_it_goes_on_where_it_was_interrupted(tuner, monkeypatch, capsys):
    monkeypatch.setattr(Clock, "stop_after", 4)
    assert cli.main(TUNE) == 130
    first = list(Clock.asked)
    forget()
    assert family().tuned.rows[0].kind == "forward"  # what is there is used
    monkeypatch.setattr(Clock, "stop_after", 1000)
    assert cli.main(TUNE) == 0
    again = Clock.asked[len(first) :]
    repeated = set(first) & set(again)
    assert repeated == {first[3]}  # the table's row of the kernel under way gives the right results
    count = len(Clock.asked)
    assert cli.main(TUNE) == 0 and len(Clock.asked) == count
    assert cli.main([*TUNE, "--again"]) == 0 and len(Clock.asked) == count + 12


def test_a_row_that_was_faster_by_chance_is_none_of_the_winners(tuner, monkeypatch, capsys):
    """What beats the table's row is timed again, once, in turns with it; what is slower then is not used."""
    monkeypatch.setattr(Clock, "second", 1.99)
    assert cli.main(TUNE) == 0
    assert [kind for kind, _ in Clock.turns] == [kind.name for kind in KERNELS]
    assert all(
        rows == ranked(kind, "float32", FAMILIES["apple7"], 16, 3)[:2] for kind, (_, rows) in zip(KERNELS, Clock.turns)
    )
    assert family().tuned.rows == ()
    forget()
    assert cli.main(TUNE) == 0 and len(Clock.turns) == len(KERNELS)


def test_rows_that_were_not_timed_in_turns_are_later(tuner, capsys):
    """As after an interruption between the last row and the turns."""
    assert cli.main(TUNE) == 0
    path = tuned.file_here()
    contents = json.loads(path.read_text())
    for one in contents["rows"]:
        one.pop("in_turns", None)
    path.write_text(json.dumps(contents))
    count = len(Clock.asked)
    assert cli.main(TUNE) == 0
    assert len(Clock.asked) == count and len(Clock.turns) == 2 * len(KERNELS)


def test_the_kept_measurements_are_the_quoted_ones():
    bench = Path(__file__).parents[2] / "bench"
    contents = json.loads((bench / "results" / "cuda_tuned.json").read_text(encoding="utf-8"))
    kernels = {(one["kind"], one["head_dim"]) for one in contents["rows"]}
    found = tuned.winners(contents, FAMILIES["sm90"]).rows
    gains = sorted(round(100 * (one.table_ms / one.ms - 1)) for one in found)
    words = f"of {len(kernels)} kernels in bfloat16 {len(found)} have a row that is faster in turns"
    assert f"{words}, by {gains[0]} to {gains[-1]} %" in (bench / "README.md").read_text(encoding="utf-8")


def test_time_runs_out(tuner, capsys):
    command.tune(["float32"], [16], 3, 0.0, False)
    assert Clock.asked == [] and "the same command goes on from here" in capsys.readouterr().out


def test_two_at_once(tuner, capsys):
    with tuned.tuning_lock():
        assert cli.main(TUNE) == 2
    assert "another tune runs on this machine" in capsys.readouterr().err and Clock.asked == []
    assert cli.main(TUNE) == 0


def test_a_folder_that_cannot_be_written(tuner, capsys):
    tuner.write_text("a file in the place of the folder")
    assert cli.main(TUNE) == 2 and "set MLX_FLASH_CACHE" in capsys.readouterr().err and Clock.asked == []


def changed(contents: dict, **changes) -> str:
    return json.dumps({**contents, **changes})


DAMAGES = {
    "empty": lambda found: "",
    "cut": lambda found: json.dumps(found)[:200],
    "list": lambda found: "[]",
    "no-rows": lambda found: changed(found, rows=None),
    "no-identity": lambda found: changed(found, identity=[]),
    "row-without-a-size": lambda found: changed(found, rows=[{**found["rows"][0], "row": {"parallel": 32}}]),
    "row-of-no-kernel": lambda found: changed(found, rows=[{**found["rows"][0], "kind": "sideways"}]),
    "text-for-a-number": lambda found: changed(found, rows=[{**found["rows"][0], "ms": "fast"}]),
    "illegal-row": lambda found: changed(
        found, rows=[{**found["rows"][0], "row": {**found["rows"][0]["row"], "parallel": 33}}]
    ),
    "negative-size": lambda found: changed(
        found, rows=[{**found["rows"][0], "row": {**found["rows"][0]["row"], "stages": -2}}]
    ),
    "row-without-a-time": lambda found: changed(found, rows=[{**found["rows"][0], "ms": 0, "failure": ""}]),
    "no-time": lambda found: changed(found, calls=[{**found["calls"][0], "ms": 0}]),
    "other-chip": lambda found: changed(found, identity={**found["identity"], "chip": "Apple M9"}),
    "other-mlx": lambda found: changed(found, identity={**found["identity"], "mlx": "0.1.0"}),
    "other-kernels": lambda found: changed(found, identity={**found["identity"], "kernels": "0"}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_damaged_or_stale_is_a_warning(tuner, capsys, name):
    assert cli.main(TUNE) == 0
    path = tuned.file_here()
    path.write_text(DAMAGES[name](json.loads(path.read_text())))
    forget()
    with pytest.warns(RuntimeWarning, match="does not use what was tuned in .*Run `python -m mlx_flash tune` again"):
        assert family().tuned == Tuned()
    with warnings.catch_warnings(action="error"):
        assert plan(FORWARD, SIGNATURE, family()).table_row == table_row(FORWARD, "float32", FAMILIES["apple7"], 16)
    assert cli.main(["tune", "--show"]) == 1
    forget()
    with warnings.catch_warnings(action="ignore"):
        assert cli.main(TUNE) == 0  # written anew
    forget()
    with warnings.catch_warnings(action="error"):
        assert family().tuned.rows


def test_nothing_is_tuned_behind_ones_back(tuner, monkeypatch, capsys):
    q = mx.random.normal((1, 1, 12, 16))
    mx.eval(attention(q, q, q))
    assert not tuner.exists() and cli.main(["tune", "--show"]) == 1
    assert "nothing was tuned yet" in capsys.readouterr().out
    assert cli.main(TUNE) == 0
    monkeypatch.setenv("MLX_FLASH_TUNED", "0")
    forget()
    assert family().tuned == Tuned()
    monkeypatch.setenv("MLX_FLASH_TUNED", "no")
    forget()
    with pytest.raises(ValueError, match="MLX_FLASH_TUNED: expected 0 or 1, got 'no'"):
        attention(q, q, q)


def test_the_gains_are_a_table(tuner, capsys):
    assert cli.main(TUNE) == 0
    capsys.readouterr()
    assert cli.main(["tune", "--show"]) == 0
    said = capsys.readouterr().out
    assert said.count("+100%") == 4 and "12 rows timed, 4 of them failed" in said
    assert "backward_query" in said and "2.000" in said and "-67%" in said and "+200%" in said


def test_a_gain_within_noise_changes_nothing():
    own = replace(table_row(FORWARD, "float32", FAMILIES["apple7"], 16), max_head=16)
    rows = [
        tuned.measurement("forward", "float32", 16, own, True, 1.0, ""),
        tuned.measurement("forward", "float32", 16, replace(own, traversal=32), False, 0.99, ""),
    ]
    assert tuned.winners({"rows": rows, "calls": []}, FAMILIES["apple7"]) == Tuned()


@pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_rows_are_ranked(capsys):
    assert cli.main(TUNE) == 0
    said = capsys.readouterr().out
    assert "no GPU here" in said and said.count("table") == 4 and said.count("forward") == 3
    assert cli.main(["tune", "--show"]) == 2 and "no GPU here" in capsys.readouterr().err
    assert cli.main([*TUNE, "--family", "apple7"]) == 0 and "Rows of apple7" in capsys.readouterr().out


@pytest.mark.parametrize("name", ("apple7", "apple9", "apple10", "sm80", "sm90"))
@pytest.mark.parametrize("head_dim", (8, 40, 64, 128, 256, 512))
def test_ranked_rows_are_legal_and_distinct(name, head_dim):
    for kind in KERNELS[:: 1 if head_dim == 64 else 3]:
        for dtype in ("float32", "float16"):
            rows = ranked(kind, dtype, FAMILIES[name], head_dim, 12)
            assert len(set(rows)) == len(rows) <= 12
            listed = table_row(kind, dtype, FAMILIES[name], head_dim).for_scores(plain=True)
            assert rows[0] == replace(listed, max_head=head_dim)
            for row in rows[1:]:
                assert is_legal(kind, dtype, FAMILIES[name], row) and row.tiles == rows[0].tiles, precision_of(dtype)


def test_tuned_rows_are_for_plain_operands():
    """Quantized operands and block masks choose blocks of their own."""
    row = ranked(FORWARD, "float16", FAMILIES["apple9"], 32, 3)[2]
    machine = replace(FAMILIES["apple9"], tuned=Tuned((TunedRow("forward", "float16", 32, row, 1.0, 2.0),)))
    signature = Signature(1, 1, 32, 32, "float16", 0.25)
    assert plan(FORWARD, signature, machine).table_row == row
    for variants in (Variants(quantization=Quantization("affine", 4, 32)), Variants(block=32)):
        other = replace(signature, variants=variants)
        assert plan(FORWARD, other, machine).table_row == plan(FORWARD, other, FAMILIES["apple9"]).table_row


@pytest.mark.simulator
@pytest.mark.parametrize("kind", (FORWARD, BACKWARD_QUERY, DECODE), ids=str)
def test_a_row_is_timed_and_compared(monkeypatch, kind):
    monkeypatch.setattr(measure, "SIZES", {"simulator": (1, 40)})
    monkeypatch.setattr(measure, "DECODE_KEYS", 40)
    monkeypatch.setattr(measure, "milliseconds", lambda call: call() or 1.5)
    own = backends.backend("simulator", "apple7")
    rows = ranked(kind, "float32", own.family, 16, 2)
    bench = measure.Bench(measure.Kernel(kind, "float32", 16), own)
    assert [bench.time(row) for row in rows] == [(1.5, ""), (1.5, "")]
    monkeypatch.setattr(measure, "take_turns", lambda runs, *_: {row: {"ms": len(run())} for row, run in runs.items()})
    assert bench.in_turns(rows) == [len(kind.outputs)] * 2
    monkeypatch.setattr(measure, "relative_error", lambda *_: 0.5)
    assert bench.time(rows[1]) == (0.0, "its numbers are wrong, by 0.5 of the largest magnitude")
    monkeypatch.setattr(measure, "milliseconds", lambda call: 1 / 0)
    monkeypatch.setattr(measure, "relative_error", lambda *_: 0.0)
    with pytest.raises(ZeroDivisionError):  # a defect of the tuner is not one of the row
        bench.time(rows[1])


def test_calls_are_those_of_models():
    found = measure.cases(["float16"], [64], "metal")
    assert [(case.backward, case.causal, case.queries) for case in found] == [
        (False, True, None), (False, False, None), (True, True, None), (True, False, None), (False, False, 1),
    ]  # fmt: skip
    assert asdict(found[-1])["key_heads"] == 8
