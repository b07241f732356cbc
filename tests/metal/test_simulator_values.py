"""What objects with operators, lists of constants and volatile vectors hold when a kernel runs."""

import mlx.core as mx
import numpy as np
import object_programs as programs
import pytest

from mlx_flash.metal.cpu.settings import MODES
from mlx_flash.simulator import MetalLibrary, mode

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
N = 16
X = np.linspace(-2, 2, N, dtype=np.float32)
TURN = np.arange(N)
VECTORS = """constant char4 a[4] = {char4(1), {1, 2, 3}, 7};
constant float2 b[3] = {{1}, float2(2, 3)};
constant packed_float3 c[2] = {{1, 2, 3}, packed_float3(4)};
constant float2x2 m[2] = {{{1, 2}, {3, 4}}, float2x2(5.0)};
constant vec<half, 3> h[2] = {{1, 2}};
constant float3 z = {1, 2}, w{3, 4, 5};
"""

# name: (definitions, body with x, y and i at hand, wanted values)
CASES = {
    "operators that return members": (
        programs.ARRAY + "void add(thread float& a) { a += 10; }\n",
        "Array<float, 4> a; for (int k = 0; k < 4; ++k) a[k] = k * x[i]; const Array<float, 4> old = a++; ++a; "
        "add(a[2]); float sum = 0; for (auto v : a) sum += v; y[i] = sum + 100 * old[1];",
        6 * X + 8 + 10 + 100 * X,
    ),
    "operators that return their object": (
        programs.COMPLEX,
        "Complex z = {x[i], 1}; z *= z + z; (z *= z) *= Complex{0, 1}; y[i] = (-(z + z)).norm();",
        4 * np.abs((2 * (X.astype(np.complex128) + 1j) ** 2) ** 2) ** 2,
    ),
    "iterators": (programs.ITERATOR, "Range r = {x, i}; float s = 0; for (float v : r) s += v; y[i] = s;",
        np.concatenate([[0], np.cumsum(X.astype(np.float64))[:-1]])),
    "aggregates made of a list": (
        programs.UNSAFE,
        "Unsafe<float, 2> a = Unsafe<float, 2>({x[i], 2}); "
        "Unsafe<Unsafe<float, 2>, 2> n = Unsafe<Unsafe<float, 2>, 2>({a, Unsafe<float, 2>({5, 6})}); "
        "y[i] = known[i % 3] + n[0][0] + n[1][1];",
        np.array([1, 20, 300])[TURN % 3] + X + 6,
    ),
    "constant vectors of lists": (
        VECTORS,
        "y[i] = a[i % 4].x + 10 * a[i % 4].w + 100 * b[i % 3].y + 1000 * c[1][2] + c[0].z + m[0][1].x + m[1][1].y + "
        "h[0].y + h[1].x + h[0].z + z.z + w.z;",
        np.array([1, 1, 7, 0])[TURN % 4] + 10 * np.array([1, 0, 7, 0])[TURN % 4] + 100 * np.array([0, 3, 0])[TURN % 3]
        + 4000 + 3 + 3 + 5 + 2 + 5,
    ),
    "lists shorter than their vector": (
        "",
        "float4 a = {1, 2}; float3 b = {3, 4}; uint4 c = {1u, 2u, 3u}; float4 d = {float2(1, 2), float2(3, 4)}; "
        "float3 e = {float2(1, 2), 3}; half2 f{5}, g = 6; "
        "y[i] = a.y + a.z + a.w + 10 * b.y + b.z + 100 * c.z + c.w + 1000 * d.w + e.z + f.x + f.y + g.y;",
        np.full(N, 2 + 40 + 300 + 4000 + 3 + 5 + 6),
    ),
    "shifts by another integer type": (
        "",
        "int2 a = int2(-8, 3); a >>= uint2(1, i % 4); short4 b = short4(1) << ushort4(2); y[i] = a.x * 10 + a.y + b.w;",
        -40 + (3 >> TURN % 4) + 4,
    ),
    "volatile vectors": (
        "",
        "volatile device float4* v = (volatile device float4*)y; if (i < 4) { v[i] = float4(i); v[i].y = 5; "
        "float4 r = v[i]; v[i].w = r.x + r.y + v[i].z; }",
        np.stack([np.arange(4), np.full(4, 5), np.arange(4), 2 * np.arange(4) + 5], 1).reshape(-1),
    ),
}  # fmt: skip


def run(definitions: str, body: str, how: str, x: np.ndarray = X) -> np.ndarray:
    text = f"kernel void f(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {{ {body} }}"
    kernel = MetalLibrary(HEAD + definitions + text).kernel("f")
    with mode(how):
        return np.array(kernel([x, ((N,), mx.float32)], (N, 1, 1), (N, 1, 1))[0])


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("name", CASES)
def test_values(name, how):
    definitions, body, wanted = CASES[name]
    np.testing.assert_allclose(run(definitions, body, how), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", MODES)
def test_memory_of_numpy_is_aligned_as_it_is(how):
    """Whatever lies before an allocation of MLX, one of numpy begins where it begins."""
    definitions = "struct alignas(16) Eight { half v[8]; };\n"
    body = "Eight e = ((device const Eight*)x)[i / 4]; float s = 0; for (int k = 0; k < 8; ++k) s += e.v[k]; y[i] = s;"
    halves = np.arange(2 * N, dtype=np.float16)
    assert run(definitions, body, how, halves).tolist() == np.repeat(halves.reshape(-1, 8).sum(1), 4).tolist()
