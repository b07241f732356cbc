"""The Metal text: no dead holes, no accidents of MLX's text scan, one name for one text, the same bytes everywhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from string import Template

import mlx.core as mx
import pytest
from problems import make_problem
from table_rows import EVERY, STEPS, builds_of, digest

import mlx_flash
from mlx_flash.autodiff.vjp import run_kernel
from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels import source
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import DELTA
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


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_holes_are_what_source_fills(step, monkeypatch):
    """Both ways: a hole without a value raises in substitute; a value without a hole is dead."""
    given, holes = {}, set()

    class Recording(Template):
        def substitute(self, mapping):
            given.update(mapping)
            holes.update(re.findall(r"\$([A-Za-z_]+)", self.template))
            return super().substitute(mapping)

    monkeypatch.setattr(source, "Template", Recording)
    source.build.cache_clear()
    source.build(*builds_of(step)[0])
    source.build.cache_clear()
    assert holes == {hole.upper() for hole in holes}
    # Features are offered to every step; a step that lacks one of them leaves its hole out.
    assert holes <= set(given) and set(given) - holes <= set(Variants().holes(step))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_holes_are_for_constants_and_types(step):
    constants, body = source.template(step.name).split(source.BODY)
    assert "$" not in body
    for line in constants.splitlines():
        if "$" in line:
            code = line.split("//")[0].strip()
            allowed = r"(constant constexpr (int|bool) |#define [A-Z_]+ |using \w+ = \$\w+;|\$ATTRIBUTES$)"
            assert re.match(allowed, code), line


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_no_accidental_arguments(step):
    """MLX adds an argument for every word it finds in the body: comments must bring none."""
    body = source.template(step.name).split(source.BODY)[1]
    code = "\n".join(line.split("//")[0] for line in body.splitlines())
    words = [*ATTRIBUTES, *(f"{name}_{fact}" for name in step.inputs for fact in ("shape", "strides", "ndim"))]
    for word in words:
        assert (word in body) == (word in code), f"{word} stands in a comment of {step}"
    assert "thread_index_in_threadgroup" in code, "MLX closes the signature too early without any attribute"


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
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_text_mlx_generates(step, family):
    """From MLX itself: our header whole, the occupancy where it belongs, operands in the device address space."""
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
    smallest = plan_of(STEPS[0], problem, FAMILIES["apple9"])
    assert re.search(r"const device uint8_t\* Q \[\[buffer", generated_text(smallest, problem))


def test_the_graph_of_our_kernels_exports(tmp_path):
    """mx.export_function accepts the launches, so a Mac can load a function exported elsewhere."""
    from mlx_flash.backends import Backend
    from mlx_flash.backends.metal import run as metal_run

    step = STEPS[0]
    problem, chosen = planned(step, "apple9")
    backend = Backend("metal", FAMILIES["apple9"], metal_run)

    def call(q, k, v):
        return run_kernel(step, problem, backend, mx.gpu, {"Q": q, "K": k, "V": v, "scale": 0.125})

    arrays = [mx.zeros((1, heads, length, 64), mx.float16) for heads, length in ((2, 33), (1, 65), (1, 65))]
    mx.export_function(str(tmp_path / "attention.mlxfn"), call, *arrays)
    assert (tmp_path / "attention.mlxfn").stat().st_size > len(chosen.kernel.body)


def test_delta_has_no_head_dimension_of_its_own():
    """It reads O and dO only: one text serves every D, and both masks."""
    kernels = {source.build(*arguments) for arguments in builds_of(DELTA)}
    assert len({kernel.body for kernel in kernels}) == 1
