"""The Metal text: no dead holes, no accidents of MLX's text scan, one name for one text, the same bytes everywhere."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import mlx.core as mx
import pytest
from problems import make_problem
from table_rows import EVERY, KINDS, builds_of, digest

import mlx_flash
from mlx_flash.autodiff.launching import run_kernel
from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels import minify, source
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import MIXED
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import DELTA, FORWARD, MASK_MAP
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

ROOT = Path(mlx_flash.__file__).parent.parent
TEMPLATES = sorted((ROOT / "templates").rglob("*.metal"))
# What MLX adds to a signature when it finds the word anywhere in a body, comments included.
ATTRIBUTES = (
    "dispatch_quadgroups_per_threadgroup", "dispatch_simdgroups_per_threadgroup", "dispatch_threads_per_threadgroup",
    "grid_origin", "grid_size", "quadgroup_index_in_threadgroup", "quadgroups_per_threadgroup",
    "simdgroup_index_in_threadgroup", "simdgroups_per_threadgroup", "thread_execution_width",
    "thread_index_in_quadgroup", "thread_index_in_simdgroup", "thread_index_in_threadgroup",
    "thread_position_in_grid", "thread_position_in_threadgroup", "threadgroup_position_in_grid",
    "threadgroups_per_grid", "threads_per_grid", "threads_per_simdgroup", "threads_per_threadgroup",
)  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_templates_are_plain_metal(template):
    text = template.read_bytes().decode("ascii")
    assert "\t" not in text and "\r" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"\$\{|\$\$", text), "only plain $NAME holes"


def constants_of(text: str) -> set[str]:
    """Constants that a template names, as $CONSTANT or in a condition of `#if`."""
    conditions = re.findall(r"^#(?:el)?if\b([^/\n]*)", text, flags=re.MULTILINE)
    return {*re.findall(r"\$(\w+)", text), *re.findall(r"[A-Z]\w*", " ".join(conditions))}


def test_constants_are_what_templates_name(monkeypatch):
    """A constant without a value raises when a text is built, and a constant that no template names is an error too."""
    given, original = set(), source.resolved

    def recording(name, constants, readable):
        given.update(constants)
        return original(name, constants, readable)

    monkeypatch.setattr(source, "resolved", recording)
    for arguments in {arguments[0]: arguments for arguments in EVERY}.values():
        source.build.__wrapped__(*arguments)
        *start, _, threads = arguments
        source.build.__wrapped__(*start, Variants(quantization=Quantization("affine", 4, 64)), threads)
    (row, *_) = TABLE[MASK_MAP, MIXED, "apple9"]
    source.build.__wrapped__(MASK_MAP, row, FAMILIES["sm90"], "float16", 64, 64, Variants(mask="bool"), None)
    assert given == set().union(*(constants_of(path.read_text()) for path in TEMPLATES))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_holes_are_for_constants_and_types(template):
    for line in template.read_text().splitlines():
        code = line.split("//")[0].strip()
        if "$" in code:
            assert re.match(r"(constant constexpr (int|uint|bool) |using \w+ = \$\w+;)", code), line


@pytest.mark.parametrize("step", KINDS, ids=str)
def test_a_body_names_its_arguments_and_nothing_else(step):
    """MLX adds an argument for every word that it finds in a body."""
    body = source.build(*builds_of(step)[0]).body
    found = {word for word in ATTRIBUTES if word in body}
    assert found == {"threadgroup_position_in_grid", "thread_index_in_threadgroup"} and "//" not in body
    assert all(name in body for name in (*step.inputs, *step.outputs))


def size(kernel) -> int:
    return len(kernel.header) + len(kernel.body)


def test_texts_are_short():
    """MLX copies the whole text at every call and hashes it at every launch."""
    assert max(size(source.build(*arguments)) for arguments in builds_of(FORWARD)) <= 20_000
    assert max(size(source.build(*arguments)) for arguments in builds_of(DELTA)) <= 2_000


@functools.cache
def text_with_names(arguments: tuple) -> str:
    """The text of a kernel as MLX gets it, but for the names in it."""
    with mock.patch.object(source, "minified", lambda text, body, names: minify.used(text, body)):
        return source.build.__wrapped__(*arguments).header


@pytest.mark.long
def test_texts_hold_only_what_is_used():
    """Texts have no comments, no blank lines and no branches of variants that are off."""
    for arguments in EVERY:
        text = text_with_names(arguments)
        assert not re.search(r"//|\n\s*\n|#if|#define|\$", text)
        assert not re.search(r"[Dd]ropout|slopes|block_map|Quantized|softcap|sinks|segments|window", text)
        assert "store_sums" not in text


@pytest.mark.long
def test_texts_keep_to_forms_that_apples_compiler_has_seen():
    """Constructs with few public precedents do not occur, or in one form only: casts between pointers and numbers,
    macros, global names beside those of MLX's prelude. The exponential of the hot loops is the fast one, under
    "safe"."""
    for arguments in EVERY:
        text = text_with_names(arguments)
        pairs = {f"thread Pair<{element}>&" for element in ("A", "B", "float")}
        assert set(re.findall(r"reinterpret_cast<([^(]*)>\(", text)) <= pairs
        assert not re.search(r"(?<![\w:])exp2?\(", text) and text.count("fast::exp2(") <= 1
        assert not re.search(r"#(?!include <|pragma clang loop)", text)
        attribute = r"\[\[max_total_threads_per_threadgroup\(\d+\)\]\]"
        known = rf"namespace flash ?\{{|#include <\w+>|using namespace metal;|{attribute}"
        depth = 0
        for line in text.splitlines():
            assert depth or re.fullmatch(known, line), line
            depth += line.count("{") - line.count("}")


def test_a_switch_keeps_comments(monkeypatch):
    """The switch helps to read generated text; the compiler sees the same code."""
    arguments = builds_of(FORWARD)[0]
    short = source.build(*arguments)
    monkeypatch.setenv(source.KEEP_COMMENTS, "1")
    long = source.build.__wrapped__(*arguments)
    assert "// S = Q K^T, masked" in long.header and "\n\n" in long.header
    text, attribute = minify.stripped(long.header).replace(source.REOPENED, "").split("[[max")
    small = minify.minified(text, long.body, names=False)
    assert f"{small}[[max{attribute}".strip() == short.header.strip() and long.body == short.body


@pytest.mark.parametrize(
    "condition, holds",
    [("A", True), ("B", False), ("!B && (B || A)", True), ("!(A && C)", False), ("0 || B", False), ("!0 && 1", True)],
)
def test_conditions_are_those_of_the_preprocessor(condition, holds):
    constants = {"A": "1", "B": "0", "C": "true", "D": "false"}
    text = f"#if D\n#if UNKNOWN\nx\n#endif\n#elif {condition}\nyes\n#else\nno\n#endif\n"
    assert source._resolved(text, frozenset(constants.items())) == ("yes\n" if holds else "no\n")


def test_an_unknown_constant_is_an_error():
    with pytest.raises(NameError, match="UNKNOWN"):
        source._resolved("#if UNKNOWN\n#endif\n", frozenset())


@pytest.mark.reported("mlx-3832", "mlx-3833", "mlx-2242")
def test_kernel_names_and_texts_are_one_to_one():
    """MLX caches by name before 0.32.2: two texts under one name would be mixed up, two names compile twice."""
    texts, names = {}, {}
    for arguments in EVERY:
        kernel = source.build(*arguments)
        text = (kernel.header, kernel.body)
        assert texts.setdefault(kernel.name, text) == text, f"{kernel.name}: two texts"
        assert names.setdefault(text, kernel.name) == kernel.name, f"{kernel.name}: also {names[text]}"
        assert re.fullmatch(r"\w+", kernel.name) and (kernel.header + kernel.body).isascii()
    assert len(texts) > len(TABLE)


def test_families_of_one_table_share_kernels_where_registers_agree():
    """M1 and M2, as M3 and M5, run the same text: what is verified for one holds for the other."""
    for step, row, family, *rest in EVERY:
        twin = FAMILIES[{"apple8": "apple7", "apple10": "apple9"}.get(family.name, family.name)]
        assert source.build(step, row, family, *rest) == source.build(step, row, twin, *rest)


DIGEST = """
import sys, hashlib
import os
sys.path[:0] = sys.argv[1].split(os.pathsep)
import table_rows
print(table_rows.digest())
"""


@pytest.mark.process
def test_same_bytes_in_every_process():
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", DIGEST, os.pathsep.join(sys.path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == digest()


def planned(step, family: str, dtype="float16"):
    problem = make_problem(1, 2, 1, 33, 65, 64, 64, dtype, causal=True)
    return problem, plan_of(step, problem, FAMILIES[family])


@pytest.mark.parametrize("family", ["apple7", "apple9"])
@pytest.mark.parametrize("step", KINDS, ids=str)
def test_the_text_mlx_generates(step, family):
    """MLX's generated text holds our whole header, the occupancy in its place, and operands in the device address
    space."""
    problem, chosen = planned(step, family)
    text = generated_text(chosen, problem)
    assert chosen.kernel.header.strip() in text and chosen.kernel.body.strip() in text
    occupancy = re.findall(r"\[\[max_total_threads_per_threadgroup\((\d+)\)\]\]\s*\[\[kernel\]\]", text)
    assert occupancy == ([str(chosen.max_threads)] if family == "apple7" else [])
    assert text.count("max_total_threads_per_threadgroup") == len(occupancy)
    signature = text[text.index("[[kernel]]") : text.index("{", text.index("[[kernel]]"))]
    for name in step.inputs:
        kinds = {"scale": "const constant float&", "decode_params": r"const constant int\w*\*"}
        kind = kinds.get(name, r"const device \w+\*")
        assert re.search(rf"{kind} {name} \[\[buffer", signature), f"{name} in {signature}"
    for name, dtype in zip(step.outputs, chosen.kernel.output_dtypes):
        assert re.search(rf"device {({'float32': 'float'}).get(dtype, dtype)}\w*\* {name} \[\[buffer", signature)


def test_operands_stay_in_device_memory_however_small():
    """Below 8 elements MLX passes an input as `constant`; seen as bytes the smallest operand has 16."""
    problem = make_problem(1, 1, 1, 1, 1, 8, 8, "float16", 1.0)
    smallest = plan_of(KINDS[0], problem, FAMILIES["apple9"])
    assert re.search(r"const device uint8_t\* Q \[\[buffer", generated_text(smallest, problem))


def test_the_graph_of_our_kernels_exports(tmp_path):
    """mx.export_function accepts the launches, so a Mac can load a function exported elsewhere."""
    from mlx_flash.backends import Backend
    from mlx_flash.backends.metal import run as metal_run

    step = KINDS[0]
    problem, chosen = planned(step, "apple9")
    backend = Backend("metal", FAMILIES["apple9"], metal_run)

    def call(q, k, v):
        return run_kernel(step, problem, backend, mx.gpu, {"Q": q, "K": k, "V": v, "scale": 0.125})

    arrays = [mx.zeros((1, heads, length, 64), mx.float16) for heads, length in ((2, 33), (1, 65), (1, 65))]
    mx.export_function(str(tmp_path / "attention.mlxfn"), call, *arrays)
    assert (tmp_path / "attention.mlxfn").stat().st_size > len(chosen.kernel.body)


def test_delta_has_no_head_dimension_of_its_own():
    """It reads O and dO only: one text serves every D, and both masks."""
    for step, row, family, dtype, _, value_dim, _, threads in builds_of(DELTA):
        builds = (
            source.build(step, row, family, dtype, head_dim, value_dim, Variants(causal=causal), threads)
            for head_dim in (8, 64, 512)
            for causal in (False, True)
        )
        assert len({(kernel.name, kernel.header, kernel.body) for kernel in builds}) == 1
