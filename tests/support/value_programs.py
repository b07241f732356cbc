"""Small programs of Metal with the numbers they write, which show the language.

name: (definitions, body of a kernel, what it writes). The kernel is one threadgroup of 64 threads with x, y, the index
i of a thread, which is t too, its lane and the number sg of its simdgroup. X holds x, I the indices.
"""

import numpy as np

N = 64
X = np.linspace(-2, 2, N).astype(np.float32)
I = np.arange(N)
BYTES = (I * 5).astype(np.int8).astype(int)


def leaves(n: int) -> int:
    """The loops of "infinite loop break"."""
    n %= 5
    while 0 < n <= 10:
        n += 3
    return n


VALUES = {
    "packed in struct": (
        'struct V { packed_float3 p; float w; packed_uchar4 c; }; static_assert(sizeof(V) == 20, "packed");',
        "V v = {packed_float3(1, 2, 3), x[i], packed_uchar4(1, 2, 3, 255)}; y[i] = v.p.y + v.w + v.c[3]; v.p = v.p "
        "+ 1.0f; y[i] += v.p.z;",
        2 + X + 255 + 4,
    ),
    "packed arith": (
        "",
        "packed_float2 a = {1, 2}, b = {3, x[i]}; packed_float2 c = a * b + a; float d = dot(float2(c), "
        "float2(1)); c *= 2.0f; y[i] = d + c.x;",
        3 + 1 + (2 * X + 2) + 8,
    ),
    "half4x4": (
        "",
        "half4x4 m = half4x4(half4(1,0,0,0), half4(0,2,0,0), half4(0,0,3,0), half4(1,1,1,1)); half4 v = m * "
        "half4(half(x[i]), 1, 1, 1); y[i] = v.x + v.y + v.z + v.w;",
        (np.float16(X) + 1).astype(np.float16) * 1.0 + 3 + 4 + 1,
    ),
    "float3x3 inverse like": (
        "float3x3 adj(float3x3 m) { return float3x3(cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])); }",
        "float3x3 m = float3x3(float3(2,0,0), float3(0,x[i],0), float3(1,0,1)); y[i] = adj(m)[1][1] + (m * "
        "2.0f)[1].y + (m - m)[0][0] + (-m)[0].x;",
        2 + 2 * X - 2,
    ),
    "matrix columns": (
        "",
        "float2x3 m = float2x3(1,2,3,4,5,6); m.columns[1] += x[i]; float3 c = m * float2(1, 1); float2 r = "
        "float3(1, 0, 1) * m; y[i] = c.y + r.y;",
        7 + X + 10 + 2 * X,
    ),
    "as type vectors": (
        "",
        "half2 h = as_type<half2>(as_type<uint>(half2(half(x[i]), 2.0h))); ushort2 u = as_type<ushort2>(h); uchar4 "
        "c = as_type<uchar4>(1.0f); int2 j = as_type<int2>(ulong(0x100000002ul)); short4 s = "
        "as_type<short4>(float2(1, 0)); y[i] = h.x + u.y + c.w + j.x + 10 * j.y + s.y;",
        np.float16(X) + 16384 + 63 + 2 + 10 + 16256,
    ),
    "fast precise": (
        "",
        "y[i] = precise::exp(x[i]) - fast::exp(x[i]) + metal::precise::sqrt(4.0f) + metal::fast::rsqrt(4.0f) + "
        "fast::clamp(x[i], -1.0f, 1.0f) + precise::divide(1.0f, 2.0f) + fast::tanh(0.0f) + precise::pow(2.0f, "
        "3.0f) + fast::fma(1.0f, 2.0f, 3.0f) + fast::max(1.0f, 2.0f);",
        2 + 0.5 + np.clip(X, -1, 1) + 0.5 + 8 + 5 + 2,
    ),
    "struct methods": (
        "struct Acc { float s = 0; int n = 0; void add(float v) { s += v; ++n; } float mean() const { return s / "
        "n; } static Acc of(float a) { Acc r; r.add(a); return r; } thread Acc& operator+=(float v) thread { "
        "add(v); return *this; } };",
        "Acc a = Acc::of(x[i]); (a += 1) += 2; a.add(3); y[i] = a.mean();",
        (X + 6) / 4,
    ),
    "template nontype": (
        "template <int N, typename T, bool SQ = false> struct Poly { static constant constexpr int size = N; T "
        "c[N]; T operator()(T v) const { T r = 0; for (int k = N - 1; k >= 0; --k) r = r * v + c[k]; if (SQ) r *= "
        "r; return r; } };",
        "Poly<3, float> q = {{1, 2, 3}}; Poly<2, float, true> l = {{1, 1}}; y[i] = q(x[i]) + l(x[i]) + Poly<3, "
        "float>::size;",
        1 + 2 * X + 3 * X * X + (1 + X) ** 2 + 3,
    ),
    "template dispatch": (
        "template <int BITS> uint unpack(uint w, int k); template <> uint unpack<4>(uint w, int k) { return w >> "
        "(4 * k) & 15; } template <> uint unpack<8>(uint w, int k) { return w >> (8 * k) & 255; }",
        "y[i] = unpack<4>(0x87654321u, i % 8) + unpack<8>(0x04030201u, i % 4);",
        I % 8 + 1 + I % 4 + 1,
    ),
    "constexpr arrays": (
        "constexpr constant int table[4] = {10, 20, 30, 40}; constant float2 pts[] = {float2(1, 2), {3, 4}}; "
        "constexpr constant uchar mask[2][3] = {{1, 2, 3}, {4, 5, 6}}; constant constexpr int COUNT = "
        "sizeof(table) / sizeof(table[0]);",
        "y[i] = table[i % COUNT] + pts[i % 2].y + mask[i % 2][i % 3];",
        np.array([10, 20, 30, 40])[I % 4] + np.array([2, 4])[I % 2] + np.array([[1, 2, 3], [4, 5, 6]])[I % 2, I % 3],
    ),
    "switch": (
        "enum class Op : uchar { ADD, MUL, NEG, OTHER }; float apply(Op op, float a, float b) { switch (op) { case "
        "Op::ADD: return a + b; case Op::MUL: a *= b; break; case Op::NEG: { a = -a; } default: a += 100; } return "
        "a; }",
        "y[i] = apply(Op(i % 4), x[i], 2);",
        np.choose(I % 4, [X + 2, X * 2, -X + 100, X + 100]),
    ),
    "comma ternary": (
        "",
        "int a = i, b = 0; b = (a++, a * 2); y[i] = (a > 32 ? b : a > 16 ? -b : a) + (i & 1 ? 0.5f : 0);",
        np.where(I + 1 > 32, 2 * (I + 1), np.where(I + 1 > 16, -2 * (I + 1), I + 1)) + (I & 1) * 0.5,
    ),
    "bool vectors": (
        "",
        "bool4 m = float4(x[i], 1, -1, 0) > 0; y[i] = (m.x || all(m.yz)) + 2 * any(!m) + 4 * (m.y && !m.z) + 8 * "
        "int(all(m == bool4(true, true, false, false))) + float(int4(m).y);",
        (X > 0) * 1.0 + 2 + 4 + 8 * (X > 0) + 1,
    ),
    "swizzles": (
        "",
        "float4 v = float4(x[i], 2, 3, 4); v.xy = v.yx; v.zw *= 2.0f; float3 r = v.rgb + v.aaa; v.xz = float2(v.w, "
        "v.x); y[i] = v.x + 10 * v.z + r.b + v.wzyx.x;",
        8 + 10 * 2 + (6 + 8) + 8,
    ),
    "char math": (
        "",
        "char a = char(i * 5), b = -100; uchar c = uchar(i * 5); short s = a * b; y[i] = s + int(char(a + b)) + "
        "uchar(c + 200);",
        BYTES * -100 + (BYTES - 100).astype(np.int8) + (I * 5 % 256 + 200) % 256,
    ),
    "modf frexp": (
        "",
        "float w; float f = modf(x[i], w); int e; float m = frexp(x[i], e); float c; float s = sincos(x[i], c); "
        "y[i] = f + w + m * exp2(float(e)) + s * s + c * c + ilogb(8.0f);",
        X + X + 1 + 3,
    ),
    "union like": (
        "struct Bits { uint v; float f() const { return as_type<float>(v); } }; union U { float f; uint u; uchar "
        "c[4]; };",
        "U u; u.f = x[i]; Bits b{u.u}; y[i] = b.f() + (u.c[3] >> 7);",
        X + (X < 0),
    ),
    "goto less state": (
        "",
        "int state = 0; float s = 0; bool run = true; while (run) { switch (state) { case 0: s += 1; state = i & 1 "
        "? 1 : 2; break; case 1: s += 10; state = 2; [[fallthrough]]; case 2: s += 100; run = false; break; } } "
        "y[i] = s;",
        np.where(I & 1, 111, 101),
    ),
    "vector index dynamic": (
        "",
        "float4 v = float4(1, 2, 3, 4); v[i % 4] = x[i]; int3 n = int3(5, 6, 7); n[i % 3]++; y[i] = v[(i + 1) % 4] "
        "+ v[i % 4] + n.x;",
        np.array([1, 2, 3, 4])[(I + 1) % 4] + X + 5 + (I % 3 == 0),
    ),
    "namespaces": (
        "namespace a { namespace b { constant constexpr float k = 2; inline float f(float v) { return v * k; } } "
        "namespace c = b; using b::f; } namespace a::b { inline float g(float v) { return f(v) + 1; } }",
        "using namespace a::b; y[i] = g(x[i]) + a::c::k + a::f(1);",
        2 * X + 1 + 2 + 2,
    ),
    "operators": (
        "struct C { float r, i; }; inline C operator*(C a, C b) { return C{a.r * b.r - a.i * b.i, a.r * b.i + a.i "
        "* b.r}; } inline C operator+(C a, float b) { return {a.r + b, a.i}; } inline bool operator==(C a, C b) { "
        "return a.r == b.r && a.i == b.i; } inline C operator-(C a) { return {-a.r, -a.i}; }",
        "C z = {x[i], 1}; C w = -(z * z + 1); y[i] = w.r + w.i + (z == z) + (z == w ? 1 : 0);",
        -(X * X - 1 + 1) - 2 * X + 1,
    ),
    "variadic": (
        "template <typename... T> float sum(T... v) { return (float(v) + ... + 0.0f); } template <typename T> T "
        "first(T a) { return a; } template <typename T, typename... R> T first(T a, R...) { return a; } template "
        "<int... K> struct Seq { static constexpr constant int n = sizeof...(K); static int total() { return (K + "
        "...); } };",
        "y[i] = sum(1, 2.5f, 3u, x[i]) + first(1.0f, 2, 3) + Seq<1, 2, 3>::n + Seq<4, 5>::total();",
        6.5 + X + 1 + 3 + 9,
    ),
    "sfinae if constexpr": (
        "template <typename T> float norm(T v) { if constexpr (is_same_v<T, float>) return abs(v); else if "
        "constexpr (is_integral_v<T>) return v * 2; else return length(v); } template <typename T, "
        "enable_if_t<is_floating_point_v<T>, int> = 0> int kind(T) { return 1; } template <typename T, "
        "enable_if_t<is_integral<T>::value, int> = 0> int kind(T) { return 2; }",
        "y[i] = norm(x[i]) + norm(3) + norm(float2(3, 4)) + kind(1.0f) * 10 + kind(1u) * 100;",
        np.abs(X) + 6 + 5 + 10 + 200,
    ),
    "ref params": (
        "void minmax(thread float& a, thread float& b) { if (a > b) { float s = a; a = b; b = s; } } void "
        "fill(thread float (&a)[4], float v) { for (auto& e : a) e = v; } void put(device float& o, float v) { o = "
        "v; } void tg(threadgroup float* s, uint t, float v) { s[t] = v; }",
        "float a = x[i], b = 0; minmax(a, b); float c[4]; fill(c, a); threadgroup float s[64]; tg(s, t, b); "
        "put(y[i], c[3] + s[t] * 10);",
        np.minimum(X, 0) + 10 * np.maximum(X, 0),
    ),
    "lambda free functor": (
        "struct Scale { float k; float operator()(float v) const thread { return v * k; } }; template <typename F> "
        "float twice(F f, float v) { return f(f(v)); }",
        "Scale s{3}; y[i] = twice(s, x[i]) + twice(Scale{2}, 1);",
        9 * X + 4,
    ),
    "inheritance": (
        "struct Base { float v; float get() const { return v; } float both() const { return v + 1; } }; struct "
        "Derived : Base { float w; float both() const { return Base::both() + w; } };",
        "Derived d; d.v = x[i]; d.w = 2; y[i] = d.get() + d.both();",
        2 * X + 3,
    ),
    "crtp": (
        "template <typename D> struct Shape { float area2() const { return 2 * static_cast<thread const "
        "D*>(this)->area(); } }; struct Sq : Shape<Sq> { float s; float area() const { return s * s; } };",
        "Sq q; q.s = x[i]; y[i] = q.area2();",
        2 * X * X,
    ),
    "isnan isinf": (
        "",
        "float v = i % 4 == 0 ? NAN : i % 4 == 1 ? INFINITY : i % 4 == 2 ? -INFINITY : x[i]; y[i] = isnan(v) + 2 * "
        "isinf(v) + 4 * isfinite(v) + 8 * signbit(v) * (i % 4 != 0) + 16 * isnormal(v) + 32 * isordered(v, 1.0f) + "
        "64 * any(isnan(float2(v, 1)));",
        np.choose(I % 4, [1 + 64, 2 + 32, 2 + 8 + 32, 4 + 8 * (X < 0) + 16 + 32]),
    ),
    "preprocessor": (
        "#define REP4(M) M(0) M(1) M(2) M(3)\n"
        "#define ONE(k) s += x[(i + k) % 64] * (k + 1);\n"
        "#define CAT_(a, b) a##b\n"
        "#define CAT(a, b) CAT_(a, b)\n"
        "#define STR(v) #v\n"
        "#if defined(__METAL__) && __METAL_VERSION__ >= 310\n"
        "#define OK 1\n"
        "#else\n"
        "#define OK 0\n"
        "#endif\n"
        "#ifndef NOPE\n"
        "constant int CAT(va, lue) = 5;\n"
        "#endif\n",
        "float s = 0; REP4(ONE) y[i] = s + value + OK + sizeof(STR(abc));",
        sum(X[(I + k) % 64] * (k + 1) for k in range(4)) + 5 + 1 + 4,
    ),
    "metal array": (
        "",
        "metal::array<float, 4> a = {1, 2, 3, x[i]}; float s = 0; for (auto v : a) s += v; y[i] = s + a.size() + a[3];",
        6 + 2 * X + 4,
    ),
    "nested struct": (
        "struct Outer { struct Inner { float a[2]; } in[2]; float sum() const { return in[0].a[0] + in[0].a[1] + "
        "in[1].a[0] + in[1].a[1]; } };",
        "Outer o = {{{{1, 2}}, {{3, x[i]}}}}; Outer c = o; c.in[1].a[0] *= 2; y[i] = c.sum() + o.sum();",
        9 + X + 6 + X,
    ),
    "anonymous union": (
        "struct V { union { float4 v; struct { float a, b, c, d; } s; float e[4]; }; };",
        "V v; v.v = float4(1, 2, 3, x[i]); y[i] = v.e[3] + v.s.b;",
        X + 2,
    ),
    "conversion operator": (
        "struct Deg { float v; operator float() const { return v * 0.01745329252f; } };",
        "Deg d{180}; y[i] = sin(float(d) / 2) + d;",
        np.full(N, 1 + np.pi),
    ),
    "explicit ctor": (
        "struct Q { float a; explicit Q(float v) : a(v) {} Q() : a(3) {} Q(int a1, int b1) { a = a1 + b1; } };",
        "Q q; Q r(x[i]); Q s = Q(1, 2); y[i] = q.a + r.a + s.a;",
        6 + X,
    ),
    "assign ops": (
        "struct V2 { float a, b; thread V2& operator+=(V2 o) thread { a += o.a; b += o.b; return *this; } V2 "
        "operator*(float k) const { return {a * k, b * k}; } float operator[](int k) const { return k ? b : a; } };",
        "V2 v{1, 2}; v += V2{x[i], 1}; V2 w = v * 2; y[i] = w[0] + w[1];",
        2 + 2 * X + 6,
    ),
    "recursion templates": (
        "template <int N> struct Fib { static constexpr constant int v = Fib<N - 1>::v + Fib<N - 2>::v; }; "
        "template <> struct Fib<0> { static constexpr constant int v = 0; }; template <> struct Fib<1> { static "
        "constexpr constant int v = 1; };",
        "y[i] = Fib<10>::v;",
        np.full(N, 55),
    ),
    "constexpr fn": (
        "constexpr int gcd(int a, int b) { while (b) { int c = a % b; a = b; b = c; } return a; } constant "
        "constexpr int G = gcd(48, 36);",
        "float a[gcd(4, 6)]; a[0] = G; a[1] = 1; y[i] = a[0] + a[1];",
        np.full(N, 13),
    ),
    "static for": (
        "template <int B, int E, typename F> void each(F f) { if constexpr (B < E) { f(B); each<B + 1, E>(f); } } "
        "struct Add { thread float& s; void operator()(int k) const { s += k; } };",
        "float s = x[i]; each<0, 4>(Add{s}); y[i] = s;",
        X + 6,
    ),
    "float literals": (
        "",
        "y[i] = 1.f + .5 + 1e1 + 0x1p-1f + 1.0h + 2.e0f + 0x10 + 0b11 + 1'000 + 07;",
        np.full(N, 1 + 0.5 + 10 + 0.5 + 1 + 2 + 16 + 3 + 1000 + 7),
    ),
    "char literals": (
        "",
        "char c = 'A'; y[i] = c + '\\n' + '\\x10' + \"ab\"[1];",
        np.full(N, 65 + 10 + 16 + 98),
    ),
    "int promotions": (
        "",
        "uchar a = 200, b = 100; ushort s = 65535; y[i] = (a + b) + uchar(a + b) + ushort(s + 1) + (s << 1) + (-a) "
        "+ (~uchar(0));",
        np.full(N, 300 + 44 + 0 + 131070 - 200 - 1),
    ),
    "select vec": (
        "",
        "int3 a = select(int3(1), int3(2), bool3(true, false, i > 3)); y[i] = a.x + 10 * a.y + 100 * a.z + "
        "select(1.0f, 2.0f, isnan(x[i]));",
        2 + 10 + 100 * np.where(I > 3, 2, 1) + 1,
    ),
    "vec mod shift": (
        "",
        "uint4 v = uint4(i, i + 1, i + 2, i + 3); v = (v << 2) | (v & 3u); v ^= uint4(1); v %= 7u; y[i] = v.x + v.w;",
        ((I * 4 | I & 3) ^ 1) % 7 + (((I + 3) * 4 | I + 3 & 3) ^ 1) % 7,
    ),
    "vec incr": (
        "",
        "int2 v = int2(1, 2); v++; ++v; v--; v += 1; y[i] = v.x * 10 + v.y + (-v).x;",
        np.full(N, 30 + 4 - 3),
    ),
    "matrix init diag": (
        "",
        "float3x3 m = float3x3(1); m[1][2] = x[i]; float3x3 n = m; n[0] = float3(5); y[i] = (m * n)[0].z + m[1].z;",
        5 + 5 * X + X,
    ),
    "matrix scalar half": (
        "",
        "half2x2 m = half2x2(1, 2, 3, 4) * 2.0h; half2 v = half2(1, 2) * m; y[i] = v.x + v.y + half2x2(1.0h)[1][1];",
        np.full(N, 2 + 8 + 6 + 16 + 1),
    ),
    "matrix from matrix": (
        "",
        "float4x4 a = float4x4(2); float3x3 b = float3x3(a[0].xyz, a[1].xyz, a[2].xyz); float4x3 c = float4x3(1); "
        "half3x3 h = half3x3(b); y[i] = b[1][1] + c[0][0] + h[2][2] + c[3][2];",
        np.full(N, 2 + 1 + 2),
    ),
    "va args": (
        "#define CALL(f, ...) f(__VA_ARGS__)\n"
        "#define COUNT(...) CNT_(__VA_ARGS__, 3, 2, 1)\n"
        "#define CNT_(a, b, c, n, ...) n\n",
        "y[i] = CALL(max, 1.0f, 2.0f) + COUNT(a, b) + CALL(fma, 1.0f, 2.0f, 3.0f);",
        np.full(N, 2 + 2 + 5),
    ),
    "infinite loop break": (
        "",
        "uint n = i; for (;;) { if (n < 5) break; n -= 5; } while (true) { if (n == 0 || n > 10) break; n += 3; } "
        "y[i] = n;",
        np.array([leaves(int(k)) for k in I]),
    ),
    "const pointer table": (
        "constant float A[3] = {1, 2, 3}; constant float B[2] = {4, 5}; constant float* constant T[2] = {A, B};",
        "y[i] = T[i % 2][1];",
        np.where(I % 2, 5, 2),
    ),
    "pass constant array": (
        "constant int K[2][2] = {{1, 2}, {3, 4}}; int total(constant int (&k)[2][2]) { return k[0][0] + k[1][1]; } "
        "int row(constant int* r) { return r[0] + r[1]; }",
        "y[i] = total(K) + row(K[1]);",
        np.full(N, 12),
    ),
    "pointers const thread": (
        "float sum(const thread float* a, int n) { float s = 0; while (n--) s += *a++; return s; } float sum(const "
        "device float* a, int n) { return a[0] * n; }",
        "float a[3] = {1, 2, x[i]}; y[i] = sum(a, 3) + sum(x, 2);",
        3 + X + 2 * X[0],
    ),
    "names like library": (
        "",
        "float min = 1, max = 2, dot = 3, length = 4, half_ = 5, sample = 6, input = 7, texture = 8, color = 9, "
        "position = 10, sampler = 11; y[i] = min + max + dot + length + half_ + sample + input + texture + color + "
        "position + sampler;",
        np.full(N, 66),
    ),
    "names attributes": (
        "struct V { float position, color, texture; }; float g(float depth, float position) { return depth + "
        "position; }",
        "V v{1, 2, 3}; y[i] = g(v.position, v.color) + v.texture;",
        np.full(N, 6),
    ),
}
