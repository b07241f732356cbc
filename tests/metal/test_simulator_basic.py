"""Plain kernels run as on a GPU: element-wise, strided, small inputs in the constant space, simdgroup matrices."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.simulator import SimulatorError, metal_kernel, mode, profile

MODES = ("fast", "check")


@pytest.mark.parametrize("simulator_mode", MODES)
@pytest.mark.parametrize("dtype", (mx.float32, mx.float16, mx.bfloat16))
def test_elementwise(simulator_mode, dtype):
    kernel = metal_kernel(
        name="shifted_exp",
        input_names=["x", "shift"],
        output_names=["y"],
        source="uint i = thread_position_in_grid.x; y[i] = T(metal::exp(float(x[i]) - shift));",
    )
    x = mx.random.normal((4, 16), key=mx.random.key(0)).astype(dtype)
    with mode(simulator_mode):
        (y,) = kernel(
            inputs=[x, 1.0],
            template=[("T", dtype)],
            grid=(x.size, 1, 1),
            threadgroup=(256, 1, 1),
            output_shapes=[x.shape],
            output_dtypes=[dtype],
        )
    assert y.dtype == dtype
    assert mx.allclose(y.astype(mx.float32), mx.exp(x.astype(mx.float32) - 1), rtol=1e-2)


@pytest.mark.parametrize("simulator_mode", MODES)
@pytest.mark.parametrize("dtype", (mx.float32, mx.bfloat16))
def test_strides_reach_the_kernel(simulator_mode, dtype):
    kernel = metal_kernel(
        name="gather",
        input_names=["x"],
        output_names=["y"],
        source="""
            uint i = thread_position_in_grid.x;
            uint row = i / x_shape[1], column = i % x_shape[1];
            y[i] = x[row * x_strides[0] + column * x_strides[1]];
        """,
        ensure_row_contiguous=False,
    )
    x = mx.arange(24).reshape(4, 6).astype(dtype).T[::-1, 1:]
    with mode(simulator_mode):
        (y,) = kernel(
            inputs=[x], grid=(x.size, 1, 1), threadgroup=(x.size, 1, 1), output_shapes=[x.shape], output_dtypes=[dtype]
        )
    assert mx.array_equal(x, y)


MATMUL = """
    uint lane = thread_index_in_simdgroup;
    uint2 tile = threadgroup_position_in_grid.xy;
    simdgroup_matrix<float, 8, 8> sum(0);
    for (int k = 0; k < K; k += 8) {
        simdgroup_matrix<T, 8, 8> left, right;
        simdgroup_load(left, a + tile.y * 8 * K + k, K);
        simdgroup_load(right, b + k * N + tile.x * 8, N);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, c + tile.y * 8 * N + tile.x * 8, N);
"""


@pytest.mark.parametrize("simulator_mode", MODES)
@pytest.mark.parametrize("dtype", (mx.float32, mx.float16, mx.bfloat16))
def test_simdgroup_matmul_and_its_count(simulator_mode, dtype):
    kernel = metal_kernel(
        name="matmul",
        input_names=["a", "b"],
        output_names=["c"],
        header="#include <metal_simdgroup_matrix>\n",
        source=MATMUL + "(void)lane;",
    )
    m, n, k = 16, 24, 32
    a = mx.random.normal((m, k), key=mx.random.key(1)).astype(dtype)
    b = mx.random.normal((k, n), key=mx.random.key(2)).astype(dtype)
    with mode(simulator_mode), profile() as counted:
        (c,) = kernel(
            inputs=[a, b], template=[("T", dtype), ("K", k), ("N", n)], grid=(n // 8 * 32, m // 8, 1), threadgroup=(32,
                1, 1),
            output_shapes=[(m, n)], output_dtypes=[mx.float32],
        )  # fmt: skip
    expected = np.array(a.astype(mx.float32), np.float64) @ np.array(b.astype(mx.float32), np.float64)
    assert np.abs(np.array(c) - expected).max() < 1e-5
    assert counted.matmuls == (m // 8) * (n // 8) * (k // 8)


def test_reads_behind_the_end_are_reported():
    kernel = metal_kernel(
        name="shift",
        input_names=["x"],
        output_names=["y"],
        source="uint i = thread_position_in_grid.x; y[i] = x[i + 1];",
    )
    with mode("check"), pytest.raises(SimulatorError, match=r"out of bounds: 'x' at index 64"):
        kernel(
            inputs=[mx.zeros(64)],
            grid=(64, 1, 1),
            threadgroup=(64, 1, 1),
            output_shapes=[(64,)],
            output_dtypes=[mx.float32],
        )


@pytest.mark.parametrize("simulator_mode", MODES)
@pytest.mark.parametrize("size", (64, 128, 4096))
def test_buffers_are_aligned_as_on_a_gpu(simulator_mode, size):
    """Whole structures are loaded and stored by instructions that fault elsewhere."""
    kernel = metal_kernel(
        name="blocks", input_names=["x"], output_names=["y"], header="struct alignas(32) Block { half v[16]; };",
        source="uint i = thread_position_in_grid.x; Block b = ((const device Block*)x)[i]; ((device Block*)y)[i] = b;",
    )  # fmt: skip
    x = mx.arange(size, dtype=mx.float16)
    call = dict(grid=(size // 16, 1, 1), threadgroup=(4, 1, 1), output_shapes=[(size,)], output_dtypes=[mx.float16])
    with mode(simulator_mode):
        assert mx.array_equal(kernel(inputs=[x], **call)[0], x)


@pytest.mark.parametrize("math_mode, wanted", (("safe", 0), ("relaxed", 0), ("fast", 1)))
def test_the_math_mode_reaches_the_kernel(math_mode, wanted):
    source = """
    #if defined(__FAST_MATH__) && __FAST_MATH__
    y[0] = 1;
    #else
    y[0] = 0;
    #endif
    uint i = thread_position_in_grid.x;
    """
    kernel = metal_kernel(
        name="math_mode", input_names=["x"], output_names=["y"], source=source, compile_options={"math_mode": math_mode}
    )
    (y,) = kernel(
        inputs=[mx.zeros((1,))], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32]
    )
    assert y.item() == wanted


@pytest.mark.parametrize("simulator_mode", MODES)
@pytest.mark.parametrize("operation", ("simd_sum(1.0f)", "simd_shuffle(32 - x[i], 20)"))
def test_one_operation_in_two_branches_stays_two(operation, simulator_mode):
    """Each serves the lanes of its branch alone, even where the compiler sees one text twice."""
    source = f"uint i = thread_position_in_grid.x; y[i] = 0; if (i < 16) y[i] = {operation}; else y[i] = {operation};"
    kernel = metal_kernel(name="branches", input_names=["x"], output_names=["y"], source=source)
    call = dict(grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)], output_dtypes=[mx.float32])
    with mode(simulator_mode):
        if "shuffle" in operation:
            with pytest.raises(SimulatorError, match="inactive lanes"):
                kernel(inputs=[mx.ones(32)], **call)
        else:
            assert kernel(inputs=[mx.ones(32)], **call)[0].tolist() == [16] * 32
