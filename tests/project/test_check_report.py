"""`check --report`: one block of Markdown that says what a machine makes of the kernels, and what it could not say."""

import re
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from pretend_mac.kernel import FAULT

from mlx_flash.backends import guard, prober
from mlx_flash.cli import main as cli
from mlx_flash.cli.accuracy import check
from mlx_flash.cli.probe import trial
from mlx_flash.cli.report import command as report
from mlx_flash.cli.report import machine, measures

PARTS = [part.name for part in report.PARTS]


@pytest.fixture
def small(monkeypatch):
    """Problems that a simulator finishes soon, and time for those that it does not."""
    for module, name, value in (
        (report, "HEAD_DIMS", (16,)), (report, "FEW_HEAD_DIMS", (16,)), (measures, "LENGTH", 16),
        (measures, "HEADS", 1), (measures, "SECONDS", 0.0), (measures, "DECODE_KEYS", 40),
        (measures, "append_copies", partial(measures.append_copies, 1024)),
        (check, "DTYPES", ("float32",)), (machine, "PROFILER", ("false",)), (report, "SECONDS", 1e6),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    measures.fitting.cache_clear()
    yield
    measures.fitting.cache_clear()


def parts_of(text: str) -> dict[str, list[str]]:
    """Lines below every heading of a report; those at its end that belong to no part under ""."""
    found = {}
    for block in text.split("\n### ")[1:]:
        name, _, rest = block.partition("\n")
        found[name] = [line for line in rest.splitlines() if line]
    return found


def cells(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]


@pytest.mark.simulator
@pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_what_it_could_not_do(small, capsys):
    assert cli.main(["check", "--report"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("## mlx_flash report\n") and "| GPU | none that MLX can use |" in text
    assert list(parts_of(text)) == [PARTS[1], "Appending to a cache"]
    absent = "Kernels on a tiny problem, Decoding, Speed, Difference from the simulator in units in the last place"
    assert text.rstrip().endswith(f"Not done, since MLX finds no Metal GPU here: {absent}.")


def test_on_a_mac_it_has_every_part(mac, small, capsys):
    assert cli.main(["check", "--report"]) == 0
    printed = capsys.readouterr()
    found = parts_of(printed.out)
    assert list(found) == PARTS and "Not done" not in printed.out and guard.tracker() in printed.err
    assert "| GPU | Apple M1 Pro (pretended), applegpu_g13s, unknown cores |" in printed.out
    assert "| system | macOS 15.5 |" in printed.out and "| verdicts | kept |" in printed.out
    kernels = cells(found[PARTS[0]])
    assert len(kernels) == 21 and {row[0] for row in kernels} >= {"forward", "backward_query", "decode", "combine"}
    assert all(row[5] == "right" and float(row[3]) > 0 for row in kernels)
    assert all(float(row[4]) <= trial.TOLERANCE[row[1]] for row in kernels)
    assert [row[-1] for row in cells(found[PARTS[1]])] == ["pass"]
    assert len(cells(found["Speed"])) == 8 and all(float(rate) > 0 for row in cells(found["Speed"]) for rate in row[2:])
    assert re.search(r"decode D=128 N=40 .*: [\d.]+ ms, built-in [\d.]+ ms", found["Decoding"][0])
    assert [row[2:] for row in cells(found[PARTS[5]])] == [["0.00"] * 4]  # the simulator plays the GPU
    assert len(list(mac.glob("*.json"))) >= 21


def test_a_kernel_that_fails_is_told_with_its_reason(mac, small, monkeypatch, capsys):
    monkeypatch.setenv(FAULT, "refuse:backward_query")
    monkeypatch.setattr(report, "PARTS", report.PARTS[:2])
    with warnings.catch_warnings(action="ignore"):
        assert cli.main(["check", "--report"]) == 1
    found = parts_of(capsys.readouterr().out)
    verdicts = {row[0]: row[5] for row in cells(found[PARTS[0]])}
    assert re.fullmatch(r"[1-9] of 21 failed\.", found[PARTS[0]][0])
    assert "Unable to build metal library" in verdicts["backward_query"] and verdicts["forward"] == "right"
    assert [row[-1] for row in cells(found[PARTS[1]])] == ["pass"]  # by what takes its place


def test_a_part_that_breaks_leaves_the_others(mac, small, monkeypatch, capsys):
    def broken(tick):
        yield report.Found(("a", "b"))
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(report, "PARTS", (report.Part("First", ("one", "two"), broken, True, 1), report.PARTS[3]))
    assert cli.main(["check", "--report"]) == 1
    found = parts_of(capsys.readouterr().out)
    assert found["First"][-2:] == ["| a | b |", "Failed: RuntimeError: no such thing"]  # what it found is kept
    assert "of its size" in found[PARTS[3]][0]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test adds them."""
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    return now


def stepping(clock, seconds, name, share, steps=9):
    """A part of so many steps, each of which takes so long."""

    def run(tick):
        for step in range(steps):
            tick(f"step {step}")
            clock[0] += seconds
            yield report.Found((f"{name} {step}",))

    return report.Part(name, (), run, True, share)


@pytest.mark.parametrize("seconds", (10.0, -1.0))
def test_every_part_has_its_share_of_the_time(mac, clock, monkeypatch, capsys, seconds):
    """A slow part is cut, and the step that was next is named; those behind it begin all the same, and have what those
    before left."""
    parts = [stepping(clock, *facts) for facts in ((4.0, "slow", 3), (0.5, "fast", 1, 2), (0.5, "last", 1))]
    monkeypatch.setattr(report, "PARTS", tuple(parts))
    monkeypatch.setattr(report, "SECONDS", seconds)
    assert cli.main(["check", "--report"]) == 0
    found = parts_of(capsys.readouterr().out)
    rows = {name: sum(line.startswith(name) for line in lines) for name, lines in found.items()}
    # The first takes 8 of its 6 seconds; of 2 that are left the second needs its own, and the last has 1, twice 0.5.
    assert rows == ({"slow": 2, "fast": 2, "last": 3} if seconds > 0 else dict.fromkeys(rows, 1))
    assert found["slow"][-1] == f"No time was left from step {rows['slow']} on." and len(found) == 3


@pytest.mark.slow
def test_all_parts_are_there_within_three_minutes(mac, capsys):
    """Nothing is made small for it: the simulator stands for a very slow GPU, and has compiled nothing yet."""
    measures.fitting.cache_clear()
    start = time.monotonic()
    assert cli.main(["check", "--report"]) == 0
    assert time.monotonic() - start < 180
    found = parts_of(capsys.readouterr().out)
    assert list(found) == PARTS and all(found.values())
    assert all(len(cells(found[name])) > 0 for name in PARTS[:2] + PARTS[4:])


@pytest.mark.parametrize(
    ("ms", "length", "heads"),
    ((1.0, 2048, 8), (1.2, 1024, 8), (4.6, 1024, 8), (5.0, 512, 8), (300.0, 128, 8), (310.0, 128, 4), (1e4, 128, 1)),
)
def test_a_slow_gpu_is_timed_with_smaller_problems(monkeypatch, ms, length, heads):
    """So that a call takes 0.3 s at most, where one of 128 queries and 8 heads takes `ms`."""
    monkeypatch.setattr(measures, "milliseconds", lambda *_: ms)
    assert measures.fitting.__wrapped__() == (length, heads)
    assert {case.heads for case in measures.speed_cases(length, heads)} == {heads}
    decoding = measures.decode_case(length, heads)
    assert (decoding.length, decoding.heads, decoding.key_heads) == (32768 * length // 2048, 4 * heads, heads)


def test_a_slow_call_is_made_twice(monkeypatch):
    """Once to compile it, and once to time it."""
    made = []
    case = measures.speed_cases(16)[0]

    def slow(*_):
        made.append(1)
        return []

    clock = iter((0.0, 9.0, 9.0, 9.5))
    monkeypatch.setattr(measures.time, "perf_counter", lambda: next(clock))
    assert measures.milliseconds(case, slow, []) == 500.0 and len(made) == 2


def test_a_folder_of_verdicts_that_cannot_be_written_is_told(mac):
    assert guard.keeps()
    mac.rmdir()
    mac.write_text("a file in its place")
    assert not guard.keeps()
    assert "not kept, since their folder cannot be written" in dict(machine.facts())["verdicts"]


def test_the_tracker_is_the_one_of_pyproject(monkeypatch):
    """The address is read from installed metadata, or from the file in a checkout that is not installed."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (address,) = re.findall(r'^Issues = "(https://[^"]+)"$', text, re.M)
    assert guard.tracker() == address
    found = SimpleNamespace(get_all=lambda _: ["Homepage, https://a.b", "Bug Tracker, https://c.d"])
    monkeypatch.setattr(guard.metadata, "metadata", lambda _: found)
    assert guard.tracker() == "https://c.d"
    monkeypatch.setattr(found, "get_all", lambda _: None)
    assert guard.tracker() == "the project's issue tracker"


def test_it_takes_no_other_options(capsys):
    assert cli.main(["check", "--report", "--quick"]) == 2
    assert "leave out the other options" in capsys.readouterr().err


def test_the_count_of_instructions_is_metal_flash_attentions():
    forward, backward = (case for case in measures.speed_cases(2048) if case.head_dim == 64 and case.dtype == "float32")
    squared = forward.heads * forward.length**2
    assert measures.instructions(forward) == 133 * squared
    assert measures.instructions(backward) == (133 + 197 + 261) * squared


def test_an_append_that_copies_is_noticed():
    """One step ahead it does, on this processor; what only reads does not."""
    assert measures.append_copies(4096) > 0.5


def test_check_tries_the_common_kernels_first(mac, monkeypatch, capsys):
    """Kernels that failed before are tried again, and no error is measured while one fails."""
    for name in ("COMMON_HEAD_DIMS", "FEW_HEAD_DIMS"):
        monkeypatch.setattr(check, name, (16,))
    monkeypatch.setattr(check, "sweep", lambda *_: pytest.fail("measured"))
    monkeypatch.setenv(FAULT, "refuse:forward_bfloat16")
    assert cli.main(["check", "--quick"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "flash_forward_bfloat16" in said and "failed its test" in said and guard.tracker() in said
    asked, ask = [], prober.PROBER.ask
    monkeypatch.setattr(prober.PROBER, "ask", lambda plan: asked.append(plan.kernel.name) or ask(plan))
    assert cli.main(["check", "--quick"]) == 1
    assert len(asked) == 2 and all("forward_bfloat16" in name for name in asked)  # dense and causal
