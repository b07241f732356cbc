"""Small programs about one rule each: some that Metal accepts, some that Metal refuses.

A program with the word `kernel` is complete. Any other is the body of a kernel with the variables x, y, h (half) and b
(bfloat).
"""

BODY = """
[[kernel]] void probe(const device float* x [[buffer(0)]], device float* y [[buffer(1)]], device half* h [[buffer(2)]],
                      device bfloat* b [[buffer(3)]], const constant float* c [[buffer(4)]],
                      uint i [[thread_position_in_grid]]) {
"""


def helper(definition: str, call: str) -> str:
    """A complete program: definitions and a kernel that uses them."""
    return definition + BODY.replace("\n", " ") + call + "}"


ACCEPTED = {
    "unsuffixed literals are float": "float a = 1.5; y[i] = a * 2.0;",
    "half literals": "h[i] = 1.5h + h[i];",
    "bfloat literals": "b[i] = 1.5bf;",
    "float from half": "y[i] = h[i];",
    "half from float": "h[i] = x[i];",
    "float from bfloat": "y[i] = b[i];",
    "bfloat from float with a cast": "b[i] = bfloat(x[i]); b[i] = static_cast<bfloat>(x[i]); b[i] = (bfloat)x[i];",
    "bfloat from half with static_cast": "b[i] = static_cast<bfloat>(h[i]);",
    "half from bfloat with static_cast": "h[i] = static_cast<half>(b[i]);",
    "bfloat arithmetic": "b[i] = b[i] * b[i] + b[i];",
    "float4 from half4": "half4 a = half4(1); float4 f = float4(a); y[i] = f.x;",
    "int4 from float4": "int4 a = int4(float4(3.7)); y[i] = a.w;",
    "vectors from parts": "float4 v = float4(float2(1, 2), 3, 4); float3 w = float3(v.xy, 1); y[i] = w.z + v.w;",
    "braces for vectors": "float2 v = {1, 2}; uint3 u = {1, 2, 3}; y[i] = v.x + u.z;",
    "bool4 from a comparison": "bool4 m = float4(x[i]) < float4(1); y[i] = all(m) ? 1 : any(m) ? 2 : 3;",
    "vector select": "float4 v = select(float4(0), float4(1), float4(x[i]) < 2); y[i] = v.y;",
    "scalar select": "y[i] = select(0.0f, x[i], x[i] > 0);",
    "vector times scalar": "float4 v = 2 * float4(x[i]) / 3; v *= 2; v += 1; y[i] = v.x;",
    "reading a swizzle": "float4 v = float4(1, 2, 3, 4); float2 w = v.wz; y[i] = w.x + v.rgb.b;",
    "writing a swizzle": "float4 v = float4(0); v.xz = float2(1, 2); v.yw = 5; y[i] = v.z;",
    "indexing a vector": "float4 v = float4(0); for (int k = 0; k < 4; ++k) v[k] = k; y[i] = v[2];",
    "vectors in device memory": "device float4* v = (device float4*)y; v[i] = v[i] + 1; v[i].x = 2;",
    "vectors in constant memory": "float4 v = ((const constant float4*)c)[0]; y[i] = v.x;",
    "packed vectors": "packed_float3 p = packed_float3(1, 2, 3); float3 v = p; y[i] = v.z + p[1]; "
        "packed_half2 q = half2(1); h[i] = q.x;",
    "sizes of packed vectors": "static_assert(sizeof(packed_float3) == 12 && sizeof(float3) == 16, \"\"); y[i] = 0;",
    "metal:: before types": "metal::float4 v = metal::float4(1); metal::uint2 u = 1; y[i] = v.x + u.x;",
    "vec<T, N>": "vec<float, 2> v(1, 2); metal::vec<half, 4> w(1); y[i] = v.y + w.x;",
    "conditional of an lvalue and a value": "float2 v = float2(1); float2 w = i > 1 ? v : float2(0); y[i] = w.x;",
    "conditional of device vectors": "device float2* v = (device float2*)y; float2 w = i > 1 ? v[i] : float2(0); "
        "y[i] = w.x;",
    "thread pointers and references": "float a = 1; thread float* p = &a; thread float& r = a; *p = 2; y[i] = r;",
    "auto references": "auto& r = y[i]; r = 1; auto v = x[i]; y[i] = v;",
    "casting between device pointers": "const device uint8_t* p = (const device uint8_t*)x; "
        "y[i] = ((const device half*)(p + 4))[i];",
    "reinterpret_cast": "y[i] = reinterpret_cast<const device uint*>(x)[i];",
    "threadgroup arrays": "threadgroup float t[64]; t[i] = 1; threadgroup half u[4][8], w; u[1][2] = 1; w = 1; "
        "y[i] = t[i] + u[1][2] + w;",
    "threadgroup arrays of constant size": "constexpr int N = 8; threadgroup float t[N * (N + 1)]; t[i] = 1; "
        "y[i] = t[i];",
    "threadgroup pointers": "threadgroup float t[64]; threadgroup float* p = t + i; *p = 1; y[i] = *p;",
    "alignas on threadgroup bytes": "alignas(16) threadgroup uchar t[64]; "
        "threadgroup float* p = (threadgroup float*)t; *p = 1; y[i] = *p;",
    "local arrays": "float a[4] = {1, 2}; float2 v[2]; v[0] = float2(1); y[i] = a[1] + v[0].x;",
    "as_type": "y[i] = as_type<float>(as_type<uint>(x[i]) ^ 0x80000000u); half2 v = as_type<half2>(1u); h[i] = v.x;",
    "constants of metal_math": "y[i] = INFINITY + M_LOG2E_F + M_PI_F + FLT_MAX + HALF_MAX + NAN;",
    "numeric_limits": "y[i] = metal::numeric_limits<float>::infinity() + metal::numeric_limits<half>::max() + "
        "numeric_limits<int>::min();",
    "precise and fast": "y[i] = metal::precise::exp(x[i]) + metal::fast::exp2(x[i]) + fast::max(x[i], 0.0f) + "
        "precise::sqrt(x[i]);",
    "mathematics of vectors": "float4 v = exp2(float4(x[i])); v = fma(v, v, v); v = clamp(v, 0.0f, 1.0f); "
        "v = max(v, 0.5f); y[i] = dot(v, v) + length(v.xyz);",
    "mathematics of half": "h[i] = exp(h[i]) + max(h[i], 1.0h) + fma(h[i], h[i], h[i]);",
    "integer functions": "y[i] = popcount(i) + clz(i) + ctz(i) + min(i, 3u) + mulhi(i, i) + rotate(i, 3u) + "
        "extract_bits(i, 2, 3) + absdiff(1, 2);",
    "simd functions": "float v = x[i]; v += simd_sum(v) + simd_max(v) + simd_shuffle_xor(v, 1) + simd_broadcast(v, 0) "
        "+ simd_prefix_inclusive_sum(v); y[i] = v;",
    "simd functions of vectors": "float4 v = simd_shuffle_down(float4(x[i]), 2); v = simd_sum(v); y[i] = v.x;",
    "simd votes": "y[i] = simd_all(x[i] > 0) + simd_any(x[i] > 0) + simd_is_first() + (uint64_t)simd_ballot(x[i] > 0);",
    "shuffles with fill": "y[i] = simd_shuffle_and_fill_up(x[i], 0.0f, 1) + simd_shuffle_and_fill_down(x[i], 1.0f, 2);",
    "quad functions": "y[i] = quad_sum(x[i]) + quad_shuffle_xor(x[i], 1) + quad_broadcast(x[i], 2) + quad_max(x[i]);",
    "barriers": "threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device); "
        "simdgroup_barrier(mem_flags::mem_none); y[i] = 1;",
    "simdgroup matrices": "simdgroup_float8x8 a(1), d; simdgroup_half8x8 m(2.0h); simdgroup_load(a, x, 8); "
        "simdgroup_multiply_accumulate(d, m, a, a); simdgroup_store(d, y, 8);",
    "thread_elements": "simdgroup_matrix<float, 8, 8> a(0); "
        "reinterpret_cast<thread float2&>(a.thread_elements()) = float2(1); a.thread_elements()[1] = 2; "
        "y[i] = a.thread_elements()[0];",
    "atomics": "device atomic_uint* a = (device atomic_uint*)y; "
        "atomic_fetch_add_explicit(a, 1u, memory_order_relaxed); "
        "atomic_store_explicit(a + 1, 3u, memory_order_relaxed);",
    "float atomics": "atomic_fetch_add_explicit((device atomic<float>*)y, 1.0f, memory_order_relaxed);",
    "names that OpenCL reserves": "float local = 1, global = 2, pipe = 3, generic = 4; "
        "y[i] = local + global + pipe + generic;",
    "unroll pragmas": "\n#pragma clang loop unroll(full)\nfor (int k = 0; k < 4; "
        "++k) y[i] = k;\n#pragma unroll\nfor (int k = 0; k < 4; ++k) y[i] = k; "
        "_Pragma(\"clang loop unroll(disable)\") for (;;) break;",
    "templates": helper("template <typename T, int N> T f(T a) { return a * N; }", "y[i] = f<float, 3>(x[i]);"),
    "if constexpr": helper("template <bool B> float f(float a) { if constexpr (B) { return a; } else { return -a; } }",
        "y[i] = f<true>(1);"),
    "static_assert": helper("template <typename T> struct S { static_assert(sizeof(T) == 4, \"four\"); T v; };",
        "S<float> s; s.v = 1; y[i] = s.v;"),
    "alias templates": helper("template <typename T> using Pair = vec<T, 2>; typedef float Real;",
        "Pair<Real> p(1, 2); y[i] = p.y;"),
    "constants in namespaces": helper("constant constexpr int N = 3; constant float t[2] = {1, 2}; "
        "namespace n { static constant constexpr float c2 = 2; }", "y[i] = N + t[i % 2] + n::c2;"),
    "variable templates": helper("template <typename T> constant constexpr int bits = sizeof(T) * 8;",
        "y[i] = bits<half>;"),
    "constant members": helper("struct S { static constant constexpr int n = 4; "
        "static constexpr constant float v = 1.5; };", "float a[S::n]; a[0] = S::v; y[i] = a[0];"),
    "methods with a space": helper("struct S { float v; float get() const thread { return v; "
        "} void set(float a) thread { v = a; } float read() const device { return v; } };", "S s; s.set(1); "
        "y[i] = s.get(); y[i] += ((device S*)y)->read();"),
    "methods without a space": helper("struct S { float v; float get() const { return v; } };",
        "S s; s.v = 1; y[i] = s.get();"),
    "constructors with a space": helper("struct S { float v; S(float a) thread : v(a) {} S() thread = default; };",
        "S s = S(2); y[i] = s.v;"),
    "operators of structures": helper("struct S { float v; S operator+(S o) const thread { S r; r.v = v + o.v; "
        "return r; } };", "S a; a.v = 1; S c2 = a + a; y[i] = c2.v;"),
    "copies out of device memory": helper("struct S { float v; int w; };", "S s = ((device S*)y)[i]; "
        "((device S*)y)[0] = s; y[i] = s.v;"),
    "members of constant structures": helper("struct S { float v; int w[3]; };",
        "const constant S* s = (const constant S*)c; y[i] = s->v + s->w[2];"),
    "copies out of constant memory": helper("struct S { float v; int w[3]; };",
        "const constant S* s = (const constant S*)c; S t = s[0]; y[i] = t.v;"),
    "overloads by space": helper("float f(device float* p) { return 1; } float f(threadgroup float* p) { return 2; "
        "} float f(thread float* p) { return 3; }", "float a; y[i] = f(y) + f(&a);"),
    "specialisations by space": helper("template <typename T> struct E; "
        "template <typename T> struct E<const device T*> { typedef T type; }; "
        "template <typename T> struct E<threadgroup T*> { typedef T type; };", "E<const device float*>::type a = 1; "
        "y[i] = a;"),
    "array references": helper("void f(thread float (&a)[4]) { a[1] = 2; "
        "} float g(const thread float* a) { return a[1]; }", "float a[4]; f(a); y[i] = g(a);"),
    "recursion of templates": helper("template <int N> int f() { if constexpr (N > 0) { return f<N - 1>() + 1; "
        "} else { return 0; } }", "y[i] = f<5>();"),
    "overloads that call each other": helper("float f(half a) { return a; } float f(float a) { return f((half)a); }",
        "y[i] = f(x[i]);"),
    "enumerations": helper("enum Mode { A, B }; enum class Kind : uint { C = 2 };", "y[i] = A + (uint)Kind::C; "
        "switch (i) { case 0: y[i] = 1; break; default: break; }"),
    "type traits": "static_assert(metal::is_same_v<float, float> && is_floating_point<half>::value && "
        "!is_integral_v<float>, \"\"); conditional_t<true, int, float> a = 1; y[i] = a;",
    "enable_if": helper("template <typename T, typename = enable_if_t<is_same_v<T, float>>> T f(T a) { return a; }",
        "y[i] = f(x[i]);"),
    "attributes of kernels": "#include <metal_stdlib>\nusing namespace "
        "metal;\n[[max_total_threads_per_threadgroup(64)]] [[kernel]] void f(device float* y [[buffer(0)]], uint2 p "
        "[[thread_position_in_grid]], ushort l [[thread_index_in_simdgroup]]) { y[p.x] = l; }",
    "the kernel keyword": "kernel void f(device float* y [[buffer(0)]], ushort3 p [[thread_position_in_threadgroup]]) "
        "{ y[p.x] = 1; }",
    "explicit instantiation": "template <typename T> [[kernel]] void f(device T* y [[buffer(0)]], uint p "
        "[[thread_position_in_grid]]) { y[p] = 1; "
        "}\ntemplate [[host_name(\"f_half\")]] [[kernel]] decltype(f<half>) f<half>;",
    "comments and line ends": "y[i] = 1; // device float4* goto\n/* double\n static */ y[i] = 2;",
    "pragmas of clang diagnostics": "\n#pragma clang diagnostic push\n#pragma clang diagnostic ignored "
        "\"-Wunused\"\ny[i] = 1;\n#pragma clang diagnostic pop\n",
    "unsigned wrap": "uint a = i * 2654435761u; y[i] = a >> 16;",
    "64-bit integers": "long a = (long)i * 5000000000; ulong u = 1ul << 40; size_t s = a; y[i] = a + u + s;",
    "sizeof and alignas": "struct alignas(16) S { float v; }; "
        "static_assert(sizeof(S) == 16 && alignof(float3) == 16, \"\"); y[i] = 0;",
    "loops in constant expressions": helper("constexpr int f(int n) { int r = 1; while (n > 1) r *= n--; "
        "for (int k = 0; k < 0; k++) r++; return r; }", "float a[f(3)]; a[5] = 1; y[i] = a[5];"),
    "declarations in conditions": "int n = 3; while (int m = n--) y[i] = m; for (int k = 3; int m = k; k--) y[i] = m;",
    "calls of overloads": helper("int f(int n) { return n; } int f(float n) { return f(int(n)); }", "y[i] = f(3.0);"),
    "calls of specialisations": helper("template <int N> int f() { return f<N - 1>() + 1; "
        "} template <> int f<0>() { return 0; }", "y[i] = f<3>();"),
    "braces assigned to structures": helper("struct S { int a, b; };", "S s = {1, 2}; s = {3, 4}; "
        "s = ((const constant S*)c)[0]; y[i] = s.a;"),
    "template references of the thread space": helper("struct S { float v; float get() const thread { return v; } }; "
        "template <typename T> float f(thread const T& s) { return s.get(); }", "S s; s.v = 1; y[i] = f(s);"),
    "const thread references to temporaries": helper("float f(const thread float2& v) { return v.x; }",
        "y[i] = f(float2(1));"),
    "casts from half to bfloat": "b[i] = (bfloat)h[i]; b[0] = bfloat(h[i] + 1.0h) * (bfloat)-h[1]; b[1] = (bfloat)2.0;",
    "casts from bfloat to half": "h[i] = (half)b[i]; h[0] = half(b[1]); half a = half(1), d = half(x[i]); "
        "h[1] = a + d;",
    "casts between half and bfloat where templates choose": helper(
        "template <typename T, typename U> T f(U a) { return (T)a + T(a); } "
        "template <typename T> T g(half a, bfloat c2) { using R = T; return (R)(a * 2.0h) * R(c2); }",
        "b[i] = f<bfloat>(h[i]) + g<bfloat>(h[i], b[i]); h[i] = f<half>(b[i]); y[i] = f<float>(g<half>(h[i], b[i]));"),
    "casts by names of half and bfloat": helper("typedef bfloat B; using H = half;\n#define D bfloat\n",
        "b[i] = (B)h[i] + B(h[i]); h[i] = (H)b[i]; b[i] = (D)h[i];"),
    "float constants where a constant is needed": helper("constant float t[2] = {0.5f, 1.0f}; "
        "constant bfloat u[2] = {0.5bf, bfloat(1.0f)}; constexpr float f(float a) { return a * 2.0f; } "
        "template <int N> int g() { return N; }\n#define HALF_OF 0.5\n",
        "constexpr float k = f(1.5f); static_assert(k == 3.0f && HALF_OF == 0.5f, \"\"); float a[int(k)]; "
        "a[0] = g<int(2.0f)>() + t[i]; b[i] = bfloat(k) * u[1]; y[i] = a[0] * HALF_OF + numeric_limits<float>::max();"),
    "float constants beside bfloat": "float f = b[i] * 0.5f + (b[i] > 0.0f ? 1.0f : 2.0f); half g = 0.5f; "
        "y[i] = f + g + max(float(b[i]), 0.0f); bfloat v = b[i] > 1.0f ? bfloat(1.0f) : b[i]; b[i] = v * v;",
    "names beside a float constant's": helper(
        "float f(half k) { return k; } constexpr float g(float k) { return k * k; }",
        "constexpr float k = 0.5f; struct S { float k; }; S s; s.k = k; b[i] = bfloat(k); y[i] = f(k) + g(k) + s.k;"),
    "names of float constants that mean something else elsewhere": helper(
        "struct S { float at[2]; }; float g(S s) { return s.at[0]; } float f(S factor) { return g(factor); } "
        "float h2(thread S& factor) { factor.at[0] = 1.0f; return f(factor); }",
        "S s = {{1.0f, 2.0f}}; const float factor = 2.0f; y[i] = f(s) + h2(s) + max(factor, 1.0f); "
        "b[i] = bfloat(factor);"),
    "integers that become bfloat": "bfloat v = 1; b[i] = v; float f = 1.0f; b[0] = bfloat(f);",
    "indexing what an operator returns": "float4 v = float4(1); "
        "y[i] = (v + v)[2] + (-v)[i & 3] + float4(1, 2, 3, 4)[1];",
    "indexing what a function returns": "y[i] = simd_sum(float4(x[i]))[2] + packed_float3(1, 2, 3)[1];",
    "indexing vectors of every space": "threadgroup float4 t[2]; t[0][i] = 1; ((device float4*)y)[1][2] = t[0][1u]; "
    "y[i] = ((const constant float4*)c)[0][i] + ((const device float4*)x)[0][(short)1];",
    "lists of three values for four": "uint4 v = {1, 2, 3}; half4 w = half4{1, 2, 3}; float4 u = {float2(1), 2, 3}; "
        "y[i] = v.w + w.x + u.y;",
    "operators that call others": helper(
        "struct S { float v; }; S operator+(S a, S c2) { S r; r.v = a.v + c2.v; return r; } "
        "S operator*(S a, float n) { S r = a + a; r.v = r.v * n; return r; }",
        "S s; s.v = 1; y[i] = (s * 2).v;",
    ),
    "structures inside a function": helper("struct Big { float v[3]; };", "struct Pair { float v; uint k; "
        "Pair(float a, uint k) : v(a), k(k) {} bool operator<(const thread Pair& o) const { return v < o.v; } }; "
        "Big g = ((const constant Big*)c)[0]; Pair p(x[i], i), q(g.v[1], 1u); y[i] = p < q ? 1 : 0;"),
    "indexing what matrices give": "float2x2 m = 2.0f * float2x2(float2(1, 2), float2(3, 4)); m[0][1] = 5; "
        "y[i] = transpose(m)[0].y + (m * m)[1][0];",
    "state machines": helper("enum class State : uchar { Start, Run, Stop };", "State s = State::Start; int n = 0; "
        "do { switch (s) { case State::Start: s = State::Run; break; case State::Run: if (++n == 3) s = State::Stop; "
        "[[fallthrough]]; default:; } } while (s != State::Stop); y[i] = n;"),
    "functions that end by starting anew": helper("struct S { int v; void go(int n) thread { int left = n - v; "
        "if (left > 0) { v++; if (n % 2) { v++; } go(left); } } };", "S s; s.v = 0; s.go(i); y[i] = s.v;"),
    "bit fields": helper("struct Bits { uint low : 4; uint high : 28; };", "Bits v; v.low = i & 15; v.high = i >> 4; "
        "y[i] = v.low + v.high * 16;"),
    "private members": helper("class Sum { public: Sum() : s(0) {} void add(float v) { s += v; } float get() const "
        "{ return s; } private: float s; };", "Sum s; s.add(x[i]); y[i] = s.get();"),
    "bases that know what is derived": helper("template <typename D> struct Base { float run(float v) const { return "
        "static_cast<const thread D*>(this)->apply(v); } }; struct Twice : Base<Twice> { float apply(float v) const "
        "{ return 2 * v; } };", "Twice t; y[i] = t.run(x[i]);"),
    "fold expressions": helper("template <typename... A> float all_of(A... a) { return (float(a) + ...); }",
        "y[i] = all_of(x[i], 1, 2u, 3.0h);"),
    "lists of constants for half": "half a[2] = {1.0f, 0.5f}; half z{0.25f}; b[i] = bfloat(0.5f); h[i] = a[i & 1] + z;",
    "references to device pointers": helper(
        "template <typename T> void skip(const device T*& p, int n) { p += n; }",
        "const device float* p = x; skip(p, 2); y[i] = *p;"),
    "arrays as parameters": helper("template <typename T> float f(T a[4]) { return a[1]; }",
        "float a[4] = {1, 2, 3, 4}; y[i] = f<float>(a);"),
    "members named as a kernel": "struct S { static float f(float a) { return a; } }; "
        "[[kernel]] void f(device float* y [[buffer(0)]]) { y[0] = S::f(1); }",
    "pointers that share a declaration": "thread float a = 1, c2; thread float *p = &a, *q = &c2; *q = *p; y[i] = c2;",
    "const thread references to values": helper("float f(const thread float2& v) { return v.x; }",
        "float2 v = float2(1); y[i] = f(v);"),
}  # fmt: skip

# rule: (part of the error message, program)
REFUSED = {
    "double": ("no double", "double a = 1; y[i] = a;"),
    "float to bfloat without a cast": ("float does not convert to bfloat", "b[i] = x[i];"),
    "float result to bfloat": ("float does not convert to bfloat", "b[i] = exp(x[i]) * 2;"),
    "constant to bfloat without a cast": ("float does not convert to bfloat", "bfloat v = 1.0f; b[i] = v;"),
    "unsuffixed constant to bfloat": ("float does not convert to bfloat", "b[i] = -0.5;"),
    "constant assigned to a bfloat": ("float does not convert to bfloat", "bfloat v; v = 2.f; b[i] = v;"),
    "constant argument to a bfloat": ("float does not convert to bfloat", helper(
        "bfloat f(bfloat a) { return a; }", "b[i] = f(1.0f);")),
    "constant result that is bfloat": ("float does not convert to bfloat", helper(
        "bfloat f() { return 0.5f; }", "b[i] = f();")),
    "constants in an array of bfloat": ("float does not convert to bfloat", "bfloat a[2] = {0.0f, 1.0f}; b[i] = a[i];"),
    "constant member of bfloat": ("float does not convert to bfloat", helper("struct S { bfloat v = 1.0f; };",
        "S s; b[i] = s.v;")),
    "constant table of bfloat": ("float does not convert to bfloat", helper("constant bfloat t[2] = {1.0f, 2.0f};",
        "b[i] = t[i];")),
    "constant to a template's bfloat": ("float does not convert to bfloat", helper(
        "template <typename T> T f() { T a = 0.0f; return a; }", "b[i] = f<bfloat>();")),
    "conditional constant to a bfloat": ("float does not convert to bfloat", "b[i] = b[i] > 0 ? b[i] : 0.0f;"),
    "macro to a bfloat": ("float does not convert to bfloat", "\n#define ONE 1.0f\nbfloat v = ONE; b[i] = v;"),
    "infinity to a bfloat": ("float does not convert to bfloat", "bfloat m = -INFINITY; b[i] = m;"),
    "a float's limit to a bfloat": ("float does not convert to bfloat",
        "bfloat m = numeric_limits<float>::infinity(); b[i] = m;"),
    "named constant to a bfloat": ("float does not convert to bfloat", "constexpr float one = 1.0f; bfloat v = one; "
        "b[i] = v;"),
    "cast constant to a bfloat": ("float does not convert to bfloat", "bfloat v = float(1); b[i] = v;"),
    "float added to a bfloat": ("float does not convert to bfloat", "b[i] += 1.0f;"),
    "three values for a vector of four": (None, "uint4 v = uint4(1, 2, 3); y[i] = v.x;"),
    "two values for a vector of three": (None, "float3 v = float3(1, 2); y[i] = v.x;"),
    "half to bfloat without a cast": (None, "b[i] = h[i];"),
    "bfloat to half without a cast": (None, "h[i] = b[i];"),
    "pointer without a space": ("pointer needs an address space", "float a; float* p = &a; y[i] = *p;"),
    "reference without a space": ("reference needs an address space", "float a; float& r = a; y[i] = r;"),
    "pointer parameter without a space": ("pointer needs an address space", helper("float f(float* p) { return *p; }",
        "y[i] = 1;")),
    "reference parameter without a space": ("reference needs an address space", helper(
        "float f(const float& p) { return p; }", "y[i] = 1;")),
    "template pointer without a space": ("pointer needs an address space", helper(
        "template <typename T> T f(const T* p) { return *p; }", "y[i] = 1;")),
    "method parameter without a space": ("reference needs an address space", helper(
        "struct S { void f(float& a) { a = 1; } };", "y[i] = 1;")),
    "member pointer without a space": ("pointer needs an address space", helper("struct S { float* p; };",
        "y[i] = 1;")),
    "result without a space": ("reference needs an address space", helper("struct S { float v; float& f() { return v; "
        "} };", "y[i] = 1;")),
    "cast without a space": ("pointer needs an address space", "y[i] = *(float*)x;"),
    "reinterpret_cast without a space": ("pointer needs an address space", "y[i] = *reinterpret_cast<float*>(x);"),
    "device pointer to a thread pointer": (None, helper("float f(thread float* p) { return *p; }", "y[i] = f(y);")),
    "thread pointer to a device pointer": (None, "float a = 1; device float* p = &a; y[i] = *p;"),
    "threadgroup pointer to a device pointer": (None, "threadgroup float t[4]; device float* p = t; y[i] = *p;"),
    "device pointer to a constant pointer": (None, helper("float f(constant float* p) { return *p; }", "y[i] = f(x);")),
    "cast across spaces": (None, "y[i] = *(threadgroup float*)y;"),
    "dropping const": (None, "device float* p = x; p[i] = 1;"),
    "writing an input": (None, "x[i] = 1;"),
    "writing constant memory": (None, "c[i] = 1;"),
    "device variable": (None, "device float a = 1; y[i] = a;"),
    "recursion": ("no recursion", helper("int f(int n) { return n > 0 ? f(n - 1) : 0; }", "y[i] = f(3);")),
    "recursion of members": ("'f' calls itself", helper(
        "struct S { int f(int n) const thread { return n ? this->f(n - 1) : 0; } };", "S s; y[i] = s.f(3);")),
    "recursion before the end": ("'go' calls itself", helper("struct S { int v; void go(int n) thread { "
        "if (n > 0) { go(n - 1); v++; } } };", "S s; s.v = 0; s.go(i); y[i] = s.v;")),
    "recursion in a loop": ("'go' calls itself", helper("struct S { int v; void go(int n) thread { "
        "while (n-- > 0) { go(n); } } };", "S s; s.v = 0; s.go(i); y[i] = s.v;")),
    "recursion of static members": ("'f' calls itself", helper(
        "struct S { static int f(int n) { return n ? S::f(n - 1) : 0; } };", "y[i] = S::f(3);")),
    "recursion of overloads": ("'f' calls itself", helper("int f(int n) { return n ? f(n - 1) : 0; "
        "} float f(float n) { return n; }", "y[i] = f(3);")),
    "recursion of a template": ("'f<int>' calls itself", helper(
        "template <typename T> T f(T n) { return n > 0 ? f(n - 1) : n; }", "y[i] = f(3);")),
    "recursion of operators": ("'operator[+]' calls itself", helper("struct S { int v; }; "
        "S operator+(S a, S c2) { if (a.v > 0) { a.v--; return a + c2; } return a; }", "S s; s.v = 1; "
        "y[i] = (s + s).v;")),
    "recursion of a call operator": ("calls itself", helper("struct S { int v; "
        "int operator()(int n) const thread { return n ? (*this)(n - 1) : v; } };", "S s; s.v = 1; y[i] = s(3);")),
    "recursion of a subscript": ("calls itself", helper("struct S { int v; "
        "int operator[](int n) const thread { return n ? (*this)[n - 1] : v; } };", "S s; s.v = 1; y[i] = s[3];")),
    "mutual recursion": ("no recursion", helper("int g(int n); int f(int n) { return g(n); "
        "} int g(int n) { return n > 0 ? f(n - 1) : 0; }", "y[i] = f(3);")),
    "goto": ("no goto", "goto end; end: y[i] = 1;"),
    "global variable": ("constant address space", helper("int counter;", "y[i] = counter;")),
    "global constant without a space": ("constant address space", helper("constexpr int N = 3;", "y[i] = N;")),
    "global array without a space": ("constant address space", helper("const float t[2] = {1, 2};", "y[i] = t[0];")),
    "global threadgroup variable": ("constant address space", helper("threadgroup float t[32];", "y[i] = 1;")),
    "constant without a value": (None, helper("constant float t;", "y[i] = t;")),
    "static local": ("static variables", "static int n = 0; y[i] = n++;"),
    "threadgroup variable in a helper": (None, helper("float f() { threadgroup float t[4]; return t[0]; }",
        "y[i] = f();")),
    "array of variable length": (None, "int n = (int)i; float a[n]; a[0] = 1; y[i] = a[0];"),
    "threadgroup array of variable length": (None, "threadgroup float t[i]; y[i] = t[0];"),
    "virtual functions": ("no virtual", helper("struct S { virtual float f() { return 1; } };", "y[i] = 1;")),
    "dynamic_cast": ("no dynamic_cast", "y[i] = dynamic_cast<float>(1);"),
    "typeid": ("no type identification", "y[i] = sizeof(typeid(float));"),
    "new": ("no new and delete", "thread float* p = new float; y[i] = *p;"),
    "delete": ("no new and delete", "float a; thread float* p = &a; delete p; y[i] = 1;"),
    "throw": ("no exceptions", "if (i > 3) throw 1; y[i] = 1;"),
    "try": ("no exceptions", "try { y[i] = 1; } catch (int e) { }"),
    "inline assembly": ("no inline assembly", "asm(\"nop\"); y[i] = 1;"),
    "thread_local": ("thread_local", "thread_local int n = 1; y[i] = n;"),
    "lambdas before 4.0": ("lambda expressions need Metal 4.0", "auto f = [](float a) { return a; }; y[i] = f(1);"),
    "namespace std": ("no namespace std", "y[i] = std::max(1, 2);"),
    "headers of C++": (None, "\n#include <cmath>\ny[i] = 1;"),
    "headers of MLX in a custom kernel": (None, "\n#include \"mlx/backend/metal/kernels/utils.h\"\ny[i] = 1;"),
    "printf": ("no printf", "printf(\"x\"); y[i] = 1;"),
    "OpenCL's swizzles": (None, "float4 v = float4(1); y[i] = v.s0;"),
    "OpenCL's functions": (None, "y[i] = get_global_id(0);"),
    "OpenCL's vector loads": (None, "y[i] = vload_half(0, h);"),
    "swizzle beyond the vector": (None, "float2 v = float2(1); y[i] = v.z;"),
    "implicit conversion of vectors": (None, "float4 v = int4(1); y[i] = v.x;"),
    "implicit narrowing of vectors": (None, "float3 v = float4(1); y[i] = v.x;"),
    "mixed vectors": (None, "float4 v = float4(1) + half4(1); y[i] = v.x;"),
    "max of float and int": (None, "y[i] = max(x[i], 0);"),
    "min of uint and int": (None, "y[i] = min(i, 3);"),
    "exp of an integer": (None, "y[i] = exp(i);"),
    "shuffle of a structure": ("scalars and vectors", helper("struct S { float v; };", "S s; s.v = 1; "
        "s = simd_shuffle(s, 0); y[i] = s.v;")),
    "sum of 64-bit integers": ("32 bits", "y[i] = simd_sum((long)i);"),
    "bitwise reduction of floats": (None, "y[i] = simd_and(x[i]);"),
    "matrices of integers": ("float, half or bfloat", "simdgroup_matrix<int, 8, 8> a; y[i] = 1;"),
    "matrices of another size": ("8 by 8", "simdgroup_matrix<float, 4, 4> a; y[i] = 1;"),
    "loading a matrix of another type": ("different types", "simdgroup_half8x8 a; simdgroup_load(a, x, 8); y[i] = 1;"),
    "barrier without flags": (None, "threadgroup_barrier(); y[i] = 1;"),
    "atomics on plain memory": (None, "atomic_fetch_add_explicit(y, 1.0f, memory_order_relaxed);"),
    "maximum of float atomics": (None, "atomic_fetch_max_explicit((device atomic_float*)y, 1.0f, "
        "memory_order_relaxed);"),
    "sequential atomics": (None, "atomic_fetch_add_explicit((device atomic_uint*)y, 1u, memory_order_seq_cst);"),
    "atomics of short": (None, "device atomic<short>* a = (device atomic<short>*)y; "
        "atomic_store_explicit(a, (short)1, memory_order_relaxed);"),
    "as_type of another size": ("equal size", "y[i] = as_type<float>((half)1);"),
    "unknown names": ("undeclared identifier 'foo'", "y[i] = foo(1);"),
    "attribute misspelt": ("unknown attribute", "kernel void f(device float* y [[bufer(0)]]) { y[0] = 1; }"),
    "position misspelt": ("unknown attribute", "kernel void f(device float* y [[buffer(0)]], uint i "
        "[[thread_position_in_grit]]) { y[i] = 1; }"),
    "parameter without an attribute": ("needs one attribute",
        "kernel void f(device float* y [[buffer(0)]], uint i) { y[i] = 1; }"),
    "two buffers of one index": ("binds buffer 0 twice",
        "kernel void f(device float* y [[buffer(0)]], device float* z [[buffer(0)]]) { y[0] = z[0]; }"),
    "buffer index too large": ("at most 30", "kernel void f(device float* y [[buffer(31)]]) { y[0] = 1; }"),
    "kernel with a result": ("returns void", "[[kernel]] float f(device float* y [[buffer(0)]]) { y[0] = 1; return 1; "
        "}"),
    "buffer in thread space": (None, "kernel void f(thread float* y [[buffer(0)]]) { y[0] = 1; }"),
    "double in a macro": ("no double", "\n#define REAL double\nREAL a = 1; y[i] = a;"),
    "goto in a macro": ("no goto", "\n#define LEAVE goto end\nLEAVE; end: y[i] = 1;"),
    "128-bit integers": ("no 128-bit integers", "__int128 a = 1; y[i] = a;"),
    "static member without a space": ("constant address space", helper("struct S { static constexpr int k = 3; };",
        "y[i] = S::k;")),
    "extern variable": ("constant address space", helper("extern int n;", "y[i] = n;")),
    "narrowing in braces": ("cannot be narrowed", "int a[1] = {1.5f}; y[i] = a[0];"),
    "narrowing of a variable in braces": ("cannot be narrowed", "int a{i + 0u}; y[i] = a;"),
    "component assigned twice": ("names a component twice", "float4 v(0); v.xx = float2(1); y[i] = v.x;"),
    "kernel with a returned value": ("should not return a value", "y[i] = 1; return 1;"),
    "kernel that calls a kernel": ("which no function calls",
        "kernel void a(device float* y [[buffer(0)]]) { y[0] = 1; "
        "}\nkernel void f(device float* y [[buffer(0)]]) { a(y); }"),
    "function pointers": ("no function pointers", helper("float g(float a) { return a; }", "float (*f)(float) = g; "
        "y[i] = f(1);")),
    "variadic functions": (None, helper("float f(int n, ...) { return n; }", "y[i] = f(1, 2);")),
    "text beyond ASCII": ("not ASCII", "float \u00b5 = 1; y[i] = 1;"),
    "missing semicolon": ("line 6", "\ny[i] = 1\n"),
}  # fmt: skip
