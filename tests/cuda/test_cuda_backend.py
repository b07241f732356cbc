"""Backend "cuda": chosen by itself where there is an NVIDIA GPU, refused with the reason where it cannot run, and its
kernels, for every step and family, assemble. What needs a GPU is in tests/cuda/gpu/cuda_trust.py."""

import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from watched import chosen

from mlx_flash import BlockMask, UnsupportedProblem, Visible, attention, backends, explain, use_backend
from mlx_flash.backends import Backend, cuda
from mlx_flash.common import machine
from mlx_flash.integrations import kept
from mlx_flash.kernels import source
from mlx_flash.kernels.config import precision_of
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import candidates
from mlx_flash.kernels.registers import max_threads
from mlx_flash.kernels.split_kv import QUERIES
from mlx_flash.metal.ptx import ptx
from mlx_flash.metal.ptx.kernel import Grid
from mlx_flash.problem.kinds import (
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_QUERY_DELTA,
    COMBINE,
    DECODE,
    DELTA,
    FORWARD,
    MASK_MAP,
)
from mlx_flash.problem.variants import Variants
from mlx_flash.simulator import ToolchainError

pytestmark = pytest.mark.ptx

H200 = {"architecture": "sm_90", "compute_capability_major": 9, "compute_capability_minor": 0}


@pytest.fixture
def cleared_caches():
    """Choices are remembered for good: before and after the test they are forgotten."""

    def clear():
        kept.calls.clear()
        backends.forget()
        cuda.family_here.cache_clear()

    clear()
    yield
    clear()


@pytest.fixture
def gpu(monkeypatch, cleared_caches):
    """A machine with an H200, as far as MLX says; the test may change what it says."""
    information = dict(H200)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "on_cpu", lambda stream=None: stream is not None and stream == mx.cpu)
    monkeypatch.setattr(mx, "device_info", lambda *_: information)
    monkeypatch.setattr(cuda.driver, "version", lambda: (13, 0))
    monkeypatch.delenv("MLX_FLASH_BACKEND", raising=False)
    return information


@pytest.fixture
def launches(monkeypatch):
    made = []

    def launch(*, output_shapes, output_dtypes, **facts):
        made.append(facts)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", launch)
    monkeypatch.setattr("mlx_flash.metal.ptx.kernel.learned", lambda arrays, stream: [mx.zeros(a.ndim) for a in arrays])
    return made


def test_calls_that_differ_in_a_number_alone(gpu, launches):
    """Plans that differ in a constant do not share the cached parts of their launches."""
    q, seen = mx.zeros((1, 2, 40, 64), mx.float16), []
    for scale, left, softcap in ((0.5, 3, 20.0), (0.25, 3, 20.0), (0.25, 5, 20.0), (0.25, 5, 30.0)):
        for _ in range(2):
            attention(q, q, q, scale=scale, window=(left, 0), softcap=softcap)
            numbers = launches[-1]["inputs"][-1].tolist()
            for value in (scale, softcap):
                assert np.float32(value).view(np.int32) in numbers
            assert left in numbers
            seen.append(str(numbers))
    assert len(set(seen)) == 4


def views(*, keys, queries=48, query_heads=2):
    """q [1, query_heads, queries, 64] and k [1, 2, keys, 64], transposed views: nothing of them is computed."""
    q, k = (mx.zeros((1, n, heads, 64), mx.float16).swapaxes(1, 2) for n, heads in ((queries, query_heads), (keys, 2)))
    return q, k


@pytest.mark.parametrize(
    "shape, options, copied",
    [
        ({"keys": 300}, {}, True),
        ({"keys": 300}, {"segments": (mx.zeros(48, mx.int32), mx.zeros(300, mx.int32))}, True),
        ({"keys": 300}, {"mask": mx.ones((1, 1, 48, 300), mx.bool_)}, False),  # full size if copied
        ({"keys": 300}, {"mask": BlockMask.causal(48, 300, block=32)}, True),
        ({"keys": 300}, {"visible": Visible("k <= q", block=32)}, True),
        ({"keys": 2**16}, {}, True),
        ({"keys": 2**16 + 1}, {}, False),
        ({"keys": 2**16 + 1, "queries": 2047}, {}, False),
        ({"keys": 2**16 + 1, "queries": 2048}, {}, True),
        ({"keys": 2**20 - 2048, "queries": 2048}, {}, True),
        ({"keys": 2**20, "queries": 2048}, {}, False),
        ({"keys": 2**16 + 1, "queries": 512, "query_heads": 8}, {}, True),
        ({"keys": 300, "queries": 1}, {}, True),
        ({"keys": 2**16, "queries": 8}, {}, True),
        ({"keys": 2**16 + 1, "queries": 1}, {}, False),
        ({"keys": 2**16 + 1, "queries": 32, "query_heads": 8}, {}, False),
    ],
    ids=str,
)
def test_views_are_copied_where_that_is_cheap(gpu, launches, shape, options, copied):
    """Views are copied where that is cheap, and the kernel then gets the strides of the copy; else they are learned."""
    q, k = views(**shape)
    attention(q, k, k, **options)
    launch = launches[0]
    decodes = q.shape[2] <= QUERIES
    assert [f"_{step}_" in launch["name"] for step in (DECODE, FORWARD)] == [decodes, not decodes]
    assert len(launches) == 1 + (decodes and k.shape[2] > 300)
    assert launch["ensure_row_contiguous"] == copied
    given = [array.dtype for array in launch["inputs"][:1]]
    assert given == [mx.float16 if copied or decodes else mx.uint8]
    facts = np.array(launch["inputs"][-1]).view(np.int64).tolist()
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    heads, queries = (2, heads // 2 * queries) if decodes else (heads, queries)  # rows of a key head are packed
    row = 64 if decodes else 128  # kernels that decode count elements, others bytes
    dense = [[heads * queries * row, queries * row, row, 1], [2 * keys * row, keys * row, row, 1]]
    for strides in dense:  # of a copy they are known before the launch, else no fact at all
        found = any(facts[start : start + 4] == strides for start in range(len(facts)))
        assert found == copied


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "queries, first", [(2048, True), (12 * 132 // 2 * 128, True), (12 * 132 // 2 * 128 + 1, False)]
)
def test_few_threadgroups_of_causal_attention_start_heads_first(gpu, launches, queries, first, causal):
    """The last head's longest rows would keep few cores busy: with two heads and 132 cores, up to 12 threadgroups for
    each core. Others, whose work is equal, go head by head."""
    q = mx.zeros((1, 2, queries, 64), mx.float16)
    mx.vjp(lambda q: attention(q, q, q, causal=causal), [q], [q])
    tiled = [launch for launch in launches if "flash_delta_" not in launch["name"]]
    assert len(tiled) == 3
    for launch in tiled:
        groups = [extent // size for extent, size in zip(launch["grid"], launch["threadgroup"])]
        blocks = -(-queries // 128)
        assert groups == ([2, blocks, 1] if causal and first else [blocks, 2, 1]), launch["name"]


def test_no_gpu(monkeypatch, cleared_caches):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedProblem, match=r'backend "cuda": this machine has no CUDA GPU.* pip install'):
        use_backend("cuda")


def test_chosen_by_itself(gpu):
    chosen = backends.current_backend()
    assert (chosen.name, chosen.family.name) == ("cuda", "sm90")
    assert "NVIDIA" in explain(head_dim=64).why and explain(head_dim=64).backend == "cuda"


@pytest.mark.parametrize(
    "capability, family", [((8, 0), "sm80"), ((8, 9), "sm80"), ((9, 0), "sm90"), ((12, 0), "sm80")]
)
def test_family_of_the_gpu(gpu, capability, family):
    gpu["compute_capability_major"], gpu["compute_capability_minor"] = capability
    with use_backend("cuda") as chosen:
        assert chosen.family.name == family
    with use_backend("cuda", "apple9") as chosen:
        assert chosen.family.name == "apple9"


def test_an_older_gpu(gpu):
    gpu["compute_capability_major"], gpu["compute_capability_minor"] = 7, 5
    with pytest.raises(UnsupportedProblem, match="compute capability 8.0 or later is needed, this GPU has 7.5"):
        use_backend("cuda")
    with pytest.warns(UserWarning, match="7.5.* plain mx operations"):
        assert backends.current_backend().name == "reference"
    assert "7.5" in explain(head_dim=64).why


def test_an_older_driver(gpu, monkeypatch):
    monkeypatch.setattr(cuda.driver, "version", lambda: (11, 4))
    with pytest.raises(UnsupportedProblem, match=r"CUDA 12.0 or later.*compute capability 9.0.*is for 11.4"):
        use_backend("cuda")


def test_hopper_kernels_elsewhere(gpu):
    gpu["compute_capability_major"] = 8
    with pytest.raises(UnsupportedProblem, match="sm90 need compute capability 9.0, this GPU has 8.0"):
        use_backend("cuda", "sm90")


def test_no_compiler(gpu, monkeypatch, tmp_path):
    """Named: refused, with the pip line. By itself: the reference, with the reason. Compiled before: it runs."""

    def nothing():
        raise ToolchainError("found no clang")

    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda, "toolchain", nothing)
    monkeypatch.setattr(ptx.compiler, "toolchain", nothing)
    with pytest.raises(UnsupportedProblem, match=r'ziglang.*pip install "mlx-flash-attention\[cuda\].*found no clang'):
        use_backend("cuda")
    with pytest.warns(UserWarning, match="pip install"):
        assert backends.current_backend().name == "reference"
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "some.ptx").touch()
    with use_backend("cuda"), pytest.raises(UnsupportedProblem, match=r'backend "cuda": .*pip install'):
        q = mx.zeros((1, 1, 8, 8))
        attention(q, q, q)


def test_a_folder_that_cannot_be_written(gpu, monkeypatch, tmp_path):
    """A new kernel needs a place; the error says how to name another."""
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    (tmp_path / "cuda").write_text("a file in the place of the folder")
    q = mx.zeros((1, 1, 8, 8))
    with use_backend("cuda"), pytest.raises(UnsupportedProblem, match="cannot be built: .*set MLX_FLASH_CACHE"):
        attention(q, q, q)


def test_metal_refuses_kernels_for_tensor_cores(cleared_caches):
    with pytest.raises(UnsupportedProblem, match="sm80 are NVIDIA's"):
        use_backend("metal", "sm80")


def test_a_call_inside_compile(launches):
    """Nothing is computed while MLX traces, and the kernels of gradients are launched too."""
    with chosen(Backend("cuda", FAMILIES["apple9"], cuda.run)):
        q = mx.ones((1, 2, 20, 16))
        step = mx.compile(lambda q: mx.grad(lambda q: attention(q, q, q, causal=True).sum())(q))
        assert step(q).shape == q.shape
    assert [launch["name"].split("_")[3] for launch in launches] == ["forward", "backward", "backward"]
    assert all(launch["stream"] == mx.gpu and launch["ensure_row_contiguous"] for launch in launches)


MOST = dict.fromkeys(("causal", "window", "alibi", "sinks", "softcap", "segments", "dropout"), True)
DECODED = {name: on for name, on in MOST.items() if name != "dropout"}
KERNELS = [
    (FORWARD, "apple9", "float32", Variants(mask="float32", **MOST)),
    (DELTA, "apple7", "float16", Variants()),
    (BACKWARD_KEY_VALUE, "sm80", "float16", Variants(causal=True)),
    (BACKWARD_QUERY, "sm90", "bfloat16", Variants(block=128, **MOST)),
    (BACKWARD_QUERY_DELTA, "sm90", "bfloat16", Variants(causal=True)),
    (DECODE, "sm90", "bfloat16", Variants(causal=True)),
    (COMBINE, "sm90", "bfloat16", Variants()),
    (MASK_MAP, "sm90", "bfloat16", Variants(mask="bool")),
]
# Seconds of clang and ptxas each: these wait for `pytest -m ""`.
MORE_KERNELS = [
    (FORWARD, "apple7", "bfloat16", Variants(block=128, **MOST)),
    (BACKWARD_QUERY, "apple7", "float16", Variants(mask="float16", **MOST)),
    (BACKWARD_KEY_VALUE, "apple9", "bfloat16", Variants(mask="bool", **MOST)),
    (BACKWARD_QUERY_DELTA, "sm80", "float16", Variants(causal=True)),
    (BACKWARD_QUERY_DELTA, "apple9", "float32", Variants(mask="float32", **MOST)),
    (BACKWARD_MASK, "apple9", "float32", Variants(mask="float32", **MOST)),
    (FORWARD, "sm80", "bfloat16", Variants(mask="bfloat16", **MOST)),
    (FORWARD, "sm90", "float16", Variants(causal=True)),
    (DECODE, "apple9", "float32", Variants(mask="float32", **DECODED)),
    (DECODE, "sm80", "float16", Variants(mask="bool", **DECODED)),
    (DECODE, "sm90", "float16", Variants(block=128, **DECODED)),
]
KERNELS += [pytest.param(*kernel, marks=pytest.mark.slow) for kernel in MORE_KERNELS]


@pytest.mark.parametrize("step, family, dtype, features", KERNELS, ids=lambda value: str(value)[:20])
def test_kernels_assemble(step, family, dtype, features, assembled):
    """One of every step, with all that goes together; `tests/cuda/gpu/cuda_trust.py --precompile` compiles the rest."""
    check_assembles(compiled(step, FAMILIES[family], dtype, features), FAMILIES[family], assembled)


@pytest.mark.parametrize("step, family, dtype, features", KERNELS[:2], ids=lambda value: str(value)[:20])
def test_kernels_assemble_where_shapes_lie_in_memory(step, family, dtype, features, assembled):
    check_assembles(compiled(step, FAMILIES[family], dtype, features, values=False), FAMILIES[family], assembled)


def check_assembles(made, family, assembled) -> None:
    text = made.code.decode()
    assert f".entry {made.name}(" in text and "__clang_ocl" not in text and ".const" not in text
    # Older drivers know these versions too.
    assert ".version 7.1\n.target sm_80\n" in text or ".version 8.0\n.target sm_90a\n" in text
    assert made.shared_memory <= family.threadgroup_bytes
    if ".target sm_90a" in text:
        check_registers_balance(text)
    path = next(path for path in ptx.cache_directory().glob("*.ptx") if path.read_bytes() == made.code)
    said = assembled(path, "sm_90a" if ".target sm_90a" in text else "sm_80")
    assert "error" not in said and "Potential Performance Loss" not in said


def check_registers_balance(text: str) -> None:
    """Hopper deadlocks if some threads take more registers than the others give, of the even share of a launch."""
    threads, given, taken = (int(re.search(word + r"[. \w]*? (\d+)", text)[1]) for word in ("reqntid", "dec", "inc"))
    even = 65536 // threads // 8 * 8
    assert threads in (384, 512) and (threads - 128) * taken + 128 * given <= threads * even and taken > even > given
    assert ".minnctapersm 1\n" in text


NUMBERS = ("scale", "softcap", "survivor_scale", "window", "extents", "decode_params")


def compiled(step, family, dtype, features, values=True):
    """The kernel of one table row, for operands of the shapes that a launch has. `values`: as in CudaKernel.layout."""
    row = candidates(step, precision_of(dtype), family)[0].for_scores(replace(features, causal=False) == Variants())
    head_dim = 16 if row.tiles == "simdgroup" else 64
    threads = max_threads(step, row, precision_of(dtype), family, head_dim)
    kernel = source.build(step, row, family, dtype, head_dim, head_dim, features, threads)
    inputs = tuple(operand(name, dtype, features) for name in kernel.inputs)
    outputs = [getattr(mx, name) for name in kernel.output_dtypes]
    grid = Grid((row.threads * 4, 8, 2), (row.threads, 1, 1))
    known = [index for index, name in enumerate(kernel.inputs) if name in NUMBERS]
    return cuda._of(row)(kernel).compiled(inputs, [], outputs, grid, known, values=values)


def operand(name: str, dtype: str, features: Variants):
    """(dtype, axes, elements) of a kernel's input."""
    shapes = {
        "scale": (mx.float32, 0, 1), "softcap": (mx.float32, 0, 1), "survivor_scale": (mx.float32, 0, 1),
        "window": (mx.int32, 1, 2), "extents": (mx.int32, 1, 4), "dropout_key": (mx.uint32, 1, 3),
        "slopes": (mx.float32, 1, 8), "sinks": (mx.float32, 1, 8), "q_segments": (mx.int32, 2, 512),
        "k_segments": (mx.int32, 2, 512), "L": (mx.float32, 4, 8192), "delta": (mx.float32, 3, 4096),
        "block_map": (mx.int32, 4, 512), "block_bitmaps": (mx.uint8, 3, 16384), "block_lists": (mx.int32, 4, 512),
        "block_counts": (mx.int32, 3, 512), "decode_params": (mx.int32, 1, 5), "O_parts": (mx.float32, 5, 65536),
        "L_parts": (mx.float32, 5, 4096),
    }  # fmt: skip
    if name == "attention_mask":
        return mx.bool_ if features.mask == "bool" else getattr(mx, features.mask), 4, 65536
    return shapes.get(name, (mx.uint8, 4, 65536))


def test_the_cpu_as_default_device(gpu, monkeypatch):
    """Plain operations run there, as they do for a call whose stream is the CPU's; a backend that is named keeps it."""
    assert backends.current_backend().name == "cuda" and backends.current_backend(mx.cpu).name == "reference"
    q = mx.zeros((1, 1, 8, 8))
    attention(q, q, q, stream=mx.cpu)
    monkeypatch.setattr(machine, "on_cpu", lambda stream=None: stream is None or stream == mx.cpu)
    told = explain(q, q, q)
    assert told.backend == "reference" and "the default device is the CPU" in told.why
    assert mx.array_equal(attention(q, q, q), q) and backends.current_backend(mx.gpu).name == "cuda"
    with use_backend("cuda"):
        assert backends.current_backend().name == "cuda"
        with pytest.raises(UnsupportedProblem, match="its kernels run on the GPU"):
            attention(q, q, q, stream=mx.cpu)
