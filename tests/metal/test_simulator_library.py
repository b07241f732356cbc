"""Metal's library computes what numpy computes: one kernel a family, one column an expression."""

import math

import mlx.core as mx
import numpy as np
import pytest
from library_expressions import (
    ANY,
    ON_ANY,
    ON_POSITIVE,
    ON_UNIT,
    POSITIVE,
    UNIT,
    N,
    check_floats,
    check_lanes,
    compare,
    evaluate,
)

from mlx_flash.simulator import metal_kernel


@pytest.mark.parametrize(("cases", "values"), [(ON_POSITIVE, POSITIVE), (ON_UNIT, UNIT), (ON_ANY, ANY)])
def test_float(cases, values):
    check_floats(cases, values)


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float16, 2e-3), (mx.bfloat16, 2e-2)])
def test_half_and_bfloat(dtype, tolerance):
    x = mx.array(POSITIVE).astype(dtype)
    values = np.array(x.astype(mx.float32), np.float64)
    cases = {
        "exp(x)": math.exp,
        "sqrt(x)": math.sqrt,
        "log2(x)": math.log2,
        "abs(-x)": abs,
        "max(x, x / x)": lambda v: max(v, 1),
        "x * x + x": lambda v: v * v + v,
    }
    compare(cases, x, values, tolerance, dtype)


U32 = 0xFFFFFFFF
ON_UNSIGNED = {
    "popcount(x)": lambda v: bin(v).count("1"), "clz(x)": lambda v: 32 - v.bit_length(), "ctz(x)": lambda v: (v & -v).
        bit_length() - 1 if v else 32,
    "reverse_bits(x)": lambda v: int(f"{v:032b}"[::-1], 2), "rotate(x, 5u)": lambda v: ((v << 5) | (v >> 27)) & U32,
    "mulhi(x, x)": lambda v: (v * v) >> 32, "absdiff(x, 1000u)": lambda v: abs(v - 1000), "hadd(x, 3u)": lambda v: (v +
        3) >> 1,
    "rhadd(x, 4u)": lambda v: (v + 5) >> 1, "addsat(x, 0xf0000000u)": lambda v: min(v + 0xF0000000, U32),
        "subsat(x, 5000u)": lambda v: max(v - 5000, 0),
    "extract_bits(x, 4, 8)": lambda v: (v >> 4) & 255, "insert_bits(x, 5u, 8, 4)": lambda v: (v & ~0xF00) | 0x500,
        "mad24(x & 4095, 3u, 7u)": lambda v: (v & 4095) * 3 + 7,
    "min(x, 77u)": lambda v: min(v, 77), "clamp(x, 10u, 99u)": lambda v: min(max(v, 10), 99), "uint4(x).w >> 3": lambda
        v: v >> 3, "select(x, 1u, x > 9)": lambda v: 1 if v > 9 else v,
    "as_type<uint>(as_type<float>(x))": lambda v: v, "uint(as_type<ushort2>(x).y)": lambda v: v >> 16,
}  # fmt: skip


def test_unsigned():
    values = [int(v) for v in np.random.default_rng(0).integers(0, 2**31, N - 3)] + [0, 1, 8]
    found = evaluate(list(ON_UNSIGNED), mx.array(np.array(values, np.uint32)), mx.uint32)
    for column, (expression, reference) in zip(found.T, ON_UNSIGNED.items()):
        assert [int(v) for v in column] == [reference(v) for v in values], expression


def test_simd():
    check_lanes()


def test_complex():
    kernel = metal_kernel(
        name="complex", input_names=["a", "b"], output_names=["y"],
        source="uint i = thread_position_in_grid.x; y[i] = a[i] * b[i] + complex64_t(1, 2) - b[0] / a[i]; "
            "y[i] += a[i];",
    )  # fmt: skip
    generator = np.random.default_rng(1)
    a, b = ((generator.normal(size=16) + 1j * generator.normal(size=16)).astype(np.complex64) for _ in range(2))
    (y,) = kernel(
        inputs=[mx.array(a), mx.array(b)], grid=(16, 1, 1), threadgroup=(16, 1, 1), output_shapes=[(16,)], output_dtypes
            =[mx.complex64]
    )  # fmt: skip
    assert np.allclose(np.array(y), a * b + (1 + 2j) - b[0] / a + a, rtol=1e-5)


@pytest.mark.parametrize("dtype", (mx.uint32, mx.int32, mx.float32))
def test_atomics(dtype):
    kernel = metal_kernel(
        name="histogram", input_names=["x"], output_names=["y"], atomic_outputs=True,
        source="uint i = thread_position_in_grid.x; atomic_fetch_add_explicit(&y[i % 5], x[i], memory_order_relaxed);",
    )  # fmt: skip
    x = mx.arange(4096).astype(dtype)
    (y,) = kernel(
        inputs=[x], grid=(4096, 1, 1), threadgroup=(128, 1, 1), output_shapes=[(5,)], output_dtypes=[dtype], init_value=
            0
    )  # fmt: skip
    assert y.tolist() == [sum(range(k, 4096, 5)) for k in range(5)]


def test_threadgroup_atomics():
    kernel = metal_kernel(
        name="largest", input_names=["x"], output_names=["y"],
        source="threadgroup atomic_uint best; uint i = thread_position_in_grid.x;"
        "if (i == 0) atomic_store_explicit(&best, 0u, memory_order_relaxed); "
            "threadgroup_barrier(mem_flags::mem_threadgroup);"
        "atomic_fetch_max_explicit(&best, x[i], memory_order_relaxed); threadgroup_barrier(mem_flags::mem_threadgroup);"
        "y[i] = atomic_load_explicit(&best, memory_order_relaxed);",
    )  # fmt: skip
    x = mx.array(np.random.default_rng(2).permutation(N).astype(np.uint32))
    (y,) = kernel(inputs=[x], grid=(N, 1, 1), threadgroup=(N, 1, 1), output_shapes=[(N,)], output_dtypes=[mx.uint32])
    assert y.tolist() == [N - 1] * N
