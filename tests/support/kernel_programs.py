"""Programs about kernel parameters, constants, packed vectors and functions that Metal lacks: legal and refused ones.

language_programs.py explains their form.
"""

from language_programs import helper

ACCEPTED = {
    "hexadecimal integers that end in bf": "uint a = 0xbf; uint b2[2] = {0x12bf, 0xABF}; static_assert(0x12bf == 4799, "
        "\"\"); y[i] = a + b2[0] + 0xBFu + (float)1.5bf;",
    "shifts in the condition of a loop": "uint n = 8; for (uint k = i; k < (n >> 1); k += n >> 2) y[k] = 1;",
    "conditionals of what stands in parentheses": "uint2 a = uint2(1), d = uint2(2); uint n = i; "
        "uint2 e = a ^ ((n) == 0 ? (a) : (n) == 1 ? uint2(a.y << 1, a.x) : (n) == 3 ? (d) : uint2(1)); y[i] = e.x;",
    "aligned arrays of the threadgroup": "const uint rows = 8; constexpr uint columns = 4; "
        "threadgroup half t[rows][columns] __attribute__((aligned(128))), s[4] __attribute__((aligned(16))); "
        "t[0][0] = 1; s[1] = 2; y[i] = t[0][0] + s[1];",
    "operators of packed vectors": "packed_float3 p(1, 2, 3), q = packed_float3(2); float3 r = -p; bool3 m = p < q; "
        "y[i] = r.x + all(p == q) + m.y; packed_uint4 u = packed_uint4(1); u <<= 2u; u %= 3u; uint4 w = ~u | (u & 3u); "
        "y[i] += w.x;",
    "packed vectors in geometry": "packed_float3 p(1, 2, 3), q(2); float3x3 m(1); float3 v = m * p, w = p * m; "
        "y[i] = dot(p, q) + length(p) + distance(v, p) + cross(p, q).x + normalize(p).y + w.x;",
    "volatile before the space": "volatile threadgroup uint t[4]; alignas(16) volatile threadgroup uchar u[16]; "
        "volatile device float* p = y; t[i] = 1; u[i] = 2; p[i] = t[0] + u[0];",
    "pointers to rows of threadgroup memory": "threadgroup float t[4][8]; threadgroup float (*p)[8] = t; "
        "threadgroup float (&r)[8] = t[1]; p[1][2] = 3; y[i] = r[2];",
    "attributes that say nothing to Metal": helper("[[deprecated]] inline float f(float a) { return a; } "
        "[[gnu::noinline]] float g(float a) { return a; } [[clang::always_inline]] float k(float a) { return a; }",
        "if (x[i] > 1) [[likely]] y[i] = g(1); else [[unlikely]] y[i] = k(2);"),
    "static functions of classes as arguments": helper("struct S { static float f(float a) { return a; } "
        "template <typename T> static T g(T a) { return -a; } }; float k(float a) { return a; } "
        "template <float (*F)(float)> float one(float a) { return F(a); } "
        "template <typename T, T F(T)> T two(T a) { return F(a); }",
        "y[i] = one<S::f>(x[i]) + one<&S::f>(1) + two<float, S::g<float>>(2) + one<k>(3);"),
    "functions with C's names": helper("inline float expf(float a) { return exp(a); } "
        "static float powf(float a, float k) { return pow(a, k); }", "y[i] = expf(x[i]) + powf(1, 2); float sinf = 1; "
        "y[i] += sinf;"),
    "positions of two components": "kernel void f(device float* y [[buffer(0)]], uint2 i [[thread_position_in_grid]], "
        "ushort2 n [[threads_per_threadgroup]], uint l [[thread_index_in_simdgroup]]) { y[i.x] = n.y + l; }",
    **{f"a kernel that is {words}": f"{words} f(device float* y [[buffer(0)]]) {{ y[0] = 1; }} // kernel" for words in (
        "kernel inline void", "kernel static void", "[[kernel]] static inline void",
        "kernel __attribute__((noinline)) void",
        "[[host_name(\"f\")]] kernel inline void", "inline kernel static void",
    )},
    "extern with a value": helper("extern constant float k; constant float k = 3; extern constant float t[2]; "
        "constant float t[2] = {1, 2}; extern \"C\" float one(float a) { return a; } extern float two(float a); "
        "float two(float a) { return 2 * a; }", "y[i] = k + t[1] + one(1) + two(2);"),
    "integers of 64 bits": "ulong a = 18446744073709551615ul; long n = 0x7FFF'FFFF'FFFF'FFFFl; y[i] = a + n + "
        "01777777777777777777777ul;",
    "a template of kernels that are inline": "template <typename T> kernel inline void g(device T* y [[buffer(0)]]) "
        "{ y[0] = 1; } template [[host_name(\"f\")]] kernel void g<float>(device float*);",
}  # fmt: skip

# rule: (part of the error message, program)
REFUSED = {
    **{f"a kernel of type {kind}": ("returns void", f"kernel {kind} f(device float* y [[buffer(0)]]) {{ y[0] = 1; }}")
        for kind in ("int", "float4", "auto", "device float*", "inline half", "const", "")},
    **{f"{name} of C": ("undeclared identifier", f"y[i] = {name}(x[i]{more});") for name, more in {
        "expf": "", "sinf": "", "logf": "", "powf": ", 2.0f", "fmodf": ", 2.0f", "sqrtf": "", "fabsf": "",
    }.items()},
    "pointer behind a template's arrow": ("pointer needs an address space", helper(
        "template <typename T> auto f(T a) -> T* { return nullptr; }", "y[i] = f(1.0f) == nullptr;")),
    "positions of two ranks": ("'i' has 1: positions and sizes of one kernel have as many",
        "kernel void f(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]], "
        "uint2 n [[threads_per_threadgroup]]) { y[i] = n.x; }"),
    "ranks of short and long positions": ("'n' has 2 components, and 'i' has 3",
        "kernel void f(device float* y [[buffer(0)]], uint3 i [[thread_position_in_grid]], "
        "ushort2 n [[thread_position_in_threadgroup]]) { y[i.x] = n.x; }"),
    "function constant of a class": ("a number or a vector of numbers, not a S", "struct S { int a; }; "
        "constant S k [[function_constant(0)]]; kernel void f(device float* y [[buffer(0)]]) { y[0] = k.a; }"),
    "function constant of a matrix": ("not a float2x2", "constant float2x2 k [[function_constant(0)]]; "
        "kernel void f(device float* y [[buffer(0)]]) { y[0] = k[0][0]; }"),
    "function constant number too large": ("from 0 to 65535", "constant int k [[function_constant(65536)]]; "
        "kernel void f(device float* y [[buffer(0)]]) { y[0] = k; }"),
    **{f"an attribute without its argument: {name}": (f"lacks its argument, as in .*{name}\\(",
        f"{before} kernel void f(device float* y{after}) {{ y[0] = 1; }}") for name, before, after in (
            ("buffer", "", " [[buffer]]"),
            ("threadgroup", "", " [[buffer(0)]], threadgroup float* t [[threadgroup()]]"),
            ("function_constant", "constant int k [[function_constant]];", " [[buffer(0)]]"),
            ("max_total_threads_per_threadgroup", "[[max_total_threads_per_threadgroup]]", " [[buffer(0)]]"),
        )},
    "no thread in a threadgroup": ("at least one thread", "[[max_total_threads_per_threadgroup(0)]] kernel void f("
        "device float* y [[buffer(0)]]) { y[0] = 1; }"),
    "a host name that is no string": ("name in quotes", "template <typename T> kernel void g("
        "device T* y [[buffer(0)]]) { y[0] = 1; } template [[host_name(f)]] kernel void g<float>(device float*);"),
    "an array as a buffer": ("'y' is a buffer: an array has to be in the device or constant",
        "kernel void f(float y[4] [[buffer(0)]]) { y[0] = 1; }"),
    **{f"extern {declared}": ("'k' is declared and never defined: leave out extern", helper(
        f"extern {declared}; ", f"y[i] = {used};")) for declared, used in {
            "constant float k": "k", "constant int k[4]": "k[i]", "const constant float4 k": "k.x"}.items()},
    "an integer of more than 64 bits": ("at most 64 bits", "ulong a = 0x1FFFFFFFFFFFFFFFFul; y[i] = a;"),
    "a decimal of more than 64 bits": ("at most 64 bits", "ulong a = 18'446'744'073'709'551'616ul; y[i] = a;"),
    "negative buffer": ("at least 0 and at most 30", "kernel void f(device float* y [[buffer(-1)]]) { y[0] = 1; }"),
    "threadgroup memory beyond the last": ("at least 0 and at most 30", "kernel void f(device float* y [[buffer(0)]], "
        "threadgroup float* t [[threadgroup(31)]]) { y[0] = t[0]; }"),
}  # fmt: skip
