"""What the hot loops issue, counted on the simulator, within budgets: a kernel that grows slower on a GPU fails here.

Counted for each 8x8x8 product, eight of which the neural accelerators make at once, on whole blocks: 256 queries and
keys of 64 columns. Instructions that the simulator
cannot count are counted in the code that its compiler makes of the text.
"""

import re
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from cases import Case, backward
from machines import SIMULATED
from watched import watched

from mlx_flash import use_backend
from mlx_flash.explanations.explain import arrays_of
from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.kernels.tile_layers import LAYERS
from mlx_flash.metal.cpu import compiler
from mlx_flash.metal.frontend.language import prefix
from mlx_flash.metal.frontend.translate import translate
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, BACKWARD_QUERY_DELTA, DELTA, FORWARD
from mlx_flash.problem.problem import problem_of
from mlx_flash.simulator import mode, profile

pytestmark = pytest.mark.simulator
KINDS = (FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE)
LENGTH, HEAD_DIM = 256, 64
FRAGMENT = 128  # bytes of an 8x8 fragment of float16

# Bytes of the device that one product costs. Operands copied to threadgroup memory: each element once a threadgroup, 32
# bytes a product; direct ones: a fragment, 128, or half of it where a simdgroup has 16 rows. The rest is what registers
# do not keep.
LOADED = {
    "apple7": {FORWARD: 36, BACKWARD_QUERY: 44, BACKWARD_KEY_VALUE: 84},
    "apple9": {FORWARD: 132, BACKWARD_QUERY: 144, BACKWARD_KEY_VALUE: 204},
    "apple10": {FORWARD: 68, BACKWARD_QUERY: 52, BACKWARD_KEY_VALUE: 64},
}
# In the whole kernel: (multiplications of 64 bits, divisions). Most stand in the code for edges, whose rows may lie any
# distance apart.
SLOW = {
    "apple7": {FORWARD: (16, 4), BACKWARD_QUERY: (25, 2), BACKWARD_KEY_VALUE: (30, 1)},
    "apple9": {FORWARD: (25, 8), BACKWARD_QUERY: (32, 10), BACKWARD_KEY_VALUE: (42, 11)},
    "apple10": {FORWARD: (26, 5), BACKWARD_QUERY: (33, 6), BACKWARD_KEY_VALUE: (44, 5)},
}


def products_of(launch: dict) -> int:
    return launch["matmuls"] + 8 * launch["tensor_matmuls"]


def passes(family: str, kind) -> int:
    """Products over all queries, keys and columns: the neural accelerators multiply dS in two parts."""
    return kind.matmuls + (FAMILIES[family].tensor == "nax" and kind is not FORWARD)


@cache
def counted(family: str, inside: bool = False) -> dict:
    """The launch of each kind, on zeros; delta is made by a kernel of its own, or `inside` that of dQ."""
    case = Case(LENGTH, LENGTH, HEAD_DIM, "float16")
    arrays = {name: mx.zeros(shape, mx.float16) for name, shape in case.shapes.items()}
    with use_backend("simulator", family) as own, mode("check"), profile() as profiled:
        with watched(own, family=replace(own.family, separate_delta=LENGTH + inside)):
            mx.eval(list(backward(case, arrays).values()))
    kinds = (BACKWARD_QUERY_DELTA,) if inside else (DELTA, *KINDS)
    return {kind: next(one for one in profiled.launches if f"flash_{kind}_float" in one["kernel"]) for kind in kinds}


@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_delta_inside_reads_its_operands_once(family):
    """It reads the operands of both kernels; products, exponentials and stores are those of dQ alone."""
    apart, inside = counted(family), counted(family, True)[BACKWARD_QUERY_DELTA]
    query, delta = apart[BACKWARD_QUERY], apart[DELTA]
    assert (
        query["loaded"]["device"] < inside["loaded"]["device"] <= query["loaded"]["device"] + delta["loaded"]["device"]
    )
    assert inside["stored"]["device"] == query["stored"]["device"] + delta["stored"]["device"]
    assert all(inside[count] == query[count] for count in ("matmuls", "tensor_matmuls", "exp2", "group_barriers"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_bytes_of_a_product(family, kind):
    launch = counted(family)[kind]
    products, copied = products_of(launch), FAMILIES[family].uses_threadgroup_memory
    assert launch["loaded"]["threadgroup"] == (products * FRAGMENT if copied else 0)
    assert launch["stored"]["threadgroup"] <= products * FRAGMENT / 4
    assert launch["loaded"]["device"] <= LOADED[family][kind] * products, launch["loaded"]["device"] / products


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_exponentials_shuffles_and_barriers(family, kind):
    launch = counted(family)[kind]
    products = products_of(launch)
    elements = LENGTH * LENGTH * products / (passes(family, kind) * (LENGTH // 8) ** 2 * HEAD_DIM // 8)
    often = 2 if FAMILIES[family].tensor == "nax" else 1  # blocks of 64 keys, of 128 elsewhere
    assert launch["exp2"] <= elements + often * elements // 32  # the rescaling of a row besides
    assert launch["shuffles"] <= (often * products // 64 if kind is FORWARD else 0), launch["shuffles"] / products
    copied = FAMILIES[family].uses_threadgroup_memory
    assert launch["group_barriers"] <= (products // 64 if copied else 0), launch["group_barriers"] / products


def code_of(kind, family: str) -> str:
    """LLVM's code of a kernel's text after its passes, one thread's."""
    problem = problem_of(*arrays_of(HEAD_DIM, length=LENGTH, key_length=LENGTH))
    plan = plan_of(kind, problem, FAMILIES[family])
    language = LAYERS[plan.table_row.tiles].language or "3.1"
    translation = translate(generated_text(plan, problem), float(language))
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code.txt"
        flags = [*compiler._KERNEL_FLAGS, *compiler.here().flags]
        output = ["-S", "-emit-llvm", "-o", str(code)]
        compiler.compile_text(
            flags,
            output,
            prefix(language) + translation.text,
            translation.entry(),
            compiler._SHIM / "mlx.h",
            code.parent,
        )
        return code.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_slow_integer_operations(family, kind):
    """Addresses inside a block take 32 bits; what a thread copies does not change from pass to pass."""
    code = code_of(kind, family)
    multiplications = len(re.findall(r"= mul (?:nsw |nuw )*i64", code))
    divisions = len(re.findall(r"= (?:srem|sdiv|urem|udiv) ", code))
    most_multiplications, most_divisions = SLOW[family][kind]
    assert multiplications <= most_multiplications and divisions <= most_divisions, (multiplications, divisions)
