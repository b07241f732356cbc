"""`python -m mlx_flash lm`: the same tokens with and without the patch, and one sentence for what goes wrong."""

import importlib
import json
import sys
import types

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from refusals import refused

from mlx_flash.cli import main as cli
from mlx_flash.integrations import serve as serving
from mlx_flash.lm import generation, models

pytestmark = pytest.mark.training

SHORT = ["lm", "--max-tokens", "6", "--prompt", "Some words to go on."]


def test_the_tiny_model_on_every_backend(backend, capsys):
    family = ["--family", backend.family.name] if backend.family and backend.name != "metal" else []
    assert cli.main([*SHORT, "--backend", backend.name, *family]) == 0
    said = capsys.readouterr().out
    expected = ("prompt of 20", "without mlx_flash", "served 16 of 16 ", "14 decode", "the same, all 6")
    for words in (backend.name, *expected):
        assert words in said, said


@pytest.mark.parametrize("bits", ("2", "4", "8"))
def test_a_quantized_cache(bits, capsys):
    assert cli.main([*SHORT, "--backend", "reference", "--kv-bits", bits]) == 0
    said = capsys.readouterr().out
    assert f"KV cache of {bits} bits" in said and "14 quantized decode" in said and "the same, all 6" in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model, saved as mlx-lm saves models."""
    place = tmp_path_factory.mktemp("model")
    model, tokenizer = models.tiny_model(seed=1)
    (place / "config.json").write_text(json.dumps(models.TINY))
    mx.save_safetensors(str(place / "model.safetensors"), dict(tree_flatten(model.parameters())))
    tokenizer._tokenizer.save_pretrained(place)
    return place


def test_a_model_from_a_folder(folder, capsys):
    assert cli.main([*SHORT, "--backend", "reference", "--model", str(folder)]) == 0
    said = capsys.readouterr().out
    assert str(folder) in said and "the same, all 6" in said


def test_progress_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert cli.main([*SHORT, "--backend", "reference"]) == 0
    said = capsys.readouterr()
    lines = "without mlx_flash, round 1\nwith mlx_flash, round 1\nwithout mlx_flash, round 2\n"
    assert lines in said.out and not said.err


def test_other_tokens_are_told_and_fail(capsys, monkeypatch):
    right = serving.attention
    monkeypatch.setattr(serving, "attention", lambda *qkv, **options: -right(*qkv, **options))
    assert cli.main([*SHORT, "--backend", "reference"]) == 1
    said = capsys.readouterr().out
    assert "the tokens differ from number" in said and "a tie" not in said


def test_a_tie_is_no_failure():
    assert generation.Divergence(3, gap=1e-6, difference=1e-6, limit=1e-3).tie
    assert not generation.Divergence(3, gap=1e-1, difference=1e-6, limit=1e-3).tie
    assert not generation.Divergence(3, gap=1e-1, difference=1.0, limit=1e-3).tie


def test_a_run_that_stops_early_parts_there():
    long, short = (generation.Run(tuple(range(n)), "", 1.0, 1.0) for n in (5, 3))
    diverged = generation.divergence(None, mx.array([1]), long, short, {}, None)
    assert diverged.position == 3 and not diverged.tie


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda own: own / "missing", ["--model", "no such folder"]),
        (lambda own: own / "config.json", ["--model", "file", "folder"]),
        (lambda own: (own / "config.json").unlink() or own, ["holds no config.json"]),
        (lambda own: (own / "model.safetensors").unlink() or own, ["holds no model*.safetensors"]),
        (lambda own: (own / "config.json").write_text("{") and own, ["cannot load it", "JSONDecodeError"]),
        (
            lambda own: (own / "config.json").write_text('{"model_type": "no"}') and own,
            ["cannot load it", "no not supp"],
        ),
        (lambda own: (own / "model.safetensors").write_bytes(b"x") and own, ["cannot load it"]),
        (lambda own: [path.unlink() for path in own.glob("token*")] and own, ["cannot load it"]),
    ],
    ids=("missing", "file", "no config", "no weights", "bad config", "unknown model", "bad weights", "no tokenizer"),
)
def test_no_model(folder, tmp_path, capsys, make, words):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = make(tmp_path)
    said = refused(capsys, ["lm", "--model", str(path)])
    assert str(path) in said and all(word in said for word in words), said


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--prompt", ""], ["--prompt", "some text"]),
        (["--max-tokens", "0"], ["--max-tokens", "at least 1"]),
        (["--kv-bits", "7"], ["--kv-bits", "7", "8"]),
        (["--kv-bits", "8", "--kv-group-size", "48"], ["--kv-group-size", "48"]),
        (["--kv-bits", "8", "--kv-group-size", "128"], ["cannot run", "group size 128"]),
        (["--backend", "vulkan"], ["--backend", "vulkan"]),
    ],
)
def test_bad_options(capsys, arguments, words):
    said = refused(capsys, ["lm", *arguments])
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "error, words",
    [
        (ModuleNotFoundError("No module named 'mlx_lm'", name="mlx_lm"), ["not installed"]),
        (ModuleNotFoundError("No module named 'transformers'", name="transformers"), ["cannot be imported", "transf"]),
        (ModuleNotFoundError("No module named 'mlx_lm.models'", name="mlx_lm.models"), ["cannot be imported"]),
        (AttributeError("module has no part"), ["cannot be imported", "AttributeError"]),
    ],
    ids=("missing", "without another package", "half installed", "broken"),
)
def test_without_mlx_lm(capsys, monkeypatch, error, words):
    real = importlib.import_module

    def imported(name, *rest):
        if name.startswith("mlx_lm"):
            raise error
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", imported)
    said = refused(capsys, ["lm"])
    assert "mlx_lm" in said and "pip install 'mlx-flash-attention[lm]'" in said and all(word in said for word in words)


def test_an_mlx_lm_that_is_only_a_folder(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm", types.ModuleType("mlx_lm"))
    said = refused(capsys, ["lm"])
    assert "only parts" in said and "pip install --force-reinstall mlx-lm" in said
