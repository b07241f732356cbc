"""What MLX puts before a kernel of `mx.fast.metal_kernel` is there, computes the same, and refuses the same."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.simulator import CompileError, MetalLibrary, metal_kernel

N = 64
RNG = np.random.default_rng(3)
Z = (RNG.standard_normal(N) + 1j * RNG.standard_normal(N)).astype(np.complex64)
X = RNG.standard_normal(N).astype(np.float32)
E = np.arange(N)

COMPLEX = {  # bodies that set the complex number w from z, and what it is
    "w = log1p(z[e] * complex64_t(e % 2 ? 1 : 1e-4f));": np.log1p(Z.astype(np.complex128) * np.where(E % 2, 1, 1e-4)),
    "w = simd_shuffle(z[e], ushort(3));": np.repeat(Z[[3, 35]], 32),
    "w = simd_shuffle_down(z[e], 0) + simd_shuffle_up(z[e], 0);": 2 * Z,
    "w = simd_shuffle_and_fill_up(z[e], complex64_t(1), 1);": np.where(E % 32, np.roll(Z, 1), 1),
    "float re = z[e]; w = re;": Z.real,
    "float2 v = z[e]; w = v.yx;": Z.imag + 1j * Z.real,
    "w = 2.0f + z[e]; w = w - 1; w = 1.0f / w + 3; w = 1 - w;": 1 - (1 / (Z + 1) + 3),
    "w = z[e] % complex64_t(0.5f, 0.25f);": Z.real % 0.5 + 1j * (Z.imag % 0.25),
    "w = z[e] / z[63 - e] + -z[e];": Z / Z[::-1] - Z,
    "complex64_t s; s += z[e]; s += s; w = s;": 2 * Z,
    "threadgroup complex64_t s[64]; s[e] = z[e]; s[e] += z[e]; w = s[e];": 2 * Z,
    "complex_t<float>::value_type a = z[e].imag; w = complex32_t(2, 1); w = w * complex64_t(a);": (2 + 1j) * Z.imag,
    "w = (z[e] < z[63 - e]) + 2 * (z[e] >= z[e]) + 4 * (z[e] == z[e]);": (Z.real < Z.real[::-1]) + 6,
    "w = is_complex_v<complex64_t> && !is_complex_v<float> ? z[e] : complex64_t(0);": Z,
}
REAL = {  # and those that set the number r from x
    "r = e == 0 ? Limits<float>::max : e == 1 ? Limits<float>::min : Limits<float>::finite_min;":
        np.select([E == 0, E == 1], [np.inf, -np.inf], np.finfo(np.float32).min),
    "r = float(Limits<half>::finite_max) + Limits<uchar>::max + (Limits<bfloat>::min < 0);": np.full(N, 65504 + 256),
    "r = Limits<int>::min;": np.full(N, -(2.0**31)),
    "r = hypot(x[e], 1e30f * (e % 2)) + hypot(0.0f, 0.0f);": np.hypot(X, 1e30 * (E % 2)),
    "r = hypot(e == 0 ? NAN : INFINITY, e == 1 ? NAN : x[e]);": np.where(E == 0, np.nan, np.inf),
    "r = REDUCE_N_READS + REDUCE_N_WRITES + SOFTMAX_N_READS + RMS_N_READS + RMS_LOOPED_LIMIT;": np.full(N, 4112),
    "r = MAX_REDUCE_SPECIALIZED_DIMS + CROSS_ENTROPY_N_READS + WorkPerThread<half>::n;": np.full(N, 12),
}  # fmt: skip
LOOPED = {  # from the array x of two axes, transposed
    "LoopedElemToLoc<2, int64_t, false> l(2); for (uint j = 0; j < e; ++j) l.next(x_shape, x_strides);",
    "LoopedElemToLoc<2> l(x_ndim); l.next(int(e), x_shape, x_strides);",
    "LoopedElemToLoc<1, uint, true> l(x_ndim); l.next(int(e), x_shape, x_strides);",
}
REFUSED = (
    "w = z[e] * 2.0f;",
    "w = z[e] != z[e];",
    "w = z[e]; w -= z[e];",
    "w = z[e]; w *= z[e];",
    "w = z[e] + complex32_t(1, 2);",
    "bool b = z[e] == 1.0f; w = b;",
)


def wrapped(body: str) -> str:
    return f"complex64_t w(0, 0); float r = 0;\n{body}\nout[e] = w; real[e] = r;"


def run(body: str) -> list[np.ndarray]:
    kernel = metal_kernel(
        name="prelude", input_names=["z", "x"], output_names=["out", "real"],
        source="uint e = thread_position_in_grid.x;\n" + wrapped(body),
    )  # fmt: skip
    outputs = kernel(
        inputs=[mx.array(Z), mx.array(X)], grid=(N, 1, 1), threadgroup=(N, 1, 1), output_shapes=[(N,), (N,)],
        output_dtypes=[mx.complex64, mx.float32],
    )  # fmt: skip
    return [np.array(output) for output in outputs]


def by_mlx(body: str, headers) -> MetalLibrary:
    """The same kernel, with MLX's own header in the place of the prelude."""
    signature = "device const complex64_t* z [[buffer(0)]], device const float* x [[buffer(1)]], "
    signature += "device complex64_t* out [[buffer(2)]], device float* real [[buffer(3)]], "
    text = '#include "mlx/backend/metal/kernels/utils.h"\nkernel void prelude(' + signature
    return MetalLibrary(text + "uint e [[thread_position_in_grid]]) {\n" + wrapped(body) + "\n}\n", [headers])


@pytest.mark.parametrize("body", [*COMPLEX, *REAL])
def test_it_computes_what_numpy_does_and_mlx_header_too(body, metal_headers):
    out, real = run(body)
    got = out if body in COMPLEX else real
    np.testing.assert_allclose(got, (COMPLEX | REAL)[body], rtol=3e-6, atol=1e-6 if body in COMPLEX else 0)
    arrays = [mx.array(Z), mx.array(X), ((N,), mx.complex64), ((N,), mx.float32)]
    theirs = by_mlx(body, metal_headers).kernel("prelude")(arrays, (N, 1, 1), (N, 1, 1))
    np.testing.assert_allclose(got, theirs[body in REAL], rtol=3e-6, atol=1e-6 if body in COMPLEX else 0)


@pytest.mark.parametrize("body", REFUSED)
def test_it_refuses_what_mlx_header_does(body, metal_headers):
    with pytest.raises(CompileError, match="line"):
        run(body)
    with pytest.raises(CompileError):
        by_mlx(body, metal_headers).check()


def strided(source: str, inputs: dict[str, mx.array]) -> np.ndarray:
    kernel = metal_kernel(
        name="strided", input_names=[*inputs], output_names=["out"], ensure_row_contiguous=False,
        source="uint e = thread_position_in_grid.x;\n" + source,
    )  # fmt: skip
    (out,) = kernel(
        inputs=[*inputs.values()], grid=(N, 1, 1), threadgroup=(N, 1, 1), output_shapes=[(N,)],
        output_dtypes=[mx.float32],
    )  # fmt: skip
    return np.array(out)


@pytest.mark.parametrize("steps", sorted(LOOPED))
def test_steps_through_an_array_with_strides(steps):
    table = X.reshape(16, 4)
    got = strided(steps + "out[e] = x[l.location()];", {"x": mx.array(table).T})
    np.testing.assert_array_equal(got, table.T.ravel())


def test_steps_along_one_axis():
    source = "LoopedElemToLoc<1, int, false> l(1); l.next(x_shape, x_strides); l.next(int(e), x_shape, x_strides);"
    got = strided(source + "out[e] = x[l.location() - x_strides[0]];", {"x": mx.array(np.repeat(X, 2))[::2]})
    np.testing.assert_array_equal(got, X)


def test_places_in_several_arrays_at_once():
    table = X.reshape(4, 4, 4)
    inputs = {"x": mx.array(table).T, "y": mx.array(table)}
    source = "uint3 p(e % 4, (e / 4) % 4, e / 16);\n"
    two = "auto l = elem_to_loc_2_nd<uint>(p, x_shape, x_strides, y_strides, x_ndim); out[e] = x[l.x] + 2 * y[l.y];"
    np.testing.assert_array_equal(strided(source + two, inputs), (table.T + 2 * table).ravel())
    three = "auto l = elem_to_loc_3_nd(p, x_shape, x_strides, y_strides, x_strides, x_ndim);\n"
    three += "out[e] = x[l.x] == x[l.z] ? y[l.y] : INFINITY;"
    np.testing.assert_array_equal(strided(source + three, inputs), table.ravel())
