"""Any Metal kernel becomes PTX with the entry and the parameters of its launch, and the launch is what MLX is told.

No GPU is needed: what mx.fast.precompiled_cuda_kernel would run is written down.
"""

import re

import mlx.core as mx
import pytest

from mlx_flash.metal.ptx import metal_kernel, ptx, strides
from mlx_flash.metal.ptx.kernel import Grid
from mlx_flash.simulator import CompileError

pytestmark = pytest.mark.ptx

SOURCE = "uint i = thread_position_in_grid.x; y[i] = x[i];"
CALL = dict(grid=(64, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32])


@pytest.fixture
def launches(monkeypatch):
    """Records every launch as keywords in place of a GPU, the one of the strides' kernel too."""
    made = []

    def launch(*, output_shapes, output_dtypes, **facts):
        made.append(facts | {"output_shapes": output_shapes})
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", launch)
    monkeypatch.setattr(mx.fast, "cuda_kernel", lambda **kernel: lambda **call: launch(**kernel, **call))
    strides._writer.cache_clear()
    yield made
    strides._writer.cache_clear()


def kernel(source, inputs=("x",), **options):
    return metal_kernel(name="probe", input_names=list(inputs), output_names=["y"], source=source, **options)


def check_assembles(assembled, launch, *gpus):
    """The stored text, under NVIDIA's assembler."""
    for path in ptx.cache_directory().glob("*.ptx"):
        if path.read_bytes() == launch["compiled_source"]:
            return [assembled(path, gpu) for gpu in gpus]
    raise AssertionError("the launched code is not in the cache")


def entry_of(launch) -> tuple[str, list[str]]:
    """(name, types of the parameters) of the one entry."""
    text = launch["compiled_source"].decode()
    ((name, parameters),) = re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", text)
    return name, re.findall(r"\.param \.(\w+)", parameters)


def test_arguments_in_the_order_of_the_text(launches):
    """Inputs; what the body asks of their shapes, in one array; outputs; the grid in threads."""
    body = "uint i = thread_position_in_grid.x; y[i] = x[i * x_strides[1] + x_shape[0]] * small[1] + one + small_ndim;"
    x, small, one = mx.zeros((64, 64)), mx.array([1.0, 2.0]), mx.array(3.0)
    kernel(body, ("x", "small", "one"))(inputs=[x, small, one], **CALL)
    (launch,) = launches
    assert [(a.shape, a.dtype) for a in launch["inputs"]] == [
        ((64, 64), mx.float32), ((2,), mx.float32), ((), mx.float32), ((16,), mx.int32)
    ]  # fmt: skip
    # x's shape, its strides in 64 bits, small's rank: each begins at a multiple of 8 bytes; all twice.
    assert launch["inputs"][3].tolist() == [64, 64, 64, 0, 1, 0, 1, 0] * 2
    assert launch["scalars"] == [64, 1, 1] and launch["ensure_row_contiguous"]
    name, parameters = entry_of(launch)
    assert name == launch["name"] and name.startswith("custom_kernel_probe")
    assert parameters == ["u64"] * 5 + ["u32"] * 3
    assert ".reqntid 64" in launch["compiled_source"].decode() and launch["shared_memory"] == 0


def test_strides_are_queried_on_the_gpu(launches):
    """Without ensure_row_contiguous, the strides are those of the computed array, which only MLX knows, at run time."""
    body = "uint i = thread_position_in_grid.x; y[i] = x[i * x_strides[0]] + z[i * z_strides[1]];"
    x, z = mx.zeros((64, 3)).T, mx.zeros((1, 1, 64))
    kernel(body, ("x", "z"), ensure_row_contiguous=False)(inputs=[x, z], **CALL)
    asked, launch = launches
    assert asked["inputs"] == [x, z] and asked["output_shapes"] == [(2,), (3,)]
    assert not asked["ensure_row_contiguous"] and not launch["ensure_row_contiguous"]
    assert "strides0[i] = array0_strides[i]" in asked["source"] and "i < 3; i++) strides1" in asked["source"]
    assert [(a.shape, a.dtype) for a in launch["inputs"]] == [
        ((3, 64), mx.float32), ((2,), mx.int64), ((1, 1, 64), mx.float32), ((3,), mx.int64)
    ]  # fmt: skip


def test_strides_that_are_not_read_are_not_queried(launches):
    kernel(SOURCE, ensure_row_contiguous=False)(inputs=[mx.zeros(64)], **CALL)
    assert len(launches) == 1


def test_threadgroup_memory(launches, assembled):
    """Up to 48 KiB are declared; more is requested at the launch, each variable at a multiple of its alignment."""
    body = """uint i = thread_index_in_threadgroup;
    threadgroup half a[SIZE]; alignas(64) threadgroup float b[8]; a[i] = half(x[i]); b[i % 8] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = float(a[63 - i]) + b[i / 8];"""
    for size, asked in ((33, 0), (30001, 60032 + 32)):
        kernel(body.replace("SIZE", str(size)))(inputs=[mx.zeros(64)], **CALL)
        launch = launches[-1]
        assert launch["shared_memory"] == asked
        text = launch["compiled_source"].decode()
        assert (".extern .shared" in text) == bool(asked)
        assert (".shared .align 1024 .b8 msl_threadgroup_0_66_16[66];" in text) != bool(asked)
        assert "bar.sync" in text
        check_assembles(assembled, launch, "sm_80")


def test_a_grid_of_any_size():
    """More groups along y or z than CUDA takes are numbered in rows; threads beyond a ragged edge return."""
    plain = Grid((640, 3, 2), (64, 1, 1))
    assert (plain.folded, plain.ragged) == (False, False)
    assert plain.launched() == {"grid": (640, 3, 2), "threadgroup": (64, 1, 1)}
    deep = Grid((64, 70001, 3), (64, 1, 1))
    assert deep.folded and deep.launched() == {"grid": (64, 65535, 4), "threadgroup": (64, 1, 1)}
    assert deep.launched()["grid"][1] * deep.launched()["grid"][2] >= 70001 * 3
    swapped = Grid((640, 3, 2), (64, 1, 1), y_first=True)
    assert swapped.swapped and swapped.launched() == {"grid": (3 * 64, 10, 2), "threadgroup": (64, 1, 1)}
    wide = Grid((64 * 70001, 3, 2), (64, 1, 1), y_first=True)  # more along x than rows can be
    assert not wide.swapped and wide.launched()["grid"] == (64 * 70001, 3, 2)
    tall = Grid((640, 70001, 1), (64, 1, 1), y_first=True)
    assert not tall.folded and tall.launched()["grid"] == (70001 * 64, 10, 1)
    square = Grid((30, 17, 1), (8, 8, 1))
    assert square.ragged and square.launched() == {"grid": (4 * 64, 3, 1), "threadgroup": (64, 1, 1)}


def test_ragged_and_folded_kernels_assemble(launches, assembled):
    body = "uint3 p = thread_position_in_grid; if (simd_sum(x[0]) > 0) y[(p.z * 17 + p.y) * 30 + p.x] = p.y;"
    for grid, threadgroup in (((30, 17, 2), (8, 8, 2)), ((8, 70001, 1), (8, 1, 1))):
        kernel(body)(inputs=[mx.zeros(64)], **CALL | {"grid": grid, "threadgroup": threadgroup})
        assert launches[-1]["scalars"] == list(grid)
        check_assembles(assembled, launches[-1], "sm_80", "sm_90")
    assert "nctaid" not in launches[-1]["compiled_source"].decode()


LIBRARY = """
uint i = thread_position_in_grid.x; float v = x[i]; threadgroup atomic_uint best;
if (i == 0) atomic_store_explicit(&best, 0u, memory_order_relaxed);
threadgroup_barrier(mem_flags::mem_threadgroup);
atomic_fetch_max_explicit(&best, uint(i), memory_order_relaxed);
float sum = simd_sum(v) + simd_prefix_inclusive_sum(v) + quad_max(v) + simd_shuffle_down(v, 2);
sum += float((ulong)simd_ballot(v > 0));
sum += exp(v) + log(v) + sin(v) + tanh(v) + pow(v, 2.5f) + precise::tan(v) + atan2(v, 2.0f) + rint(v) + fmod(v, 0.7f);
bfloat b = bfloat(v); half h = half(v); half4 four = half4(h); sum += float(b * b) + float(dot(four, four));
simdgroup_matrix<half, 8, 8> a(h), c; simdgroup_matrix<float, 8, 8> d = make_filled_simdgroup_matrix<float, 8, 8>(0);
simdgroup_multiply_accumulate(d, a, a, d); sum += d.thread_elements()[0] + mulhi(i, 3u) + popcount(i);
const float table[4] = {1, 2, 3, 4}; sum += table[i % 4]; sum = simd_is_first() ? sum : sum * simd_broadcast_first(sum);
y[i] = sum + atomic_load_explicit(&best, memory_order_relaxed);
"""


@pytest.mark.parametrize("converged", (False, True))
def test_the_library_assembles(launches, converged, assembled):
    """Without `converged`, simdgroup functions ask which lanes are active; with it, they wait for all lanes."""
    kernel(LIBRARY, converged=converged)(inputs=[mx.zeros(64)], **CALL)
    text = launches[-1]["compiled_source"].decode()
    assert "ld.const" not in text and ".const" not in text
    masks = set(re.findall(r"shfl\.sync\.idx\.b32\s+[^;]*, ([^;,]+);", text))
    assert (masks == {"-1"}) == converged
    check_assembles(assembled, launches[-1], "sm_80", "sm_90", "sm_100")


def test_a_constant_table(launches, assembled):
    """The constant address space is the GPU's global memory, variables of the text among it."""
    header = "constant float table[4] = {1.5, 2, 3, 4}; constant constexpr int N = 3;"
    kernel("uint i = thread_position_in_grid.x; y[i] = table[(i + N) % 4] * x[1];", header=header)(
        inputs=[mx.zeros(2)], **CALL
    )
    text = launches[-1]["compiled_source"].decode()
    assert ".const" not in text and re.search(r"\.global .*\[16\] = ", text)
    check_assembles(assembled, launches[-1], "sm_80")


def test_launches_that_differ_in_a_type_only(launches):
    """A cached launch serves no launch with other types: True is not 1, and int32 is not float32."""
    body = "uint i = thread_position_in_grid.x; y[i] = x[i] + (sizeof(K) == 1 ? 5 : 7) + sizeof(FLAG);"
    probe = kernel(body)
    for x, chosen, flag in (
        (mx.zeros(64), mx.bool_, True),
        (mx.zeros(64), mx.int32, 1),
        (mx.zeros(64, mx.int32), mx.bool_, 1),
    ):
        probe(inputs=[x], template=[("K", chosen), ("FLAG", flag)], **CALL)
    assert len({launch["name"] for launch in launches}) == 3
    probe(inputs=[mx.zeros(64)], template=[("K", mx.bool_), ("FLAG", 1)], **CALL)
    assert launches[-1]["compiled_source"] != launches[0]["compiled_source"]


def test_errors_name_the_line():
    bad = kernel("float a = x[0];\nfloat b = a + missing;\ny[0] = b;")
    with pytest.raises(
        CompileError, match=r"Kernel 'probe' is not valid Metal:\nline \d+: error: .*'missing'\n    float b"
    ):
        bad(inputs=[mx.zeros(64)], **CALL)
    with pytest.raises(CompileError, match="a float does not convert to bfloat without a cast"):
        kernel("bfloat b = x[0]; y[0] = b;")(inputs=[mx.zeros(64)], **CALL)
    with pytest.raises(CompileError, match="needs an address space"):
        kernel("float* p = 0; y[0] = *p;")(inputs=[mx.zeros(64)], **CALL)
    again = "template <typename T> T f(T n) { return n > 0 ? f(n - 1) : n; }"
    with pytest.raises(CompileError, match="line 1: error: Metal has no recursion: 'f<float>' calls itself"):
        kernel("y[0] = f(x[0]);", header=again)(inputs=[mx.zeros(64)], **CALL)


def test_compiled_once(launches, monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    counted = []
    compile_text = ptx.compiler.compile_text
    monkeypatch.setattr(ptx.compiler, "compile_text", lambda *given: counted.append(1) or compile_text(*given))
    for _ in range(2):  # a new object each time: what is kept is on disk
        kernel(SOURCE)(inputs=[mx.zeros(64)], **CALL)
    assert len(counted) == 1 and len(list((tmp_path / "cuda").glob("*.ptx"))) == 1
    kernel(SOURCE)(inputs=[mx.zeros(64)], **CALL | {"grid": (128, 1, 1), "threadgroup": (32, 1, 1)})
    assert len(counted) == 2  # the threadgroup is part of the code


def test_what_was_assembled_is_launched(launches, monkeypatch, tmp_path):
    """A cubin that lies beside the PTX, for this very GPU."""
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    kernel(SOURCE)(inputs=[mx.zeros(64)], **CALL)
    (stored,) = (tmp_path / "cuda").glob("*.ptx")
    stored.with_suffix(".sm_90.cubin").write_bytes(b"a cubin")
    for gpu, expected in (("sm_90", b"a cubin"), ("sm_80", stored.read_bytes())):
        monkeypatch.setattr("mlx_flash.metal.ptx.kernel.gpu", lambda gpu=gpu: gpu)
        kernel(SOURCE)(inputs=[mx.zeros(64)], **CALL)
        assert launches[-1]["compiled_source"] == expected


def test_lane_map_of_the_emulated_product():
    """The lanes that matrix.h asks for, by its own expressions, hold the elements of A and B that its sums want."""
    header = (ptx.INCLUDE / "target" / "matrix.h").read_text()
    place_of = re.search(r"return (\(\(\(lane.*);", header)[1]
    left_of, upper_of, lower_of = re.findall(r"msl_pair_of<[AB]>\(.., .., (.*)\);", header)
    place = [divmod(eval(place_of, {"lane": lane}), 8) for lane in range(32)]
    assert sorted(place) == [(row, column) for row in range(8) for column in (0, 2, 4, 6)]
    assert place[1] == (0, 2) and place[2] == (1, 0) and place[8] == (0, 4) and place[16] == (4, 0)  # as Apple's
    for lane, (row, column) in enumerate(place):
        for k in range(0, 8, 2):
            known = {"k": k, "row": lane & 0x16, "column": lane & 0x09}
            assert place[eval(left_of, known)] == (row, k)
            assert place[eval(upper_of, known)] == (k, column)
            assert place[eval(lower_of, known)] == (k + 1, column)


def test_numbers_come_from_the_gpus_memory(launches):
    """Values known before the launch, and what a kernel asks of shapes: one copy longer than the 8 bytes that MLX keeps
    on the host, and no evaluation that anybody waits for."""
    run, x = kernel("y[0] = x[0] * scale + x_shape[1] + pair[1];", ("x", "scale", "pair")), mx.zeros((2, 32))
    arrays = [x, mx.array(0.0), mx.array([0, 0], mx.int32)]
    prepared = run.prepare(arrays, [mx.float32], CALL["grid"], CALL["threadgroup"], known={1: 0.5, 2: (3, 4)})
    run.start(prepared, arrays, [(2, 32)], [mx.float32])
    first, facts = launches[-1]["inputs"]
    assert first is x and facts.tolist() == [2, 32, 0x3F000000, 0, 3, 4] * 2
    assert entry_of(launches[-1])[1] == ["u64"] * 3 + ["u32"] * 3
