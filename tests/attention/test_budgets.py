"""What the hot loops issue, counted on the simulator, within budgets: a kernel that grows slower on a GPU fails here.

Counted for each 8x8x8 product, eight of which the neural accelerators make at once, on whole blocks: 256 queries and
keys of 64 columns. Instructions that the simulator cannot count are counted in the code that its compiler makes of the
text.
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

from mlx_flash import attention, use_backend
from mlx_flash.explanations.explain import arrays_of
from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup
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

# Bytes of the device that one product costs. Operands copied to threadgroup memory: each element once a threadgroup, 16
# bytes a product where it has 64 rows, and 32 where it has 32; direct ones: a fragment, 128, or half of it where a
# simdgroup has 16 rows. The rest is what registers do not keep.
LOADED = {
    "apple7": {FORWARD: 18, BACKWARD_QUERY: 44, BACKWARD_KEY_VALUE: 84},
    "apple9": {FORWARD: 132, BACKWARD_QUERY: 144, BACKWARD_KEY_VALUE: 204},
    "apple10": {FORWARD: 68, BACKWARD_QUERY: 52, BACKWARD_KEY_VALUE: 64},
}
# Accesses of a lane that one product costs: reads of threadgroup memory, where one of 16 bytes serves four fragments of
# float16, writes there, whose transposed half goes element by element, and reads of the device, 16 bytes each too.
ACCESSES = {
    "apple7": {FORWARD: (0.25, 0.15, 0.09), BACKWARD_QUERY: (0.25, 0.36, 0.2), BACKWARD_KEY_VALUE: (0.25, 0.29, 0.44)},
    "apple9": {FORWARD: (0, 0, 0.29), BACKWARD_QUERY: (0, 0, 0.31), BACKWARD_KEY_VALUE: (0, 0, 0.64)},
    "apple10": {FORWARD: (0, 0, 0.28), BACKWARD_QUERY: (0, 0, 0.22), BACKWARD_KEY_VALUE: (0, 0, 0.3)},
}
ACCESS_SPACES = (("reads", "threadgroup"), ("writes", "threadgroup"), ("reads", "device"))
# In the whole kernel: (multiplications of 64 bits, divisions). Most stand in the code for edges, whose rows may lie any
# distance apart.
SLOW = {
    "apple7": {FORWARD: (16, 4), BACKWARD_QUERY: (25, 2), BACKWARD_KEY_VALUE: (30, 1)},
    "apple9": {FORWARD: (25, 8), BACKWARD_QUERY: (32, 10), BACKWARD_KEY_VALUE: (42, 11)},
    "apple10": {FORWARD: (26, 5), BACKWARD_QUERY: (33, 6), BACKWARD_KEY_VALUE: (44, 5)},
}
# In the loop over blocks, below those over ranges, their parts and edges: (multiplications of 64 bits, divisions of
# integers, of floats).
BLOCK_DEPTH = 4
SLOW_IN_BLOCKS = {
    "apple7": {FORWARD: (1, 0, 0), BACKWARD_QUERY: (5, 0, 0), BACKWARD_KEY_VALUE: (8, 0, 0)},
    "apple9": {FORWARD: (9, 3, 0), BACKWARD_QUERY: (10, 4, 0), BACKWARD_KEY_VALUE: (18, 6, 0)},
    "apple10": {FORWARD: (15, 0, 0), BACKWARD_QUERY: (11, 0, 0), BACKWARD_KEY_VALUE: (20, 0, 0)},
}


def products_of(launch: dict) -> int:
    return launch["matmuls"] + 8 * launch["tensor_matmuls"]


def passes(family: str, kind) -> int:
    """Products over all queries, keys and columns: the neural accelerators multiply dS in two parts."""
    return kind.matmuls + (FAMILIES[family].tensor == "nax" and kind is not FORWARD)


@pytest.fixture(scope="module")
def counted():
    """What launches_of returns, once for each argument."""
    return cache(launches_of)


def launches_of(family: str, inside: bool = False) -> dict:
    """The launch of each kind, on zeros; delta is made by a kernel of its own, or `inside` that of dQ."""
    case = Case(LENGTH, LENGTH, HEAD_DIM, "float16")
    arrays = {name: mx.zeros(shape, mx.float16) for name, shape in case.shapes.items()}
    with use_backend("simulator", family) as own, mode("check"), profile() as profiled:
        with watched(own, family=replace(own.family, separate_delta=LENGTH + inside)):
            mx.eval(list(backward(case, arrays).values()))
    kinds = (BACKWARD_QUERY_DELTA,) if inside else (DELTA, *KINDS)
    return {kind: next(one for one in profiled.launches if f"flash_{kind}_float" in one["kernel"]) for kind in kinds}


@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_delta_inside_reads_its_operands_once(family, counted):
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
def test_bytes_of_a_product(family, kind, counted):
    launch = counted(family)[kind]
    products, copied = products_of(launch), FAMILIES[family].uses_threadgroup_memory
    assert launch["loaded"]["threadgroup"] == (products * FRAGMENT if copied else 0)
    assert launch["stored"]["threadgroup"] <= products * FRAGMENT / 4
    assert launch["loaded"]["device"] <= LOADED[family][kind] * products, launch["loaded"]["device"] / products


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_accesses_of_a_product(family, kind, counted):
    launch = counted(family)[kind]
    lanes = 32 * products_of(launch)
    found = [launch[way][space] / lanes for way, space in ACCESS_SPACES]
    assert all(one <= most for one, most in zip(found, ACCESSES[family][kind])), found


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_exponentials_shuffles_and_barriers(family, kind, counted):
    launch = counted(family)[kind]
    products = products_of(launch)
    elements = LENGTH * LENGTH * products / (passes(family, kind) * (LENGTH // 8) ** 2 * HEAD_DIM // 8)
    if kind is FORWARD and FAMILIES[family].tensor != "nax":
        # Each row's reference moves once. Its largest score is asked for then and at the end, as its sum is.
        assert launch["exp2"] <= elements + LENGTH // 8 * 32
        assert launch["shuffles"] <= 6 * LENGTH // 8, launch["shuffles"]
    else:
        often = 2 if FAMILIES[family].tensor == "nax" else 1  # blocks of 64 keys, of 128 elsewhere
        assert launch["exp2"] <= elements + often * elements // 32  # the rescaling of a row besides
        assert launch["shuffles"] <= (often * products // 64 if kind is FORWARD else 0), launch["shuffles"] / products
    copied = FAMILIES[family].uses_threadgroup_memory
    each = 256 if kind is FORWARD else 128  # products between two of them
    assert launch["group_barriers"] <= (products // each if copied else 0), launch["group_barriers"] / products


@pytest.mark.parametrize("family", ["apple7", "apple9"])
def test_rescaling_in_every_block(family):
    """In float32, as on M5 and in decoding, each block asks for a row's largest score and rescales its sum once."""
    q, row = mx.zeros((1, 1, LENGTH, HEAD_DIM)), lookup(FORWARD, "float32", FAMILIES[family], HEAD_DIM)
    with use_backend("simulator", family), mode("check"), profile() as profiled:
        mx.eval(attention(q, q, q))
    (launch,) = profiled.launches
    blocks = LENGTH // row.traversal
    assert launch["exp2"] <= LENGTH * LENGTH + LENGTH // 8 * 32 * blocks
    assert launch["shuffles"] <= 2 * LENGTH // 8 * (blocks + 1)  # the sum is joined at the end
    assert slow_operations(in_blocks(code_of(FORWARD, family, "float32")))[2] == 0


def code_of(kind, family: str, dtype: str = "float16") -> str:
    """LLVM's code of a kernel's text after its passes, one thread's."""
    problem = problem_of(*arrays_of(HEAD_DIM, length=LENGTH, key_length=LENGTH, dtype=dtype))
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


def in_blocks(code: str) -> str:
    """The lines of LLVM's code that lie in loops of at least BLOCK_DEPTH levels."""
    parts, function, name = {}, 0, None
    for line in code.splitlines():
        label = re.match(r"(\w[\w.]*):", line)
        if line.startswith("define") or label:
            function += not label
            name = f"{function} {label[1] if label else ''}"
            parts[name] = []
        elif name:
            parts[name].append(line)
    jumps = {
        name: {f"{name.split()[0]} {to}" for line in lines for to in re.findall(r"label %([\w.]+)", line)}
        for name, lines in parts.items()
    }
    deep = set(parts)
    for _ in range(BLOCK_DEPTH):
        deep = without_heads(deep, jumps)
    return "\n".join(line for name in deep for line in parts[name])


def without_heads(inside: set[str], jumps: dict[str, set[str]]) -> set[str]:
    """The parts of the code that lie on a cycle inside of some, but for those where the cycle is entered."""

    def ahead(name: str) -> set[str]:
        seen, waiting = set(), [name]
        while waiting:
            new = (jumps[waiting.pop()] & inside) - seen
            seen |= new
            waiting += new
        return seen

    reached, found = {name: ahead(name) for name in inside}, set()
    for name in inside:
        loop = {other for other in reached[name] if name in reached[other]}
        if name in loop and not any(name in jumps[other] for other in jumps if other not in loop):
            found.add(name)
    return found


def slow_operations(code: str) -> tuple[int, int, int]:
    patterns = r"= mul (?:nsw |nuw )*i64", r"= (?:srem|sdiv|urem|udiv) ", r"= fdiv "
    return tuple(len(re.findall(pattern, code)) for pattern in patterns)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_slow_operations(family, kind):
    """Addresses inside a block take 32 bits; what a thread copies does not change from pass to pass."""
    code = code_of(kind, family)
    multiplications, divisions, _ = slow_operations(code)
    most_multiplications, most_divisions = SLOW[family][kind]
    assert multiplications <= most_multiplications and divisions <= most_divisions, (multiplications, divisions)
    inside = in_blocks(code)
    looped = slow_operations(inside)
    assert re.search(r"@msl_matmul\(|@msl_tensor_multiply\(", inside), "these are no loops over blocks"
    assert all(one <= most for one, most in zip(looped, SLOW_IN_BLOCKS[family][kind])), looped
