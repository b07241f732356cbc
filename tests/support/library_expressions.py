"""Expressions of Metal's library with equivalent numpy functions, and a kernel that evaluates them."""

import math

import mlx.core as mx
import numpy as np

from mlx_flash.simulator import metal_kernel

N = 64


def evaluate(expressions, x, dtype=mx.float32, prologue=""):
    """float32 [N, number of expressions]: the value of every expression at every x[i]."""
    columns = "".join(f"y[i * {len(expressions)} + {k}] = {e};\n" for k, e in enumerate(expressions))
    kernel = metal_kernel(
        name="library", input_names=["xs"], output_names=["y"],
        source=f"uint i = thread_position_in_grid.x; auto x = xs[i]; {prologue}\n{columns}",
    )  # fmt: skip
    (y,) = kernel(
        inputs=[x], grid=(N, 1, 1), threadgroup=(N, 1, 1), output_shapes=[(N, len(expressions))], output_dtypes=[dtype]
    )
    return np.array(y.astype(mx.float32) if dtype == mx.bfloat16 else y)


def compare(cases, x, values, tolerance, dtype=mx.float32):
    """Compares every expression of `cases` at x with its numpy function at `values`."""
    found = evaluate(list(cases), x, dtype)
    for column, (expression, reference) in zip(found.T, cases.items()):
        expected = np.array([reference(v) for v in values], np.float64)
        assert np.allclose(column, expected, rtol=tolerance, atol=tolerance), expression


def check_floats(cases, values):
    """Checks every expression of `cases` in float32."""
    compare(cases, mx.array(values), values.astype(np.float64), 2e-5)


POSITIVE = np.linspace(0.05, 4, N).astype(np.float32)
UNIT = np.linspace(-0.95, 0.95, N).astype(np.float32)
ANY = np.linspace(-6.3, 6.3, N).astype(np.float32)
ON_POSITIVE = {
    "sqrt(x)": math.sqrt, "rsqrt(x)": lambda v: 1 / math.sqrt(v), "log(x)": math.log, "log2(x)": math.log2, "log10(x)":
        math.log10,
    "pow(x, 2.5f)": lambda v: v**2.5, "powr(x, 1.5f)": lambda v: v**1.5, "fmod(x, 0.75f)": lambda v: math.fmod(v, 0.75),
    "acosh(x + 1)": lambda v: math.acosh(v + 1), "fract(x)": lambda v: v - math.floor(v), "length(float2(x, 1))": lambda
        v: math.hypot(v, 1),
    "normalize(float3(x, 2, 3)).z": lambda v: 3 / math.sqrt(v * v + 13), "precise::log2(x)": math.log2,
        "fast::rsqrt(x)": lambda v: v**-0.5,
}  # fmt: skip
ON_UNIT = {
    "asin(x)": math.asin, "acos(x)": math.acos, "atanh(x)": math.atanh, "mix(1.0f, 3.0f, x)": lambda v: 1 + 2 * v,
    "step(0.5f, x)": lambda v: float(v >= 0.5), "saturate(x)": lambda v: min(max(v, 0), 1),
    "smoothstep(-1.0f, 1.0f, x)": lambda v: ((v + 1) / 2) ** 2 * (3 - (v + 1)),
}  # fmt: skip
ON_ANY = {
    "exp(x)": math.exp, "exp2(x)": lambda v: 2**v, "exp10(x / 4)": lambda v: 10 ** (v / 4), "sin(x)": math.sin,
        "cos(x)": math.cos,
    "tan(x / 5)": lambda v: math.tan(v / 5), "atan(x)": math.atan, "atan2(x, 2.0f)": lambda v: math.atan2(v, 2),
        "sinh(x)": math.sinh,
    "cosh(x)": math.cosh, "tanh(x)": math.tanh, "asinh(x)": math.asinh, "sinpi(x)": lambda v: math.sin(math.pi * v),
    "floor(x)": math.floor, "ceil(x)": math.ceil, "trunc(x)": math.trunc, "rint(x)": np.rint,
    "round(x)": lambda v: math.copysign(math.floor(abs(v) + 0.5), v),
    "fabs(x)": abs, "abs(x)": abs, "sign(x)": np.sign, "fma(x, x, 1.0f)": lambda v: v * v + 1,
    "max(x, 1.0f)": lambda v: max(v, 1),
    "min3(x, 1.0f, 0.5f)": lambda v: min(v, 0.5), "median3(x, -1.0f, 1.0f)": lambda v: sorted([v, -1, 1])[1],
    "clamp(x, -2.0f, 2.0f)": lambda v: min(max(v, -2), 2), "copysign(1.0f, x)": lambda v: math.copysign(1, v),
    "fdim(x, 1.0f)": lambda v: max(v - 1, 0),
    "select(1.0f, 2.0f, x > 0)": lambda v: 2.0 if v > 0 else 1.0, "dot(float3(x), float3(1, 2, 3))": lambda v: 6 * v,
    "cross(float3(x, 0, 0), float3(0, 1, 0)).z": lambda v: v, "ldexp(x, 3)": lambda v: 8 * v, "exp2(float4(x)).w":
        lambda v: 2**v,
    "max(float2(x, 0), float2(1)).x": lambda v: max(v, 1), "float(isnan(x)) + float(isfinite(x))": lambda v: 1.0,
    "distance(float2(x, 0), float2(0))": abs,
}  # fmt: skip
ON_ANY["(float2x2(float2(1, 2), float2(3, 4)) * float2(x, 1)).y"] = lambda v: 2 * v + 4
ON_ANY["determinant(float3x3(x))"] = lambda v: v**3
ON_ANY["float3x2(transpose(float2x3(float3(1, 2, x), float3(4, 5, 6)))).columns[2].x"] = lambda v: v


LANES = np.arange(N) % 32
X = np.arange(1, N + 1, dtype=np.float32)
ROWS = X.reshape(2, 32)
IN_QUADS = X.reshape(16, 4)


def shuffled(lanes):
    """X as each lane reads it from the lane of its simdgroup given by `lanes`."""
    return np.take_along_axis(ROWS, np.asarray(lanes).reshape(2, 32), axis=1).ravel()


_UP = np.where(LANES >= 3, X - 3, X)
ON_LANES = {
    "simd_sum(x)": np.repeat(ROWS.sum(1), 32), "simd_max(x)": np.repeat(ROWS.max(1), 32), "simd_min(x)": np.repeat(
        ROWS.min(1), 32),
    "simd_product(x > 4 ? 1.0f : x)": np.repeat([24.0, 1.0], 32), "simd_shuffle(x, 5)": shuffled(np.full(N, 5)),
    "simd_broadcast(x, 31)": shuffled(np.full(N, 31)), "simd_shuffle_xor(x, 9)": shuffled(LANES ^ 9),
        "simd_shuffle_up(x, 3)": _UP,
    "simd_shuffle_down(x, 2)": np.where(LANES < 30, X + 2, X), "simd_shuffle_rotate_up(x, 1)": shuffled((LANES - 1)
        % 32),
    "simd_shuffle_rotate_down(x, 4)": shuffled((LANES + 4) % 32), "simd_shuffle_and_fill_up(x, -x, 2)": np.where(
        LANES >= 2, X - 2, -(X + 30)),
    "simd_shuffle_and_fill_down(x, -x, 2)": np.where(LANES < 30, X + 2, -(X - 30)), "simd_prefix_inclusive_sum(x)":
        ROWS.cumsum(1).ravel(),
    "simd_prefix_exclusive_sum(x)": (ROWS.cumsum(1) - ROWS).ravel(),
        "simd_prefix_inclusive_product(x > 3 ? 1.0f : x)": np.where(X < 33, np.minimum(6, np.where(X < 3, X, 6)),
        1),
    "quad_sum(x)": np.repeat(IN_QUADS.sum(1), 4), "quad_max(x)": np.repeat(IN_QUADS.max(1), 4),
        "quad_broadcast(x, 1)": np.repeat(IN_QUADS[:, 1], 4),
    "quad_shuffle_xor(x, 2)": IN_QUADS[:, [2, 3, 0, 1]].ravel(), "float(simd_any(x == 40))": np.repeat([0, 1], 32),
        "float(simd_all(x < 40))": np.repeat([1, 0], 32),
    "float(uint((uint64_t)simd_ballot(x <= 4)))": np.repeat([15, 0], 32), "simd_is_first() ? 1.0f : 0.0f": LANES ==
        0,
    "simd_sum(float4(x)).y": np.repeat(ROWS.sum(1), 32), "float(simd_or(uint(x)))": np.repeat([63, 127], 32),
        "float(simd_xor(uint(x)))": np.repeat([32, 96], 32),
    "simd_shuffle_xor(half2(x, 1), 1).x": shuffled(LANES ^ 1), "x > 16 ? simd_sum(x) : 0": np.where(X > 16, np.
        repeat([ROWS[0, 16:].sum(), ROWS[1].sum()], 32), 0),
    "quad_prefix_inclusive_sum(x)": IN_QUADS.cumsum(1).ravel(),
    "quad_prefix_exclusive_product(x > 3 ? 2.0f : x)": [1, 1, 2, 6, *[1, 2, 4, 8] * 15],
    "float(uint(quad_ballot(x > 6)))": [0] * 4 + [12] + [12] * 3 + [15] * 56,
    "float(quad_all(x > 6)) + 2 * float(quad_any(x > 6))": np.repeat([0, 2] + [3] * 14, 4),
    "float(quad_is_first())": np.arange(N) % 4 == 0, "quad_broadcast_first(x)": np.repeat(IN_QUADS[:, 0], 4),
    "quad_shuffle_and_fill_up(x, -x, 1)": np.concatenate([-IN_QUADS[:, 3:], IN_QUADS[:, :3]], 1).ravel(),
    "quad_shuffle_and_fill_down(x, -x, 1)": np.concatenate([IN_QUADS[:, 1:], -IN_QUADS[:, :1]], 1).ravel(),
    "float(quad_active_threads_mask().all())": np.ones(N),
    "simd_broadcast_first(x)": np.repeat([1.0, 33.0], 32),
}  # fmt: skip


def check_lanes():
    """Checks every function that exchanges values between lanes, in simdgroups and in quads."""
    found = evaluate(list(ON_LANES), mx.array(X))
    for column, (expression, expected) in zip(found.T, ON_LANES.items()):
        assert np.allclose(column, expected, rtol=1e-6), expression
