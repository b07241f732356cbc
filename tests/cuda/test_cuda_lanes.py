"""Functions built from an NVIDIA GPU's instructions (reductions, scans, votes, 8x8 products, float functions)
compute what the simulator's do: the headers are the same, over instructions that the simulator performs."""

from pathlib import Path

import library_expressions as library
import mlx.core as mx
import numpy as np
import pytest
from cases import Case, expected

from mlx_flash import attention, use_backend
from mlx_flash.metal.cpu import compiler, kernel
from mlx_flash.metal.ptx.target import INCLUDE
from mlx_flash.simulator import metal_kernel

pytestmark = pytest.mark.simulator

HERE = Path(__file__).parents[1] / "support" / "nvptx_on_cpu"


@pytest.fixture(params=("converged", "diverged"))
def nvptx(request, monkeypatch, tmp_path_factory):
    """The simulator with the headers of the GPU; its kernels are kept apart."""
    flags = ("-DMSL_EX2=__builtin_exp2f", "-I", str(HERE), "-I", str(INCLUDE))
    flags += ("-DMSL_CONVERGED",) if request.param == "converged" else ()
    monkeypatch.setattr(compiler, "_KERNEL_FLAGS", (*compiler._KERNEL_FLAGS, *flags))
    monkeypatch.setattr(kernel, "_built", {})
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path_factory.getbasetemp() / f"nvptx-{request.param}"))
    cached = (compiler._sources_hash, compiler._package_hash)
    for function in cached:
        function.cache_clear()
    yield request.param
    for function in cached:
        function.cache_clear()


def test_simdgroup_functions(nvptx):
    if nvptx == "diverged":  # among them one that half of the lanes calls
        library.check_lanes()
    else:
        found = library.evaluate(["simd_sum(x)", "simd_prefix_exclusive_sum(x)", "quad_max(x)"], mx.array(library.X))
        rows = library.ROWS
        wanted = [np.repeat(rows.sum(1), 32), (rows.cumsum(1) - rows).ravel(), np.repeat(library.IN_QUADS.max(1), 4)]
        assert np.array_equal(found.T, wanted)


def test_float_functions(nvptx):
    library.check_floats(library.ON_UNIT, library.UNIT)
    library.check_floats(library.ON_POSITIVE, library.POSITIVE)


def test_products(nvptx):
    """Products of every type, from memory in both orders, and with the diagonal matrix; of integers, so that they
    are exact."""
    a, b = np.random.default_rng(0).integers(-4, 5, (2, 8, 8)).astype(np.float32)
    for dtype, name in ((mx.float32, "float"), (mx.float16, "half"), (mx.bfloat16, "bfloat")):
        source = f"""simdgroup_matrix<{name}, 8, 8> left, right; simdgroup_matrix<float, 8, 8> sum(2.0f);
        simdgroup_load(left, a, 8); simdgroup_load(right, b, 8, ulong2(0), true);
        simdgroup_multiply_accumulate(sum, left, right, sum); simdgroup_store(sum, y, 8);"""
        run = metal_kernel(name="product", input_names=["a", "b"], output_names=["y"], source=source)
        x, z = (mx.array(array).astype(dtype) for array in (a, b))
        (y,) = run(
            inputs=[x, z], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(8, 8)], output_dtypes=[mx.float32]
        )
        assert np.array_equal(y, a @ b.T + 2 * np.eye(8))


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_attention(nvptx, dtype):
    """The kernels themselves, gradients among them."""
    case = Case(33, 40, 16, dtype, causal=True, group=2)
    arrays = case.arrays()
    inputs = [arrays[name] for name in ("q", "k", "v")]
    with use_backend("simulator", "apple9"):
        call = mx.vjp(lambda q, k, v: attention(q, k, v, scale=case.scale, causal=True), inputs, [arrays["d_o"]])
    (out,), (d_q, d_k, d_v) = call
    expected(case, arrays).check(O=out, dQ=d_q, dK=d_k, dV=d_v)
