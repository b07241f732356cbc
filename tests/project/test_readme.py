"""Every README: its snippets run, its figures are the measured ones, and what it names exists."""

import ast
import csv
import importlib
import json
import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import bounds
import mlx.core as mx
import pytest
from public_names import public_rows
from tiny_models import close

import mlx_flash
from mlx_flash import simulator
from mlx_flash.cli.main import parser

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
FOLDERS = sorted(
    path for top in ("bench", "templates", "mlx_flash", "tests") for path in (PROJECT / top).rglob("README.md")
)
MOST_LINES, MOST_FOLDER_LINES = 160, 40
# Where a path in a README may start, besides its own folder.
ROOTS = (PROJECT, PROJECT / "mlx_flash", PROJECT / "tests", PROJECT / "bench" / "results")


def place(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def snippets(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@cache
def typed(path: Path) -> tuple[str, dict]:
    """The output of a README's snippets, and the names that they define: run in order, as a reader would type them."""
    names = {}
    with redirect_stdout(StringIO()) as printed:
        for snippet in snippets(path):
            exec(compile(snippet, place(path), "exec"), names)
    return printed.getvalue(), names


def tables(path: Path) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines if line.startswith("| ")]


def test_the_readmes_are_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for path in FOLDERS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_FOLDER_LINES, place(path)


def test_every_folder_says_what_lives_there_and_how_to_add_one():
    """Folders of modules and of templates; a folder inside one that has a README may do without."""
    explained = {path.parent for path in FOLDERS}
    for path in (PROJECT / "mlx_flash").iterdir():
        assert not path.is_dir() or path.name == "__pycache__" or path in explained, path
    assert {
        PROJECT / "templates",
        PROJECT / "bench",
        PROJECT / "tests",
        PROJECT / "mlx_flash" / "metal" / "ptx",
    } <= explained
    for path in FOLDERS:
        assert re.search(r"\bTo (add|serve|explain|change)\b", path.read_text(encoding="utf-8")), place(path)


@pytest.mark.parametrize("path", [path for path in FOLDERS if "mlx_flash" in path.parts], ids=place)
def test_a_folder_names_its_modules(path):
    """Each module is named in its folder's README, unless it is in a package with a README of its own."""
    text, explained = path.read_text(encoding="utf-8"), {one.parent for one in FOLDERS}
    modules = [one for one in path.parent.rglob("*.py") if not one.name.startswith("__")]
    own = [one for one in modules if path.parent == next(folder for folder in one.parents if folder in explained)]
    assert [one.name for one in own if not re.search(rf"\b{one.stem}\b", text)] == []


@pytest.mark.simulator
@pytest.mark.parametrize("path", [path for path in (README, *FOLDERS) if snippets(path)], ids=place)
def test_the_snippets_run(path):
    typed(path)


@pytest.mark.parametrize("path", (README, *FOLDERS), ids=place)
def test_what_a_readme_names_exists(path):
    """Backticked files and folders, and the targets of links."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`([\w./-]+(?:\.(?:py|md|metal|json|c|h)|/))(?:::?[\w., -]+)?`", text)
    named += [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("https:")]
    folders = (
        path.parent,
        *(one for one in path.parent.iterdir() if one.is_dir()),
        *ROOTS,
        PROJECT / "templates/shared",
    )
    missing = [name for name in named if not any((root / name).exists() for root in folders)]
    assert missing == []


def test_the_six_lines_of_use():
    printed, names = typed(README)
    assert "backend " in printed
    assert names["dq"].shape == (1, 8, 100, 64) and names["dk"].shape == names["dv"].shape == (1, 2, 100, 64)
    assert mx.all(mx.isfinite(names["dq"])).item()


def test_training_under_the_patch():
    printed, names = typed(README)
    assert names["report"].ours > 0 and f"mlx_flash served {names['report'].ours} of " in printed
    assert "to the built-in" not in printed
    gradient = names["gradients"]["model"]["layers"][0]["self_attn"]["q_proj"]["weight"]
    assert mx.isfinite(names["value"]).item() and mx.abs(gradient).max().item() > 0


def test_merged_parts_are_the_whole():
    _, names = typed(README)
    whole = names["attention"](*(names[name] for name in "qkv"))
    assert mx.abs(names["o"] - whole).max().item() <= bounds.FLOAT32["O"] * mx.abs(whole).max().item()


def figure(value: float) -> str:
    """Three digits, and two decimals at most."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def memory(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{round(size / 2**20)} MiB"


def name_of(title: str) -> str:
    """The benchmark's name of a case as a table calls it: "with gradients, D=128, N=16384, window 1024"."""
    if title.startswith("one query"):
        key_heads, head_dim, keys = re.search(r"over (\d+), D=(\d+), (\d+) keys", title).groups()
        return f"decode D={head_dim} N={keys} Hk={key_heads}"
    kind, head_dim, length, *window = title.split(", ")
    kind = {"forward": "fwd", "with gradients": "fwd+bwd"}[kind]
    return " ".join([kind, head_dim, length, "causal", *(one.replace("window ", "window=") for one in window)])


@pytest.mark.parametrize("path", (README, PROJECT / "bench" / "README.md"), ids=place)
def test_the_table_of_speeds_is_the_measured_one(path):
    measured = json.loads((PROJECT / "bench" / "results" / "cuda_speed.json").read_text())
    assert measured["device"]["device_name"] == "NVIDIA H200"
    providers = {case["name"]: case["providers"] for case in measured["results"]}
    rows = tables(path)
    header = next(row for row in rows if row[:2] == ["case", "mlx_flash"])
    found = [row for row in rows if re.match(r"(forward|with gradients|one query),", row[0])]
    assert len(found) >= 4
    for title, *cells in found:
        for provider, cell in zip(header[1:], cells):
            facts = providers[name_of(title)].get(provider.strip("`"))
            want = "" if facts is None else figure(facts["ms"])
            want += f" ({memory(facts['bytes'])})" if facts and "bytes" in facts else ""
            assert cell.strip("| ") == want, (title, provider)


def test_the_figures_of_pages_and_neighbourhoods_are_the_measured_ones():
    measured = json.loads((PROJECT / "bench" / "results" / "cuda_masks_tokens.json").read_text())
    assert measured["device"]["device_name"] == "NVIDIA H200"
    results = measured["results"]
    ms = {case["name"]: {name: found["ms"] for name, found in case["providers"].items()} for case in results}
    (row,) = (row[2] for row in tables(PROJECT / "bench" / "README.md") if row[1:2] == ["`cuda_masks_tokens.json`"])
    (rows,) = (found for name, found in ms.items() if name.startswith("32 rows of 1024"))
    near, far = ms["fwd neighbourhood 7x7 of 56x56"], ms["fwd+bwd neighbourhood 7x7 of 56x56"]
    want = [*rows.values(), near["mlx_flash"], far["mlx_flash"], near["mx.fast"], far["mx.fast"]]
    assert re.findall(r"\d+\.\d\d", row) == [f"{value:.2f}" for value in want]
    for name, found in ms.items():
        assert "neighbourhood" not in name or 4 * found["mlx_flash"] <= found["mx.fast"], name
    assert rows["mlx_flash"] <= 1.1 * rows["mlx_flash, contiguous"] and rows["mlx_flash"] <= 0.6 * rows["mx.fast"]


def test_the_counts_of_neural_accelerators_are_those_of_the_simulator():
    """MLX's kernel, which reads Q again in every block, reads more for each product than ours."""
    counted = json.loads((PROJECT / "bench" / "results" / "neural_counts.json").read_text())["counts"]
    written = [row for row in tables(PROJECT / "bench" / "neural.md") if row[0].isdigit()]
    want = []
    for one in counted:
        numbers = (one["exponentials_per_product"], one["bytes_per_product"], *one["cycles"].values())
        want.append([str(one["head_dim"]), one["whose"], one["kernel"], *map(str, numbers)])
    assert [[cell.strip("| ") for cell in row] for row in written] == want
    forward = {(one["head_dim"], one["whose"]): one for one in counted if one["kernel"] in ("forward", "attention_nax")}
    for head_dim in (64, 96, 128):
        mine, others = forward[head_dim, "ours"], forward[head_dim, "MLX"]
        assert mine["products"] == others["products"] == head_dim // 16 * 128
        assert mine["bytes_per_product"] < others["bytes_per_product"]


def test_the_table_of_quantized_caches_is_the_measured_one():
    rows = json.loads((PROJECT / "bench" / "results" / "quantization.json").read_text())["relative_rms_errors"]
    written = tables(PROJECT / "bench" / "README.md")
    for kind, noun in (("scaled", "channels"), ("shifted", "channels"), ("scattered", "numbers")):
        for method in ("rotated", "balanced"):
            left = [row[f"{method}_over_none"] for row in rows if (row["activations"], row["bits"]) == (kind, 4)]
            assert len(left) == 5
            assert [f"{kind} {noun}, {method}", *(f"{value:.2f}" for value in left)] in written


def test_the_instructions_of_users_texts_are_the_counted_ones():
    text = (PROJECT / "mlx_flash" / "problem" / "formulas" / "README.md").read_text(encoding="utf-8")
    with open(PROJECT / "bench" / "results" / "apple_texts.csv", newline="") as file:
        counted = list(csv.DictReader(file))
    assert re.findall(r"\d\.\d{3}", text) == [f"{float(row['ratio']):.3f}" for row in counted]


def test_the_gain_of_five_products_is_the_predicted_one(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(PROJECT / "bench"))
    import pictures

    seven = pictures.passes((pictures.BACKWARD_QUERY, pictures.BACKWARD_KEY_VALUE), "float16")
    wanted = []
    for overlaps in (True, False):
        five = pictures.passes(pictures.KEPT_KINDS, "float16", overlaps)
        gains = sorted(five[head_dim] / seven[head_dim] for head_dim in five if head_dim in seven)
        wanted.append(f"{gains[0]:.2f} to {gains[-1]:.2f}")
    text = (PROJECT / "bench" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\d\.\d\d to \d\.\d\d", text.split("Gradients by five products")[1].split("\n")[0]) == wanted


@pytest.mark.parametrize("path", ("bench", "mlx_flash/metal/ptx"))
def test_the_jobs_of_a_gpu_are_as_many_as_were_run(path):
    jobs = len(json.loads((PROJECT / "bench" / "results" / "cuda_trust.json").read_text())["jobs"])
    assert re.findall(r"(\d+) jobs", (PROJECT / path / "README.md").read_text(encoding="utf-8")) == [str(jobs)]


def test_every_public_name_has_a_stability():
    rows = public_rows()
    wanted = {*mlx_flash.__all__, *(f"simulator.{name}" for name in simulator.__all__)}
    assert wanted <= set(rows), sorted(wanted - set(rows))
    for name, stability in rows.items():
        owner, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"mlx_flash.{owner}".rstrip(".")), attribute), name
        assert stability.startswith(("stable", "provisional")), name


def test_every_command_is_explained():
    """The table of commands, by the real parser."""
    rows = [row[0].strip("`") for row in tables(PROJECT / "mlx_flash" / "cli" / "README.md") if row[0].startswith("`")]
    commands = [row for row in rows if not row.startswith("python")]
    (choices,) = (action.choices for action in parser()._actions if action.dest == "command")
    assert list(dict.fromkeys(line.split()[0] for line in commands)) == list(choices)
    for line in commands:
        parser().parse_args(line.split())


@pytest.mark.simulator
def test_a_kernel_with_a_race_is_told():
    printed, names = typed(PROJECT / "mlx_flash" / "metal" / "README.md")
    assert printed.startswith("race in threadgroup memory") and "line 8" in printed
    assert not mx.array_equal(names["y"], mx.arange(63.0, -1.0, -1.0)).item(), "the comment says: wrong result"


def test_generation_over_a_quantized_cache():
    printed, names = typed(PROJECT / "mlx_flash" / "lm" / "README.md")
    assert names["text"] and names["report"].ours > 0
    left = [line for line in printed.splitlines() if "to the built-in" in line]
    assert "quantized decode" in printed and all('rule "' in line for line in left), "a Mac leaves others by rules"


def test_packed_texts_do_not_see_each_other():
    """Each has the logits it has alone: with rotary positions only distances count."""
    _, names = typed(PROJECT / "mlx_flash" / "integrations" / "README.md")
    model, row = names["model"], names["row"]
    assert row.size == 32 and names["targets"].tolist().count(-1) == 1
    together = model(row)
    for layer in model.layers:
        assert type(layer.self_attn) is names["Packed"]
        layer.self_attn._segments = None
    for part in (slice(0, 14), slice(14, 32)):
        close(together[:, part], model(row[:, part]))


def test_a_layer_of_ones_own():
    _, names = typed(PROJECT / "mlx_flash" / "autodiff" / "README.md")
    layer, x = names["layer"], names["x"]
    close(names["y"], layer(x))
    assert mx.abs(names["value"] - layer(x).square().mean()).item() <= bounds.MODEL_LOGITS
    assert mx.abs(names["gradients"]["qkv"]["weight"]).max().item() > 0


def test_maps_and_exports():
    _, names = typed(PROJECT / "mlx_flash" / "transforms" / "README.md")
    assert names["per_entry"].shape == names["x"].shape
    file = Path(names["file"])
    assert b"custom_kernel_flash_backward_key_value_float32" in file.read_bytes()
    file.unlink()


@pytest.mark.long
def test_the_places_of_a_new_variant_are_all_there_are():
    """Modules whose code names a variant: those of the list. Besides, commands and probes draw problems at random, and
    attention over several machines is a function of its own."""
    section = (PROJECT / "mlx_flash" / "problem" / "README.md").read_text(encoding="utf-8").split("## To add")[1]
    listed = set(re.findall(r"^\d\. `([\w/]+\.py)`", section, re.MULTILINE))
    assert len(listed) <= 4
    package = PROJECT / "mlx_flash"
    for variant in ("softcap", "alibi"):
        named = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if speaks_of(variant, path)}
        assert {name for name in named if not name.startswith(("cli/", "distributed/", "gallery/"))} == listed, variant


def speaks_of(word: str, path: Path) -> bool:
    """Whether a module's code, docstrings and comments excepted, has a name or a string that starts with a word."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "value"))
        if any(isinstance(one, str) and re.match(rf"_?{word}\w*$", one) for one in found):
            return True
    return False
