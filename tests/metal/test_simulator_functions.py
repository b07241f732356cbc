"""Functions, vectors and matrices of Metal's library give the numbers that their definitions give."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.simulator import metal_kernel

HALF = np.float16


def run(body: str, count: int, dtype: mx.Dtype = mx.float32, x=(1.0,)) -> list:
    """The y[count] that a kernel of one thread writes; x is an array of at least 8 floats."""
    kernel = metal_kernel("values", ["x"], ["y"], body)
    values = mx.array(np.resize(np.array(x, np.float32), max(8, len(x))))
    call = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(count,)], output_dtypes=[dtype])
    return kernel(inputs=[values], **call)[0].tolist()


def stored(expression: str, width: int) -> str:
    """Statements that leave the components of a vector in y."""
    return f"auto r = {expression}; " + " ".join(f"y[{k}] = r[{k}];" for k in range(width))


VECTORS = {
    "reflect": ("reflect(float3(1, -1, 0), float3(0, 1, 0))", [1, 1, 0]),
    "refract straight on": ("refract(float3(0, -1, 0), float3(0, 1, 0), 0.5f)", [0, -1, 0]),
    "total reflection": ("refract(normalize(float3(1, -0.1f, 0)), float3(0, 1, 0), 1.5f)", [0, 0, 0]),
    "faceforward turns": ("faceforward(float3(1, 2, 3), float3(0, 1, 0), float3(0, 1, 0))", [-1, -2, -3]),
    "faceforward keeps": ("faceforward(float3(1, 2, 3), float3(0, -1, 0), float3(0, 1, 0))", [1, 2, 3]),
    "cross": ("cross(float3(1, 0, 0), float3(0, 1, 0))", [0, 0, 1]),
    "ldexp": ("ldexp(float3(1, 3, -1), int3(2, -1, 0))", [4, 1.5, -1]),
    "ilogb": ("ilogb(float3(1, 8, 0.25f))", [0, 3, -2]),
    "isordered": ("isordered(float3(1, NAN, 2), float3(1, 1, NAN))", [1, 0, 0]),
    "isunordered": ("isunordered(float3(1, NAN, 2), float3(1, 1, NAN))", [0, 1, 1]),
    "mul24": ("mul24(int3(-3, 5, 0x1000001), int3(7, -2, 3))", [-21, -10, 3]),
    "mad24": ("mad24(int3(-3, 5, 2), int3(7, -2, 3), int3(1, 2, 3))", [-20, -8, 9]),
    "extract_bits": ("extract_bits(int3(0x70, 0xF0, -1), 4, 4)", [7, -1, -1]),
    "extract_bits unsigned": ("extract_bits(uint3(0x70, 0xF0, 255), 4, 4)", [7, 15, 15]),
    "insert_bits": ("insert_bits(int3(0, 255, 16), int3(3, 0, 1), 1, 2)", [6, 249, 18]),
    "madsat": ("madsat(char3(100, -100, 3), char3(100, 100, 4), char3(1, 1, 5))", [127, -128, 17]),
    "fract below 1": ("fract(float3(-0.25f, 1.75f, 2))", [0.75, 0.75, 0]),
    "sinpi": ("sinpi(float4(0.5f, 1, 1000001.5f, -0.5f))", [1, 0, -1, -1]),
    "cospi": ("cospi(float4(0.5f, 1, 1000001.0f, 0))", [0, -1, -1, 1]),
    "tanpi": ("tanpi(float3(0, 0.25f, 3))", [0, 1, 0]),
    "a number before a vector": ("max(0.5f, float3(0, 1, 2))", [0.5, 1, 2]),
    "numbers before a vector": ("smoothstep(0.0f, 2.0f, float3(0, 1, 2))", [0, 0.5, 1]),
    "a number among vectors": ("mix(1.0f, float3(3, 5, 7), 0.5f)", [2, 3, 4]),
    "step": ("step(0.5f, float3(0, 0.5f, 1))", [0, 1, 1]),
    "clamp": ("clamp(float3(-1, 0.5f, 3), 0.0f, 1.0f)", [0, 0.5, 1]),
    "select": ("select(0.0f, float3(1, 2, 3), bool3(true, false, true))", [1, 0, 3]),
    "packed vectors": ("packed_float3(1, 2, 3) * 2 + packed_float3(1, 1, 1)", [3, 5, 7]),
    "opposites of a packed vector": ("-packed_float3(1, 2, 3)", [-1, -2, -3]),
    "bits of packed vectors": ("float4(packed_uint4(1, 2, 3, 4) << 2u & packed_uint4(12))", [4, 8, 12, 0]),
    "packed vectors compared": ("float3(packed_int3(1, 2, 3) < 3)", [1, 1, 0]),
    "matrix times a packed vector": ("float2x2(1, 2, 3, 4) * packed_float2(1, 10)", [31, 42]),
    "packed vector times a matrix": ("packed_float2(1, 10) * float2x2(1, 2, 3, 4)", [21, 43]),
    "cross product of packed vectors": ("cross(packed_float3(1, 0, 0), packed_float3(0, 1, 0))", [0, 0, 1]),
    "vector of a packed one": ("float4(packed_char4(char4(1, -2, 3, -4)))", [1, -2, 3, -4]),
    "matrix from numbers": ("float2x3(1, 2, 3, 4, 5, 6)[1]", [4, 5, 6]),
    "matrix from columns": ("float3x2(float2(1, 2), float2(3, 4), float2(5, 6))[2]", [5, 6]),
    "matrix times vector": ("float2x3(1, 2, 3, 4, 5, 6) * float2(1, 10)", [41, 52, 63]),
    "vector times matrix": ("float3(1, 10, 100) * float2x3(1, 2, 3, 4, 5, 6)", [321, 654]),
    "matrix of another type": ("float2x2(half2x2(1.0h, 2.0h, 3.0h, 4.0h))[1]", [3, 4]),
    "diagonal": ("float3x3(7)[1]", [0, 7, 0]),
    "minus a matrix": ("(-float2x2(1, 2, 3, 4))[0]", [-1, -2]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_expressions(name):
    expression, expected = VECTORS[name]
    found = run(stored(expression, len(expected)), len(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


STATEMENTS = {
    "sincos": ("float2 c, s = sincos(float2(0, M_PI_2_F), c); y[0] = s.y; y[1] = c.x;", [1, 1]),
    "modf": ("float2 w, f = modf(float2(1.25f, -2.5f), w); y[0] = f.x; y[1] = f.y; y[2] = w.x; y[3] = w.y;",
             [0.25, -0.5, 1, -2]),
    "frexp": ("int2 e; float2 m = frexp(float2(8, 0.75f), e); y[0] = m.x; y[1] = e.x; y[2] = m.y; y[3] = e.y;",
              [0.5, 4, 0.75, 0]),
    "compound operators of matrices": (
        "float2x2 m(1.0f), n(1, 2, 3, 4); m += n; m *= 2; m -= n; m *= n; y[0] = m[0][0]; y[1] = m[0][1]; "
        "y[2] = m[1][0]; y[3] = m[1][1];", [9, 14, 21, 30]),
    "comparing matrices": ("float2x2 m(1, 2, 3, 4), n = m; y[0] = m == n; n[1].y = 5; y[1] = m == n; y[2] = m != n;",
                           [1, 0, 1]),
    "matrices in braces": ("float2x2 m = {float2(1, 2), float2(3, 4)}, n = {1, 2, 3, 4}, o = {{1, 2}, {3, 4}}; "
                           "y[0] = m[1][0]; y[1] = n[1][0]; y[2] = o[1][0];", [3, 3, 3]),
    "matrices in device memory": ("device float2x2& m = *(device float2x2*)y; m = float2x2(1, 2, 3, 4); "
                                  "m[0] += float2(1); m *= 2;", [4, 6, 6, 8]),
    "steps of vectors": ("int2 v = int2(1, 5), w = v++; ++v; v--; int2 u = --v; y[0] = v.x; y[1] = w.y; y[2] = u.y;",
                         [1, 5, 5]),
    "compound swizzles": ("int4 v = int4(1, 2, 4, 8); v.xy |= int2(8); v.zw <<= 1; y[0] = v.x; y[1] = v.y; y[2] = v.z; "
                          "y[3] = v.w;", [9, 10, 8, 16]),
    "compound packed vectors": ("packed_float2 v = packed_float2(1, 2); v += float2(1); v *= 3.0f; y[0] = v.x; "
                                "y[1] = v.y;", [6, 9]),
    "ranges in an initialiser": ("float a[5] = { [0 ... 3] = 2.0f }; y[0] = a[0]; y[1] = a[3]; y[2] = a[4];",
                                 [2, 2, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements(name):
    body, expected = STATEMENTS[name]
    np.testing.assert_allclose(run(body, len(expected)), expected, rtol=1e-6, atol=1e-7)


def test_matrices_out_of_constant_memory():
    """An input of fewer than 8 elements arrives there, and so does a constant of the text."""
    kernel = metal_kernel(
        "constants", ["c"], ["y"],
        "float2x2 m = *(const constant float2x2*)c; m = m * table[1]; half2x2 h = half2x2(table[0]); "
        "for (int k = 0; k < 4; ++k) y[k] = m[k / 2][k % 2] + h[k / 2][k % 2];",
        header="constant float2x2 table[2] = {float2x2(1.0f), float2x2(0, 1, 1, 0)};",
    )  # fmt: skip
    call = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(4,)], output_dtypes=[mx.float32])
    assert kernel(inputs=[mx.array([1.0, 2, 3, 4])], **call)[0].tolist() == [4, 4, 1, 3]


@pytest.mark.parametrize("kind, dtype", [
    ("char", np.int8), ("uchar", np.uint8), ("short", np.int16), ("ushort", np.uint16), ("int", np.int32),
    ("uint", np.uint32), ("long", np.int64), ("ulong", np.uint64),
])  # fmt: skip
def test_madsat_of_every_integer(kind, dtype):
    limits = np.iinfo(dtype)
    values = [limits.min, limits.max, 0, 1, 2, 3]
    cases = [(a, b, c) for a in values for b in values for c in values]
    operands = mx.array(np.array(cases, dtype))
    kernel = metal_kernel(f"madsat_{kind}", ["x"], ["y"], f"uint i = thread_position_in_grid.x; "
                          f"y[i] = madsat({kind}(x[3 * i]), {kind}(x[3 * i + 1]), {kind}(x[3 * i + 2]));")  # fmt: skip
    call = dict(grid=(len(cases), 1, 1), threadgroup=(32, 1, 1), output_shapes=[(len(cases),)])
    found = kernel(inputs=[operands], output_dtypes=[operands.dtype], **call)[0].tolist()
    assert found == [min(max(a * b + c, limits.min), limits.max) for a, b, c in cases]


@pytest.mark.parametrize("x, y", [(0.0, 1.0), (0.0, -1.0), (1.0, 2.0), (1.0, 0.0), (-1.0, 0.0), (-1.0, -2.0),
                                  (2.0**-24, 0.0), (math.inf, 0.0), (1.0, 1.0)])  # fmt: skip
def test_the_next_half(x, y):
    """The result is the next half, not the next float rounded to half, which would be the argument itself."""
    found = run("y[0] = nextafter(half(x[0]), half(x[1]));", 1, mx.float16, [x, y])
    assert found == [float(np.nextafter(HALF(x), HALF(y)))]


def test_the_fraction_of_a_half_stays_below_1():
    assert run("y[0] = fract(half(x[0]));", 1, mx.float16, [-(2.0**-24)])[0] == float(HALF(1) - HALF(2.0**-11))


def test_names_of_simd_simd_h():
    body = (
        "simd_float4 a = vector_float4(1, 2, 3, 4); simd::float4 b = a; simd_uint2 u = simd::uint2(1, 2); "
        "simd_float4x4 m = matrix_float4x4(1.0f); simd::half2x2 h = half2x2(1.0h); y[0] = (m * b).w + u.y + h[0][0];"
    )
    kernel = metal_kernel("shared_names", [], ["y"], body, header="#include <simd/simd.h>\n")
    call = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    assert kernel(inputs=[], **call)[0].item() == 7
