"""`check --report`: one block of Markdown that says what a machine makes of the kernels, and what it could not say."""

import re
import warnings
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
        (check, "DTYPES", ("float32",)), (machine, "PROFILER", ("false",)), (report, "SECONDS", 1e6),
        (report, "KERNEL_SECONDS", 1e6),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


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
    assert list(parts_of(text)) == ["Errors against float64", "Appending to a cache"]
    absent = "Kernels on a tiny problem, Difference from the simulator in units in the last place, Speed, Decoding"
    assert text.rstrip().endswith(f"Not done, since MLX finds no Metal GPU here: {absent}.")


def test_on_a_mac_it_has_every_part(mac, small, capsys):
    assert cli.main(["check", "--report"]) == 0
    printed = capsys.readouterr()
    found = parts_of(printed.out)
    assert list(found) == PARTS and "Not done" not in printed.out and guard.tracker() in printed.err
    assert "| GPU | Apple M1 Pro (pretended), applegpu_g13s, unknown cores |" in printed.out
    assert "| system | macOS 15.5 |" in printed.out
    kernels = cells(found[PARTS[0]])
    assert len(kernels) == 21 and {row[0] for row in kernels} >= {"forward", "backward_query", "decode", "combine"}
    assert all(row[5] == "right" and float(row[3]) > 0 for row in kernels)
    assert all(float(row[4]) <= trial.TOLERANCE[row[1]] for row in kernels)
    assert [row[-1] for row in cells(found[PARTS[1]])] == ["pass"]
    assert [row[2:] for row in cells(found[PARTS[2]])] == [["0.00"] * 4]  # the simulator plays the GPU
    assert len(cells(found[PARTS[3]])) == 8 and all(
        float(rate) >= 0 for row in cells(found[PARTS[3]]) for rate in row[2:]
    )
    assert re.search(r"decode D=128 N=40 .*: [\d.]+ ms, built-in [\d.]+ ms", found[PARTS[4]][0])
    assert len(list(mac.glob("*.json"))) >= 21


def test_a_kernel_that_fails_is_told_with_its_reason(mac, small, monkeypatch, capsys):
    monkeypatch.setenv(FAULT, "refuse:backward_query")
    monkeypatch.setattr(report, "PARTS", report.PARTS[:2])
    with warnings.catch_warnings(action="ignore"):
        assert cli.main(["check", "--report"]) == 1
    found = parts_of(capsys.readouterr().out)
    verdicts = {row[0]: row[5] for row in cells(found[PARTS[0]])}
    assert "Unable to build metal library" in verdicts["backward_query"] and verdicts["forward"] == "right"
    assert [row[-1] for row in cells(found[PARTS[1]])] == ["pass"]  # by what takes its place


def test_a_part_that_breaks_leaves_the_others(mac, small, monkeypatch, capsys):
    def broken(tick):
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(report, "PARTS", (report.Part("First", broken, True), report.PARTS[-1]))
    assert cli.main(["check", "--report"]) == 1
    found = parts_of(capsys.readouterr().out)
    assert found["First"] == ["Failed: RuntimeError: no such thing"] and "of its size" in found[PARTS[-1]][0]


def test_time_runs_out(mac, small, monkeypatch, capsys):
    monkeypatch.setattr(report, "SECONDS", -1.0)
    cli.main(["check", "--report"])
    assert f"Not done, since the parts before took -1 s: {', '.join(PARTS)}." in capsys.readouterr().out


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
    forward, backward = (case for case in measures.speed_cases() if case.head_dim == 64 and case.dtype == "float32")
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
