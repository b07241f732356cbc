"""Shapes and strides that a launch passes by value: how MLX finds the code of such a kernel, in which order the code
takes its parameters, and that a growing cache makes nothing anew. A stub plays MLX's part; what the parameters hold
is seen on a GPU only (tests/cuda/gpu/cuda_trust.py)."""

import re
from functools import cache
from math import prod

import mlx.core as mx
import pytest
from arrays import bits
from call_pairs import forget
from watched import chosen

from mlx_flash import attention
from mlx_flash.backends import Backend, cuda
from mlx_flash.common.mlx_private import CONSTANT_BELOW, compiled_name
from mlx_flash.kernels import split_kv
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.launch import Launch
from mlx_flash.metal.ptx import by_name, by_value, kernel
from mlx_flash.metal.ptx import metal_kernel as plain_kernel

pytestmark = pytest.mark.ptx

works = by_value.works.__wrapped__
SOURCE = "uint i = thread_position_in_grid.x; y[i] = x[i * x_strides[0]] * s; z[i] = uint8_t(w_shape[1]);"
TYPES = {mx.uint8: "uint8_t", mx.float32: "float", mx.int32: "int32_t", mx.bfloat16: "__nv_bfloat16"}
TYPES |= {mx.int64: "int64_t", mx.float16: "__half", mx.bool_: "bool"}


class Mlx:
    """mx.fast.cuda_kernel as MLX has it: the text of the kernel, and the file in which it looks for the code."""

    def __init__(self, folder):
        self.folder, self.launches, self.made, self.passes = folder, [], [], True

    def cuda_kernel(
        self, name, input_names, output_names, source, header="", ensure_row_contiguous=True, shared_memory=0
    ):
        self.made.append(name)

        def call(*, inputs, output_shapes, output_dtypes, grid, threadgroup, init_value=None, stream=None):
            function = f"custom_kernel_{name}"
            text = '\n#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n' + header
            text += f"namespace mlx::core::cu {{\n\nnamespace cg = cooperative_groups;\n\n__global__ void {function}(\n"
            parameters = []
            for array, given in zip(input_names, inputs):
                text += f"    const {TYPES[given.dtype]}* {array},\n"
                parameters.append("pointer")
                for part, kind in (("shape", "Shape"), ("strides", "Strides"), ("ndim", "int")):
                    if given.ndim and f"{array}_{part}" in source:
                        text += f"    const __grid_constant__ {kind} {array}_{part},\n"
                        parameters.append(part)
            for n, (array, dtype) in enumerate(zip(output_names, output_dtypes)):
                text += f"    {TYPES[dtype]}* {array}" + (",\n" if n < len(output_names) - 1 else ") {\n")
                parameters.append("pointer")
            text += source + "\n}\n\n} // namespace mlx::core::cu\n"
            place = self.folder / f"{compiled_name(function, text.encode())}.ptx"
            if not place.exists() or not self.passes:
                raise RuntimeError("Failed to compile kernel")
            found, symbol = place.with_suffix(".txt").read_text().rstrip("\n").split("\t")
            assert found == f"mlx::core::cu::{function}"
            self.launches.append((symbol, place.read_bytes().decode(), parameters, inputs, ensure_row_contiguous))
            if symbol == "mlx_flash_by_value":
                shape, strides = inputs[0].shape, [240, 40, 8, 1]
                return [mx.array([*shape, *strides, inputs[0].ndim], mx.int64), inputs[1][:1]]
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

        return call


@pytest.fixture
def mlx(monkeypatch, tmp_path):
    made = Mlx(tmp_path)
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(by_name, "finds_stored_kernels", lambda: True)
    monkeypatch.setattr(by_value, "works", cache(works))
    monkeypatch.setattr(mx, "gpu", mx.cpu)
    monkeypatch.setattr(mx.fast, "cuda_kernel", made.cuda_kernel)
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", other_way)
    forget()
    yield made
    forget()


def other_way(*, output_shapes, output_dtypes, **_):
    return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]


def check_parameters(code: str, symbol: str, passed: list[str]) -> None:
    """The parameters of an entry are what MLX passes, in order: pointers, shapes (32 bits each, rounded up to 4 or 8)
    and strides (64 bits each)."""
    declared = re.search(rf"\.entry {symbol}\s*\(([^)]*)\)", code)[1].split(",")
    assert len(declared) == len(passed)
    for parameter, what in zip(declared, passed):
        found = re.search(r"\.b8 \w+\[(\d+)\]", parameter)
        assert (found and found[1]) in {"pointer": [None], "shape": ["16", "32"], "strides": ["32", "64"]}[what]


def launched(**options):
    made = plain_kernel(
        name="probe", input_names=["x", "w", "s"], output_names=["y", "z"], source=SOURCE, by_value=True,
        ensure_row_contiguous=False, **options,
    )  # fmt: skip
    inputs = [mx.zeros((64, 2)), mx.zeros((3, 4), mx.bfloat16), mx.array(2.0)]
    made(
        inputs=inputs, grid=(64, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(64,), (64,)],
        output_dtypes=[mx.float32, mx.uint8],
    )  # fmt: skip


def test_mlx_finds_the_code_and_passes_what_it_takes(mlx):
    launched()
    (tried, *_), (symbol, code, passed, inputs, copies) = mlx.launches
    assert tried == "mlx_flash_by_value", "tried before anything depends on it"
    assert passed == ["pointer", "strides", "pointer", "shape", *["pointer"] * 3]
    check_parameters(code, symbol, passed)
    assert len(inputs) == 3 and not copies


@pytest.mark.parametrize("broken", ["not found", "other strides", "no folder"])
def test_where_mlx_does_not_pass_them_launches_go_the_other_way(mlx, monkeypatch, broken):
    reached = []
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", lambda **facts: reached.append(facts) or other_way(**facts))
    monkeypatch.setattr(kernel, "learned", lambda arrays, stream: [mx.zeros(one.ndim) for one in arrays])
    if broken == "not found":
        mlx.passes = False
    if broken == "other strides":
        monkeypatch.setattr(by_value, "works", lambda: False)
    if broken == "no folder":
        monkeypatch.setattr(by_name, "store", lambda *_: False)
    launched()
    assert len(reached) == 1 and len(mlx.launches) == 0


def test_a_text_that_is_compiled_after_all_is_an_error(mlx):
    """MLX would compile it if the file vanished: it must not become a kernel that does nothing."""
    made = []
    plain = mx.fast.cuda_kernel
    mx.fast.cuda_kernel = lambda **facts: made.append(facts["source"]) or plain(**facts)
    launched()
    assert len(made) == 2 and all(source.startswith("#error ") and "\n" not in source for source in made)


def test_grids_that_launches_rearrange_are_passed_with_them(mlx, monkeypatch):
    """A ragged or folded grid is a number that only the other way passes."""
    reached = []
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", lambda **facts: reached.append(facts) or other_way(**facts))
    copy = plain_kernel(
        name="probe",
        input_names=["x"],
        output_names=["y"],
        source="y[thread_position_in_grid.x] = x[0];",
        by_value=True,
    )
    for grid in ((64, 1, 1), (70, 1, 1), (64, 70000, 1)):
        copy(
            inputs=[mx.zeros(64)], grid=grid, threadgroup=(64, 1, 1), output_shapes=[(70,)], output_dtypes=[mx.float32]
        )
    assert len(reached) == 2 and len(mlx.launches) == 2


@pytest.mark.parametrize("keys, kernels", [(300, 1), (5200, 2)], ids=["one part", "parts"])
def test_a_growing_cache_makes_nothing(mlx, monkeypatch, keys, kernels):
    """100 tokens: the kernels of the first, no array of facts but the first ones, no copy, no launch for strides."""
    facts, plain = [], kernel.resident
    monkeypatch.setattr(kernel, "resident", lambda array: facts.append(array) or plain(array))
    monkeypatch.setattr(kernel, "learned", lambda *_: pytest.fail("strides were asked for"))
    kernel._resident.cache_clear()
    q, whole = mx.zeros((1, 8, 1, 64), mx.float16), mx.zeros((1, 2, keys + 100, 64), mx.float16)
    caches = [(whole[:, :, :end], whole[:, :, :end]) for end in range(keys, keys + 101)]
    with chosen(Backend("cuda", FAMILIES["sm90"], cuda.run, decodes=True)):
        attention(q, *caches[0], causal=True)
        before = len(mlx.made), len(facts), len(mlx.launches)
        for cache in caches[1:]:
            attention(q, *cache, causal=True)
    assert before[0] == kernels + 1 and len(mlx.made) == before[0], "and the one that is tried first"
    assert len(facts) == before[1] <= kernels
    assert len(mlx.launches) == before[2] + 100 * kernels
    tokens = [one for one in mlx.launches[1:] if "decode" in one[0]]
    for (_, _, _, inputs, _), cache in zip(tokens, caches):
        assert [one is given for one, given in zip(inputs, (q, *cache))] == [True] * 3, "arrays themselves, no views"
    for symbol, code, passed, _, copies in mlx.launches[1:]:
        check_parameters(code, symbol, passed)
        assert not copies


def test_short_arrays_of_parts_are_padded(mlx, monkeypatch):
    """Those of one head in two parts are so few that MLX passes them as constants; those of many parts are not."""
    monkeypatch.setattr(split_kv, "LEAST", 1800)
    q, whole = mx.zeros((1, 1, 1, 64), mx.float16), mx.zeros((1, 1, 20000, 64), mx.float16)
    with chosen(Backend("cuda", FAMILIES["sm90"], cuda.run, decodes=True)):
        for keys in (20000, 20000, 5200, 5200):
            attention(q, whole[:, :, :keys], whole[:, :, :keys])
    joins = [inputs for symbol, _, _, inputs, _ in mlx.launches if "combine" in symbol]
    assert [one[0].shape[0] for one in joins] == [11, 11, 2, 2]
    assert all(min(one[0].size, one[1].size) >= CONSTANT_BELOW for one in joins)


def test_a_training_step_that_came_before(mlx):
    """The same kernels on the same arrays, without another look at their arguments; 33 rows are the fewest."""
    q, k, v = (mx.random.normal((1, 1, 33, 64), key=mx.random.key(n)).astype(mx.bfloat16) for n in range(3))

    def step() -> list:
        before = len(mlx.launches)
        mx.eval(mx.vjp(lambda q, k, v: attention(q, k, v, causal=True), [q, k, v], [q]))
        return [
            (symbol, passed, [(one.shape, one.dtype) for one in inputs], bits(inputs[0]))
            for symbol, _, passed, inputs, _ in mlx.launches[before:]
        ]

    with chosen(Backend("cuda", FAMILIES["sm90"], cuda.run, decodes=True)):
        first = step()[-3:]
        for kind, (symbol, _, inputs, _) in zip(("forward", "backward_query_delta", "backward_key_value"), first):
            assert kind in symbol and all(prod(shape) >= CONSTANT_BELOW for shape, _ in inputs[:-1]), "none is padded"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Launch, "arguments", lambda *_: pytest.fail("they are known"))
            assert step() == first


def test_gradients_and_masks(mlx):
    """Kernels with arrays whose strides they keep take these by value too."""
    q, k = mx.zeros((2, 40, 4, 64), mx.float16).swapaxes(1, 2), mx.zeros((2, 2, 72, 64), mx.float16)
    mask = mx.zeros((2, 1, 40, 72), mx.float16)
    with chosen(Backend("cuda", FAMILIES["sm80"], cuda.run, decodes=True)):
        mx.eval(mx.grad(lambda q, k: attention(q, k, k, mask=mask).sum(), argnums=(0, 1))(q, k))
    assert len(mlx.launches) >= 4
    for symbol, code, passed, _, _ in mlx.launches[1:]:
        check_parameters(code, symbol, passed)
