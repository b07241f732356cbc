"""Every snippet and command of the README runs, and does what the words around it say."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import bounds
import mlx.core as mx
import pytest
from tiny_models import close

from mlx_flash.cli.main import parser

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def typed():
    """All snippets in order and in one namespace, as a reader would type them: each with what it printed and the names
    as it left them."""
    names, done = {}, []
    for snippet in SNIPPETS:
        with redirect_stdout(StringIO()) as printed:
            exec(compile(snippet, "README.md", "exec"), names)
        done.append((snippet, printed.getvalue(), dict(names)))
    return done


@pytest.fixture
def after(typed):
    """What the snippet that holds some words printed, and the names it left."""

    def find(words: str) -> tuple[str, dict]:
        ((_, printed, names),) = (one for one in typed if words in one[0])
        return printed, names

    return find


def test_the_first_look(after):
    printed, names = after("from mlx_flash import attention, explain, use_backend")
    assert "simulator" in printed
    assert names["o"].shape == names["dq"].shape == (1, 8, 100, 64)
    assert names["dk"].shape == names["dv"].shape == (1, 2, 100, 64)
    assert mx.all(mx.isfinite(names["dq"])).item()


def test_merged_parts_are_the_whole(after):
    _, names = after("merge([first[0], second[0]]")
    whole = names["attention"](*(names[name] for name in "qkv"))
    assert mx.abs(names["o"] - whole).max().item() <= bounds.FLOAT32["O"] * mx.abs(whole).max().item()


def test_generation(after):
    printed, names = after("mlx_flash.patch() as report")
    assert names["text"] and names["report"].ours > 0
    assert printed.startswith(f"mlx_flash served {names['report'].ours} of ")
    assert "quantized decode" in printed and "built-in" not in printed


def test_packed_texts_do_not_see_each_other(after):
    """Each has the logits it has alone: with rotary positions only distances count."""
    _, names = after("class Packed(llama.Attention)")
    model, row = names["model"], names["row"]
    assert row.size == 32 and names["targets"].tolist().count(-1) == 1
    together = model(row)
    for layer in model.layers:
        assert type(layer.self_attn) is names["Packed"]
        layer.self_attn._segments = None
    for part in (slice(0, 14), slice(14, 32)):
        close(together[:, part], model(row[:, part]))
    before = names["value"].item()
    for layer in model.layers:
        layer.self_attn._segments = names["segments"]([14, 18])
    assert names["loss"](model).item() < before, "the adapters learn"


def test_a_layer_of_ones_own(after):
    _, names = after("class SelfAttention(nn.Module)")
    layer, x = names["layer"], names["x"]
    close(names["y"], layer(x))
    assert mx.abs(names["value"] - layer(x).square().mean()).item() <= bounds.MODEL_LOGITS
    assert names["dx"].shape == x.shape and mx.abs(names["gradients"]["qkv"]["weight"]).max().item() > 0


def test_a_kernel_with_a_race_is_told(after):
    printed, _ = after('name="reverse"')
    assert printed.startswith("race in threadgroup memory")


def test_commands_parse():
    """The table of commands, by the real parser."""
    commands = re.findall(r"^\| `((?!python)[a-z].*?)` \|", README, re.MULTILINE)
    assert [line.split()[0] for line in commands] == ["demo", "lm", "explain", "source", "check", "bench"]
    for line in commands:
        parser().parse_args(line.split())


def test_maps_and_exports(after):
    _, names = after("mx.export_function")
    assert names["per_entry"].shape == names["x"].shape
    file = Path(names["tempfile"].gettempdir()) / "step.mlxfn"
    assert b"custom_kernel_flash_backward_key_value_float32" in file.read_bytes()
    file.unlink()


def test_the_table_of_quantized_caches_is_the_measured_one():
    rows = json.loads((PROJECT / "bench" / "results" / "quantization.json").read_text())["relative_rms_errors"]
    for kind, noun in (("scaled", "channels"), ("shifted", "channels"), ("scattered", "numbers")):
        for method in ("rotated", "balanced"):
            left = [row[f"{method}_over_none"] for row in rows if (row["activations"], row["bits"]) == (kind, 4)]
            line = f"| {kind} {noun}, {method} | {' | '.join(f'{value:.2f}' for value in left)} |"
            assert len(left) == 5 and line in README, line
