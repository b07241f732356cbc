"""The main job: the demo trains through the kernels, agrees with MLX's attention, and never breaks on bad input."""

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_flash.cli.console import kernel_backend
from mlx_flash.cli.demo import command, plot
from mlx_flash.cli.demo.command import LIMITS, Outcome
from mlx_flash.cli.demo.data import batches, load_text
from mlx_flash.cli.main import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.kernels
@pytest.mark.parametrize(
    "steps", [pytest.param([], marks=pytest.mark.slow, id="40 steps"), pytest.param(["--steps", "2"], id="2 steps")]
)
def test_the_main_job(steps, tmp_path):
    """The demo runs as a user runs it: on the kernels of this machine; all of its steps with a cold cache."""
    environment = {**os.environ, "MLX_FLASH_BACKEND": "", "COLUMNS": "100"}
    environment |= {} if steps else {"MLX_FLASH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "mlx_flash", "demo", *steps, "--out", str(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for word in (kernel_backend(), "agree", "limit 0.001", "backward query", "L and delta", "unfused", "writes"):
        assert word in done.stdout
    assert (tmp_path / plot.NAME).read_bytes().startswith(PNG)
    assert done.stderr == ""


@pytest.fixture
def brief(monkeypatch):
    """A trained model that writes a few letters in place of a line."""
    monkeypatch.setattr(command, "SAMPLED", 4)


@pytest.mark.training
@pytest.mark.usefixtures("brief")
def test_every_backend(backend, tmp_path, capsys):
    family = ["--family", backend.family.name] if backend.name == "simulator" else []
    trains(tmp_path, capsys, backend.name, "float16", family)


@pytest.mark.training
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("dtype", LIMITS)
def test_every_dtype(dtype, tmp_path, capsys):
    trains(tmp_path, capsys, "reference", dtype)


def trains(tmp_path, capsys, backend: str, dtype: str, family=()):
    arguments = ["demo", "--backend", backend, *family, "--steps", "1", "--dtype", dtype]
    picture = tmp_path / "new" / "curves.png"
    assert main([*arguments, "--out", str(picture)]) == 0
    said = capsys.readouterr().out
    assert backend in said and dtype in said and "agree" in said
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.training
def test_repeats_exactly_and_replaces_its_own_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "SAMPLED", 20)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 30 + "été [bold]\n", encoding="utf-8")
    arguments = ["demo", "--backend", "reference", "--steps", "1", "--text", str(text), "--out", str(tmp_path)]
    said = []
    for _ in range(2):
        assert main(arguments) == 0
        said.append(capsys.readouterr().out)
    first, second = (text[text.index("the trained model writes") :].replace(" (replaced)", "") for text in said)
    assert first == second
    assert "replaced" in said[1] and "replaced" not in said[0]


@pytest.mark.training
@pytest.mark.usefixtures("brief")
def test_a_wrong_attention_fails(tmp_path, monkeypatch, capsys):
    right = command.attention
    monkeypatch.setattr(command, "attention", lambda q, k, v, causal: right(q, k, v, causal=causal) * 1.1)
    assert main(["demo", "--backend", "reference", "--steps", "1", "--out", str(tmp_path)]) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_a_loss_that_is_no_number_fails():
    outcome = Outcome([1.0, float("nan")], [1.0, float("nan")], b"", {}, 1.0)
    assert not outcome.agrees


def write(path, data: bytes):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: folder / "missing.txt", ["no such file"]),
        (lambda folder: folder, ["folder"]),
        (lambda folder: folder / ("long" * 100), ["cannot be read"]),
        (lambda folder: write(folder / "empty", b""), ["at least 129", "got 0"]),
        (lambda folder: write(folder / "short", b"a" * 128), ["at least 129", "got 128"]),
        (lambda folder: write(folder / "binary", bytes(range(256)) * 4), ["UTF-8", "binary"]),
        (lambda folder: write(folder / "zeros", b"a\0" * 400), ["UTF-8", "binary"]),
        (lambda folder: write(folder / "latin", "é".encode("latin-1") * 400), ["UTF-8", "binary"]),
    ],
)
def test_bad_text(make, words, tmp_path, capsys):
    path = make(tmp_path)
    assert main(["demo", "--text", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and str(path) in said and "--text" in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: write(folder / "file", b"") / "inside", ["cannot be written"]),
        (lambda folder: write(folder / "file", b"") / "plot.png", ["cannot be written"]),
        (lambda folder: write(folder / "notes.txt", b"mine"), ["cannot be written"]),
        (lambda folder: folder / ("long" * 100), ["cannot be written"]),
        (lambda folder: write(folder / "notes.png", b"mine"), ["exists", "not a plot of this demo"]),
        (lambda folder: write(folder / "photo.png", PNG + b"mine"), ["exists", "not a plot of this demo"]),
    ],
)
def test_bad_out(make, words, tmp_path, capsys):
    path = make(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert main(["demo", "--out", str(path)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and str(path) in said and "--out" in said
    assert all(word in said for word in words), said
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("steps", ("0", "-3", "many", "1.5"))
def test_bad_steps(steps, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", f"--steps={steps}"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and len(said.splitlines()) == 1 and "--steps" in said and repr(steps) in said


def test_data_is_real_text_in_order():
    data = load_text(None, 128)
    assert b"expression" in data and len(data) > 100_000
    (inputs, targets), *others = batches(data, 3, 4, 128, seed=0)
    assert inputs.shape == targets.shape == (4, 128) and len(others) == 2
    assert mx.array_equal(inputs[:, 1:], targets[:, :-1])
    assert bytes(inputs[0].tolist()) in data


def test_a_text_of_the_least_size_trains(tmp_path):
    assert len(list(batches(b"a" * 129, 1, 4, 128, seed=0))) == 1
