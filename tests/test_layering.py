"""The shape of the code: imports point one way, files and functions stay small, nothing is commented out."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import mlx_flash

PACKAGE = Path(mlx_flash.__file__).parent
TESTS = Path(__file__).parent
# From the public function to the device: a module may import only what stands to its right, or a leaf.
PATH = (
    "attention", "quantized", "calls", "autograd", "mapping", "operands", "plan", "problem", "parameters", "source",
    "launch", "backends",
)  # fmt: skip
LEAVES = (
    "errors", "transforms", "steps", "device", "decoding", "features", "options", "block_mask", "block_plot",
    "reference", "reference_scores", "simulator", "cuda", "rows", "tiles", "tensor_parameters", "quantization",
    "hadamard",
)  # fmt: skip
# What knows nothing of attention, and all that it may know.
ALONE = {"simulator": {"simulator"}, "cuda": {"cuda", "simulator"}}
PRODUCT = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*PRODUCT, *sorted(TESTS.glob("*.py"))]
TEMPLATES = sorted((PACKAGE.parent / "templates").glob("*.metal"))
MOST_LINES, MOST_FUNCTION_LINES = 400, 60
LONGER = {}  # files that may be longer for a reason that stands beside their name


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def without_type_checking(tree: ast.AST):
    """Every node that runs: what stands under `if TYPE_CHECKING` does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from without_type_checking(node)


def imports(path: Path, text: str | None = None) -> set[str]:
    """Modules of the package that a file imports, by their first part below mlx_flash."""
    package = ("mlx_flash", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in without_type_checking(ast.parse(text or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("mlx_flash.")}


def arrows_back(path: Path, text: str | None = None) -> set[str]:
    """Imports of a file that the direction forbids."""
    module, wanted = module_of(path), imports(path, text)
    if module in LEAVES:
        return wanted & set(PATH) | (wanted - ALONE[module] if module in ALONE else set())
    if module in PATH:
        right = set(PATH[PATH.index(module) :]) | set(LEAVES)
        return wanted - right
    return set()


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_imports_point_one_way(path):
    assert arrows_back(path) == set()


def test_the_direction_test_sees_an_arrow_back():
    assert arrows_back(PACKAGE / "source.py", "from .plan import plan") == {"plan"}
    assert arrows_back(PACKAGE / "steps.py", "from . import problem") == {"problem"}
    assert arrows_back(PACKAGE / "backends" / "metal.py", "def f():\n    from ..launch import launch") == {"launch"}
    assert arrows_back(PACKAGE / "simulator" / "kernel.py", "from ..errors import X") == {"errors"}
    assert arrows_back(PACKAGE / "simulator" / "kernel.py", "from .errors import X") == set()
    assert arrows_back(PACKAGE / "simulator" / "kernel.py", "from ..cuda import X") == {"cuda"}
    assert arrows_back(PACKAGE / "cuda" / "kernel.py", "from ..device import X") == {"device"}
    typed = "if TYPE_CHECKING:\n    from .plan import Plan"
    assert arrows_back(PACKAGE / "source.py", typed) == set()
    assert {module_of(path) for path in PRODUCT} >= set(PATH) | set(LEAVES)


@pytest.mark.parametrize("path", [*PYTHON, *TEMPLATES], ids=named)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGER.get(named(path), MOST_LINES)


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            words = ast.get_docstring(node, clean=False)  # the public function's promises are not code
            length = node.end_lineno - node.lineno + 1 - len((words or "").splitlines())
            assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"


def comments(text: str):
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("#! ")


def is_code(comment: str) -> bool:
    """Parses as a statement that does something: prose with a colon, or a lone word, does not count."""
    try:
        statements = ast.parse(comment).body
    except SyntaxError:
        return False
    return any(
        isinstance(node, (ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.Return, ast.Assert))
        or isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        for node in statements
    )


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_no_code_is_commented_out(path):
    assert [line for line in comments(path.read_text(encoding="utf-8")) if is_code(line)] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=named)
def test_no_metal_is_commented_out(path):
    for line in path.read_text(encoding="ascii").splitlines():
        assert not re.search(r"//.*(\);|\];|\{|\})\s*$", line), line


def test_commented_code_is_seen():
    assert is_code("x = f(1)") and is_code("print(x)") and is_code("import os") and not is_code("the last row: all")


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=named)
def test_tolerances_live_in_one_place(path):
    """No small literal next to a comparison, and none of the usual helpers, outside bounds.py."""
    if path.name in ("bounds.py", "test_oracle.py") or path.name.startswith("test_simulator"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"allclose", "isclose", "assert_allclose", "approx", "array_almost_equal"}
    for compare in (node for node in ast.walk(tree) if isinstance(node, ast.Compare)):
        for node in ast.walk(compare):
            tiny = isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < node.value < 0.1
            assert not tiny, f"line {compare.lineno}: the literal {node.value}"
