"""Every public function and class has an example that runs: in its docstring, or in a README."""

import importlib
import inspect
import re
import textwrap
from pathlib import Path

import mlx.core as mx
import pytest
from public_names import public_rows

import mlx_flash
from mlx_flash import distributed, gallery, rotations, sequences, simulator, transforms

PROJECT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"::\n\n((?:(?: {4,}.*)?\n)+)", re.MULTILINE)
# Modules whose docstring has the examples of their functions.
MODULES = {"gallery.scores": gallery, "gallery.masks": gallery, "simulator": simulator}


def examples(documented) -> list[str]:
    return [textwrap.dedent(found) for found in EXAMPLE.findall(f"{inspect.getdoc(documented)}\n")]


def snippets() -> str:
    """The Python of all READMEs, which test_readme.py runs."""
    folders = ("mlx_flash", "templates", "tests", "bench")
    paths = [PROJECT / "README.md", *(path for folder in folders for path in (PROJECT / folder).rglob("README.md"))]
    texts = "\n".join(path.read_text("utf-8") for path in paths)
    return "\n".join(re.findall(r"```python\n(.*?)```", texts, re.DOTALL))


def public(name: str):
    owner, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"mlx_flash.{owner}".rstrip(".")), attribute)


NAMES = sorted(name for name in public_rows() if name != "__version__")
DOCUMENTED = {name: public(name) for name in NAMES} | MODULES


WITH_EXAMPLES = [
    pytest.param(name, marks=pytest.mark.simulator) if name == "simulator" else name
    for name, one in DOCUMENTED.items()
    if examples(one)
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    q, k, v = (mx.random.normal((2, heads, 64, 128), key=mx.random.key(heads)) for heads in (4, 2, 2))
    names = {"mx": mx, "q": q, "k": k, "v": v, "distributed": distributed}
    for module in (mlx_flash, sequences, rotations, transforms, gallery, simulator):
        names |= {one: getattr(module, one) for one in vars(module) if one[0] != "_"}
    for text in examples(DOCUMENTED[name]):
        exec(compile(text, name, "exec"), names)
    assert all(mx.isfinite(one).all().item() for one in names.values() if isinstance(one, mx.array))


def test_every_public_name_has_an_example():
    shown = snippets() + "".join(text for one in DOCUMENTED.values() for text in examples(one))
    for name, one in DOCUMENTED.items():
        function = inspect.isfunction(one) or (inspect.isclass(one) and not issubclass(one, Exception))
        own = name.rpartition(".")[2]
        assert not function or re.search(rf"\b{own}\b", shown), f"{name} has no example"


def test_a_docstring_says_what_goes_wrong():
    """Functions that take arguments name the errors of wrong ones, in their own docstring or in their class's."""
    for name, one in DOCUMENTED.items():
        takes = callable(one) and not (inspect.isclass(one) and issubclass(one, Exception))
        if not takes or name.startswith("simulator.") or not inspect.signature(one).parameters:
            continue
        assert re.search(r"\braises?\b", inspect.getdoc(one), re.IGNORECASE), f"{name} names no error"
