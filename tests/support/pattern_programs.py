"""Small programs of Metal with the numbers they write, as kernels in the wild compute them; as value_programs.py."""

import numpy as np
from value_programs import I, N, X

ROWS = X.reshape(2, 32)  # of the simdgroups
EXPONENTIALS = np.exp(ROWS - ROWS.max(1, keepdims=True))
TURNED = X * np.where(I % 3 == 0, -1, 1)


def bits(k: int) -> int:
    """The sum of "bit tricks" for one index."""
    k = k * 2654435761 % 2**32
    high, low = 32 - (k | 1).bit_length(), ((k | 1 << 31) & -(k | 1 << 31)).bit_length() - 1
    reverse, rotated = int(f"{k:032b}"[::-1], 2), k << 3 | k >> 29
    return k.bit_count() + high + low + (reverse & 3) + (k >> 5 & 127) + (rotated & 15)


def saturated(k: int) -> int:
    """The sum of "mulhi mad" for one index."""
    high = (k * 123456789 % 2**32) * 987654321 >> 32
    distances = abs(k - 30) + (k + 3) // 2 + max(0, k - 10)
    return high % 1000 + 3 * k + 4 + distances + min(255, k * 4 % 256 + 100) + min(32767, k * 1000 + 5)


def e4m3(byte: int) -> float:
    sign, exponent, mantissa = -1 if byte & 128 else 1, byte >> 3 & 15, byte & 7
    return sign * ((8 + mantissa) / 8 * 2.0 ** (exponent - 7) if exponent else mantissa / 512)


def rotated() -> np.ndarray:
    angle, even, odd = I // 2 * 10000.0 ** (-(I // 2) / 32), X[I & ~1], X[I | 1]
    ends = odd * np.cos(angle) + even * np.sin(angle), even * np.cos(angle) - odd * np.sin(angle)
    return np.where(I & 1, *ends)


PATTERNS = {
    "packed load store": (
        "",
        "device packed_float3* o = (device packed_float3*)y; const device packed_float3* s = (const device "
        "packed_float3*)x; if (i < 21) { float3 v = float3(s[i]) * 2.0f; o[i] = packed_float3(v.zyx); } if (i == "
        "63) y[63] = 0;",
        np.concatenate([(X[:63].reshape(21, 3) * 2)[:, ::-1].ravel(), [0]]),
    ),
    "xor argmax": (
        "",
        "float v = x[i] * (i % 3 == 0 ? -1.0f : 1.0f); uint k = i; for (ushort d = 16; d > 0; d /= 2) { float o = "
        "simd_shuffle_xor(v, d); uint ok = simd_shuffle_xor(k, d); if (o > v || (o == v && ok < k)) { v = o; k = "
        "ok; } } y[i] = k;",
        np.repeat([np.argmax(TURNED[:32]), 32 + np.argmax(TURNED[32:])], 32),
    ),
    "block reduce": (
        "template <typename T, typename Op> T block_reduce(T v, Op op, threadgroup T* shared, uint lane, uint sg, "
        "uint groups) { for (ushort d = 16; d > 0; d >>= 1) v = op(v, simd_shuffle_xor(v, d)); if (lane == 0) "
        "shared[sg] = v; threadgroup_barrier(mem_flags::mem_threadgroup); v = shared[lane % groups]; for (ushort d "
        "= groups / 2; d > 0; d >>= 1) v = op(v, simd_shuffle_xor(v, d)); "
        "threadgroup_barrier(mem_flags::mem_threadgroup); return v; } struct Sum { template <typename T> T "
        "operator()(T a, T b) const { return a + b; } }; struct Max { template <typename T> T operator()(T a, T b) "
        "const { return max(a, b); } };",
        "threadgroup float sh[32]; float s = block_reduce(x[i], Sum(), sh, lane, sg, 2); float m = "
        "block_reduce(x[i], Max{}, sh, lane, sg, 2); y[i] = s + m;",
        np.full(N, X.sum() + 2),
    ),
    "softmax row": (
        "",
        "float m = simd_max(x[i]); float e = exp(x[i] - m); float s = simd_sum(e); y[i] = e / s;",
        (EXPONENTIALS / EXPONENTIALS.sum(1, keepdims=True)).ravel(),
    ),
    "atomic types": (
        "",
        "threadgroup atomic_uint a; threadgroup atomic_int b; threadgroup atomic<uint> c; if (t == 0) { "
        "atomic_store_explicit(&a, 0u, memory_order_relaxed); atomic_store_explicit(&b, 100, "
        "memory_order_relaxed); atomic_store_explicit(&c, 0u, memory_order_relaxed); } "
        "threadgroup_barrier(mem_flags::mem_threadgroup); atomic_fetch_add_explicit(&a, i, memory_order_relaxed); "
        "atomic_fetch_min_explicit(&b, (int)i - 5, memory_order_relaxed); atomic_fetch_or_explicit(&c, 1u << (i % "
        "8), memory_order_relaxed); threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = "
        "atomic_load_explicit(&a, memory_order_relaxed) + atomic_load_explicit(&b, memory_order_relaxed) + "
        "atomic_load_explicit(&c, memory_order_relaxed);",
        np.full(N, 2016 - 5 + 255),
    ),
    "atomic cas float max": (
        "void amax(volatile threadgroup atomic_uint* p, float v) { uint old = atomic_load_explicit(p, "
        "memory_order_relaxed); while (as_type<float>(old) < v) { if (atomic_compare_exchange_weak_explicit(p, "
        "&old, as_type<uint>(v), memory_order_relaxed, memory_order_relaxed)) break; } }",
        "threadgroup atomic_uint m; if (t == 0) atomic_store_explicit(&m, as_type<uint>(-100.0f), "
        "memory_order_relaxed); threadgroup_barrier(mem_flags::mem_threadgroup); amax(&m, x[i]); "
        "threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = as_type<float>(atomic_load_explicit(&m, "
        "memory_order_relaxed));",
        np.full(N, 2),
    ),
    "atomic exchange xor sub": (
        "",
        "threadgroup atomic_uint m[3]; if (t < 3) atomic_store_explicit(&m[t], 7u, memory_order_relaxed); "
        "threadgroup_barrier(mem_flags::mem_threadgroup); if (t == 5) { uint o = atomic_exchange_explicit(&m[0], "
        "9u, memory_order_relaxed); atomic_fetch_xor_explicit(&m[1], o, memory_order_relaxed); "
        "atomic_fetch_sub_explicit(&m[2], 3u, memory_order_relaxed); } "
        "threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = atomic_load_explicit(&m[0], memory_order_relaxed) "
        "* 100 + atomic_load_explicit(m + 1, memory_order_relaxed) * 10 + atomic_load_explicit(&m[2], "
        "memory_order_relaxed);",
        np.full(N, 904),
    ),
    "atomic float device": (
        "",
        "y[i] = 0; threadgroup_barrier(mem_flags::mem_device); atomic_fetch_add_explicit((device "
        "atomic_float*)&y[i % 4], x[i], memory_order_relaxed);",
        np.concatenate([[X[k::4].sum() for k in range(4)], np.zeros(60)]),
    ),
    "bit tricks": (
        "",
        "uint k = i * 2654435761u; uint r = popcount(k) + clz(k | 1) + ctz(k | 0x80000000u) + (reverse_bits(k) & "
        "3) + extract_bits(k, 5, 7) + (rotate(k, 3u) & 15); y[i] = r;",
        np.array([bits(int(k)) for k in I]),
    ),
    "float bits": (
        "",
        "uint b = as_type<uint>(x[i]); int e = int(b >> 23 & 0xff) - 127; float m = as_type<float>((b & 0x7fffff) "
        "| 0x3f800000); y[i] = (b >> 31 ? -1.0f : 1.0f) * ldexp(m, e) ;",
        X,
    ),
    "mulhi mad": (
        "",
        "y[i] = mulhi(i * 123456789u, 987654321u) % 1000 + mad24(int(i), 3, 4) + absdiff(int(i), 30) + hadd(i, 3u) "
        "+ addsat(uchar(i * 4), uchar(100)) + subsat(i, 10u) + madsat(short(i), short(1000), short(5));",
        np.array([saturated(int(k)) for k in I]),
    ),
    "bitonic sort": (
        "",
        "threadgroup float s[64]; s[t] = -x[i] * (t % 2 ? 1 : -1); "
        "threadgroup_barrier(mem_flags::mem_threadgroup); for (uint k = 2; k <= 64; k <<= 1) for (uint j = k >> 1; "
        "j > 0; j >>= 1) { uint o = t ^ j; float a = s[t], b = s[o]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); bool up = (t & k) == 0; if ((t < o) == up ? a > b : a < "
        "b) s[t] = b; threadgroup_barrier(mem_flags::mem_threadgroup); } y[i] = s[t];",
        np.sort(-X * np.where(I % 2, 1, -1)),
    ),
    "scan": (
        "",
        "threadgroup float sums[2]; float inc = simd_prefix_inclusive_sum(x[i]); if (lane == 31) sums[sg] = inc; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = inc + (sg ? sums[0] : 0.0f) - "
        "simd_prefix_exclusive_product(1.0f) + 1;",
        np.cumsum(X),
    ),
    "compaction": (
        "",
        "threadgroup uint base[2]; bool keep = (i * 7) % 3 == 0; uint m = uint((ulong)simd_ballot(keep)); if (lane "
        "== 0) base[sg] = popcount(m); threadgroup_barrier(mem_flags::mem_threadgroup); uint at = (sg ? base[0] : "
        "0) + popcount(m & ((1u << lane) - 1)); y[i] = -1; threadgroup_barrier(mem_flags::mem_device); if (keep) "
        "y[at] = x[i];",
        np.concatenate([X[I * 7 % 3 == 0], -np.ones(N - (I * 7 % 3 == 0).sum())]),
    ),
    "quad": (
        "",
        "y[i] = quad_sum(x[i]) + quad_shuffle_xor(x[i], 1) + quad_broadcast(x[i], 2) + quad_max(x[i]) + "
        "quad_prefix_inclusive_sum(1.0f);",
        np.repeat(X.reshape(16, 4).sum(1), 4) + X[I ^ 1] + np.repeat(X[2::4], 4) + np.repeat(X[3::4], 4) + I % 4 + 1,
    ),
    "rotate shuffles": (
        "",
        "y[i] = simd_shuffle_rotate_down(x[i], 1) + simd_shuffle_rotate_up(x[i], 2) + simd_shuffle(x[i], ushort(31 "
        "- lane)) + simd_shuffle_and_fill_up(x[i], 100.0f, 1) * 0;",
        np.concatenate([np.roll(r, -1) + np.roll(r, 2) + r[::-1] for r in ROWS]),
    ),
    "rope": (
        "",
        "float theta = float(i / 2) * pow(10000.0f, -float(i / 2) / 32.0f), c, s = sincos(theta, c); float a = x[i "
        "& ~1u], b = x[i | 1]; y[i] = i & 1 ? a * s + b * c : a * c - b * s;",
        rotated(),
    ),
    "morton": (
        "inline uint spread(uint v) { v = (v | v << 8) & 0x00ff00ffu; v = (v | v << 4) & 0x0f0f0f0fu; v = (v | v "
        "<< 2) & 0x33333333u; return (v | v << 1) & 0x55555555u; }",
        "y[i] = spread(i % 8) | spread(i / 8) << 1;",
        np.array([sum((k % 8 >> b & 1) << 2 * b | (k // 8 >> b & 1) << 2 * b + 1 for b in range(3)) for k in I]),
    ),
    "fp8 decode": (
        "inline float e4m3(uchar v) { uint s = v & 0x80, e = v >> 3 & 15, m = v & 7; float r = e ? "
        "as_type<float>((e + 120) << 23 | m << 20) : float(m) * 0x1p-9f; return s ? -r : r; }",
        "y[i] = e4m3(uchar(i * 3));",
        np.array([e4m3(int(k) * 3 % 256) for k in I]),
    ),
    "simd matrix transpose half": (
        "",
        "threadgroup half a[64]; a[t] = half(x[i]); threadgroup_barrier(mem_flags::mem_threadgroup); "
        "simdgroup_half8x8 m; simdgroup_load(m, a, 8, 0, true); simdgroup_float8x8 d = "
        "make_filled_simdgroup_matrix<float, 8>(0.f), c; simdgroup_half8x8 one = simdgroup_half8x8(1); "
        "simdgroup_multiply(c, m, one); if (sg == 0) simdgroup_store(c, y, 8, ulong2(0, 0));",
        np.float16(X).reshape(8, 8).T.ravel(),
    ),
    "uchar4 load": (
        "",
        "const device uchar4* b = (const device uchar4*)x; float4 v = float4(b[i]) / 255.0f; y[i] = "
        "as_type<float>(b[i]) + v.x * 0;",
        X,
    ),
    "vote ops": (
        "",
        "simd_vote v = simd_ballot(lane < 8); y[i] = v.any() + 2 * v.all() + popcount(uint(ulong(v))) * 10;",
        np.full(N, 81),
    ),
    "quad ballot": (
        "",
        "quad_vote q = quad_ballot(i % 4 == 1); y[i] = uint(quad_vote::vote_t(q));",
        np.full(N, 2),
    ),
    "vec compare mask": (
        "",
        "float4 v = float4(x[i], 0, 1, 2); int4 m = -int4(v > 0.5f); float4 w = as_type<float4>(as_type<int4>(v) & "
        "m); y[i] = w.x + w.y + w.z + w.w;",
        np.where(X > 0.5, X, 0) + 3,
    ),
    "early return lanes": (
        "",
        "if (lane >= 16) { y[i] = 0; return; } y[i] = simd_sum(1.0f);",
        np.where(I % 32 < 16, 16, 0),
    ),
    "tg struct array": (
        "struct Item { float v; uint k; };",
        "threadgroup Item s[64]; s[t] = Item{x[i], i}; threadgroup_barrier(mem_flags::mem_threadgroup); Item o = "
        "s[(t + 1) % 64]; threadgroup Item& r = s[(t + 2) % 64]; y[i] = o.v + r.k;",
        np.roll(X, -1) + (I + 2) % 64,
    ),
    "tg reinterpret": (
        "",
        "threadgroup float4 raw[16]; threadgroup float* f = (threadgroup float*)raw; f[t] = x[i]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); threadgroup half* h = (threadgroup half*)(f); (void)h; "
        "y[i] = raw[t / 4][t % 4] + raw[t / 4].x;",
        X + X[I // 4 * 4],
    ),
    "online softmax": (
        "",
        "float m = -INFINITY, l = 0; for (int k = 0; k < 64; ++k) { float nm = max(m, x[k]); l = l * exp(m - nm) + "
        "exp(x[k] - nm); m = nm; } y[i] = exp(x[i] - m) / l;",
        np.exp(X - 2) / np.exp(X - 2).sum(),
    ),
    "sh eval": (
        "constant float SH[4] = {0.28209479f, 0.48860251f, 1.09254843f, 0.31539157f}; float3 sh(float3 d, thread "
        "const float3* c) { return SH[0] * c[0] - SH[1] * (d.y * c[1] - d.z * c[2] + d.x * c[3]); }",
        "float3 c[4] = {float3(1), float3(2), float3(3), float3(4)}; float3 d = normalize(float3(x[i], 1, 1)); "
        "y[i] = sh(d, c).g;",
        0.28209479 - 0.48860251 * (4 * X - 1) / np.sqrt(X * X + 2),
    ),
    "tile key": (
        "",
        "ulong key = (ulong(i / 8) << 32) | as_type<uint>(abs(x[i])); y[i] = float(uint(key >> 32)) + "
        "as_type<float>(uint(key & 0xffffffffu));",
        I // 8 + np.abs(X),
    ),
}
