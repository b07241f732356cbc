"""The shape of the code: imports point one way, files and functions stay small, nothing is commented out."""

import ast
import functools
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest

import mlx_flash

pytestmark = pytest.mark.long  # every file of the project is parsed

PACKAGE = Path(mlx_flash.__file__).parent
TESTS = Path(__file__).parents[1]
# From the commands down to the errors: a module may import only what stands in its own layer or in a later one.
LAYERS = (
    "__main__", "cli", "__init__", "lm", "gallery", "explanations", "integrations", "distributed", "sequences", "api",
    "autodiff", "rotations", "backends", "kernels", "problem", "transforms", "simulator", "common",
)  # fmt: skip
# Metal without a Mac knows nothing of attention: it imports only itself and what MLX does in private, and inside it the
# front end stands below both targets.
METAL = ("ptx", "cpu", "frontend")
PRODUCT = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*PRODUCT, *sorted(TESTS.rglob("*.py"))]
TEMPLATES = sorted((PACKAGE.parent / "templates").rglob("*.metal"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_ENTRIES = 400, 60, 20
LONGER = {}  # files that may be longer for a reason that stands beside their name


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def for_each(paths):
    """Makes a check of one file one test of all of them; a failure names the file."""

    def decorate(check):
        def test():
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    raise AssertionError(f"{named(path)}: {error}") from error

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


@functools.cache
def nodes_of(text: str) -> list[ast.AST]:
    """Every node of a Python text; several tests look through the same files."""
    return list(ast.walk(ast.parse(text)))


def layer_of(path: Path) -> str:
    """The first part of a module's name below mlx_flash; metal's modules have a second."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "metal" else parts[0]


def imports(path: Path, text: str | None = None) -> set[str]:
    """Modules that a file imports below mlx_flash, in any place: late and type-only imports count too."""
    package = ("mlx_flash", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in nodes_of(text or path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    found = {name.removeprefix("mlx_flash.") for name in found if name.startswith("mlx_flash.")}
    public = {name for name in found if "." not in name and not (PACKAGE / name).is_dir()}
    public = {name for name in public if not (PACKAGE / f"{name}.py").is_file()}
    return (found - public) | {"__init__" for _ in public}


def upward_imports(path: Path, text: str | None = None) -> set[str]:
    """Imports of a file that the order of the layers forbids."""
    layer, wanted = layer_of(path), imports(path, text)
    if layer.startswith("metal"):
        own = layer.partition(".")[2]
        allowed = METAL[METAL.index(own) :] if own in METAL else None
        inside = {name for name in wanted if name.startswith("metal.")}
        inside = {name for name in inside if allowed is None or name.split(".")[1] in allowed}
        return {name for name in wanted - inside if not name.startswith("common.mlx_private")}
    below = {*LAYERS[LAYERS.index(layer) :], "metal"}
    return {name for name in wanted if name.split(".")[0] not in below}


@for_each(PRODUCT)
def test_imports_point_downwards(path):
    assert upward_imports(path) == set()


def test_an_upward_import_is_seen():
    kernels, metal = PACKAGE / "kernels", PACKAGE / "metal"
    assert upward_imports(kernels / "source.py", "from ..backends import use_backend") == {"backends.use_backend"}
    assert upward_imports(PACKAGE / "backends" / "metal.py", "def f():\n    from ..api import x") == {"api.x"}
    typed = "if TYPE_CHECKING:\n    from ..autodiff.call import Call"
    assert upward_imports(kernels / "plan.py", typed) == {"autodiff.call.Call"}
    assert upward_imports(kernels / "plan.py", "from ..problem.problem import Problem") == set()
    assert upward_imports(metal / "cpu" / "kernel.py", "from ...common.errors import X") == {"common.errors.X"}
    assert upward_imports(metal / "frontend" / "rules.py", "from ..cpu import kernel") == {"metal.cpu.kernel"}
    assert upward_imports(metal / "ptx" / "kernel.py", "from ..cpu import kernel") == set()
    assert {layer_of(path).partition(".")[0] for path in PRODUCT} == {*LAYERS, "metal"}


def modules() -> dict[str, set[str]]:
    """Every module of the package with the modules that it imports."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PRODUCT}
    known = set(names.values())
    graph = {}
    for path, name in names.items():
        wanted = set()
        for one in imports(path):
            parts = one.split(".")
            candidates = (".".join(parts), ".".join(parts[:-1]), ".".join([*parts[:-1], "__init__"]))
            wanted |= {found for found in candidates[:2] if found in known} or {candidates[2]} & known
        graph[name] = wanted - {name}
    return graph


def test_no_imports_go_round_in_a_circle():
    graph, finished = modules(), set()

    def visit(name: str, way: tuple[str, ...]):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in finished:
            for other in graph[name]:
                visit(other, (*way, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_the_package_is_seen_at_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= MOST_ENTRIES


def test_modules_are_found_under_their_other_names():
    for other, now in (("hadamard", "rotations"), ("packing", "sequences"), ("masks", "problem.masks")):
        module = importlib.import_module(f"mlx_flash.{other}")
        assert module is getattr(mlx_flash, other) is importlib.import_module(f"mlx_flash.{now}")


@for_each([*PYTHON, *TEMPLATES])
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGER.get(named(path), MOST_LINES)


@for_each(PYTHON)
def test_functions_are_short(path):
    for node in nodes_of(path.read_text(encoding="utf-8")):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"


def comments(text: str):
    if "#" not in text:
        return
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


@for_each(PYTHON)
def test_no_code_is_commented_out(path):
    assert [line for line in comments(path.read_text(encoding="utf-8")) if is_code(line)] == []


def test_headers_of_the_two_targets_are_apart():
    """The order of -I says which version of a header a target gets; no header asks which target it is for, and the
    CPU's folder names nothing of the other's."""
    shared = [path for path in (PACKAGE / "metal" / "cpu" / "include").rglob("*") if path.is_file()]
    for path in shared:
        text = path.read_text(encoding="utf-8")
        assert "NVPTX" not in text and "nvptx" not in text, path
    targets = [{path.name for path in (PACKAGE / "metal" / one / "include" / "target").iterdir()} for one in METAL[:2]]
    assert targets[0] == targets[1]
    wanted = {name for path in shared for name in re.findall(r"#include <target/(\S+)>", path.read_text("utf-8"))}
    assert wanted == targets[0]


@for_each(TEMPLATES)
def test_no_metal_is_commented_out(path):
    for line in path.read_text(encoding="ascii").splitlines():
        assert not re.search(r"//.*(\);|\];|\{|\})\s*$", line), line


def test_commented_code_is_seen():
    assert is_code("x = f(1)") and is_code("print(x)") and is_code("import os") and not is_code("the last row: all")


def imported_tests(text: str) -> set[str]:
    """Test modules that a Python text imports."""
    nodes = nodes_of(text)
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.split(".")[-1].startswith("test_")}


@for_each(sorted(TESTS.rglob("*.py")))
def test_no_test_imports_another(path):
    """Helpers live in tests/support, the one folder of the tests on the import path."""
    assert imported_tests(path.read_text(encoding="utf-8")) == set()


def test_an_import_of_a_test_is_seen():
    assert imported_tests("def f():\n    from test_forward import x\n    import support.test_more") == {
        "test_forward", "support.test_more",
    }  # fmt: skip


@for_each(sorted(TESTS.rglob("*.py")))
def test_tolerances_live_in_one_place(path):
    """Outside bounds.py there is no small literal next to a comparison, and none of the usual helpers."""
    own = {"bounds.py", "test_oracle.py", "library_expressions.py", "metal", "metal_conformance", "gpu"}
    if own & set(path.parts):
        return
    nodes = nodes_of(path.read_text(encoding="utf-8"))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not names & {"allclose", "isclose", "assert_allclose", "approx", "array_almost_equal"}
    for compare in (node for node in nodes if isinstance(node, ast.Compare)):
        for node in ast.walk(compare):
            tiny = isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < node.value < 0.1
            assert not tiny, f"line {compare.lineno}: the literal {node.value}"
