"""Pairs of programs: Metal refuses the first, with an error that matches; the second is legal and differs little.

As in language_programs.py, a program with the word `kernel` is complete; any other is the body of a kernel.
"""

from language_programs import helper

# rule: (part of the error message, program that is refused, program that is accepted)
TWINS = {
    "pointer as a later declarator": ("pointer needs an address space",
        "float a = 1, *p = &a; y[i] = *p;", "float a = 1; thread float b2 = 2, *p = &a; y[i] = *p + b2;"),
    "pointer in a loop's declaration": ("pointer needs an address space",
        "float a = 1; for (float s = 0, *p = &a; s < 1; ++s) y[i] = *p;",
        "float a = 1; for (float s = 0, t = a * 2; s < 1; ++s) y[i] = t;"),
    "reference to an array": ("reference needs an address space",
        "float a[4]; float (&r)[4] = a; r[0] = 1; y[i] = a[0];",
        "float a[4]; thread float (&r)[4] = a; r[0] = 1; y[i] = a[0];"),
    "pointer to an array": ("pointer needs an address space",
        "float a[4]; float (*p)[4] = &a; y[i] = (*p)[0];",
        "float a[4]; thread float (*p)[4] = &a; (*p)[0] = 1; thread float* q = a; y[i] = float(*q);"),
    "pointer in a typedef": ("pointer needs an address space", "typedef float* P; y[i] = 1;",
        "typedef device float* P; P p = y; p[i] = 1;"),
    "pointer in an alias": ("pointer needs an address space", "using P = float*; y[i] = 1;",
        "using P = const device float*; P p = x; y[i] = *p;"),
    "pointer in an alias of a vector": ("pointer needs an address space", "using P = vec<float, 4>*; y[i] = 1;",
        "using P = device vec<float, 4>*; ((P)y)[i] = 1;"),
    "pointer whose size is asked": ("pointer needs an address space", "y[i] = sizeof(float*);",
        "y[i] = sizeof(device float*) + sizeof(float) * 2;"),
    "pointer as a template's argument": ("pointer needs an address space",
        "y[i] = is_same_v<float*, int>;", "y[i] = is_same_v<device float*, int>;"),
    "pointer to a structure": ("pointer needs an address space",
        helper("struct S { float v; };", "S s; S* p = &s; y[i] = p->v;"),
        helper("struct S { float v; };", "S s; s.v = 2; thread S* p = &s; y[i] = p->v * s.v;")),
    "cast to a structure's pointer": ("pointer needs an address space",
        helper("struct S { float v; };", "y[i] = ((S*)y)->v;"),
        helper("struct S { float v; };", "y[i] = ((device S*)y)->v;")),
    "reference to a template's parameter": ("reference needs an address space",
        helper("template <typename T> T f() { T a = 1; T& r = a; return r; }", "y[i] = f<float>();"),
        helper("template <typename T> T f() { T a = 1; thread T& r = a; const int T2 = 3; int k = T2 * r; "
               "return T(2) * r + k; }", "y[i] = f<float>();")),
    "pointer through an alias that has a space": (None,
        "using P = device float*; P q = y; P* p = &q; y[i] = **p;",
        "using P = device float*; P q = y; thread P* p = &q; y[i] = **p;"),
    "result of an operator": ("reference needs an address space",
        helper("struct S { float v; S& operator+=(S o) { v += o.v; return *this; } };", "y[i] = 1;"),
        helper("struct S { float v; thread S& operator+=(S o) thread { v += o.v; return *this; } };",
               "S a; a.v = 1; a += a; y[i] = a.v;")),
    "a name that only looks like a type": ("pointer needs an address space",
        helper("template <typename N> float f(N a) { return sizeof(N*); }", "y[i] = f(1);"),
        helper("template <typename N> float f(N a) { return sizeof(N); }", "const int N = 3; y[i] = N * x[i] + f(N);")),
    "value as a buffer": ("pointer or a reference",
        "kernel void f(device float* y [[buffer(0)]], uint n [[buffer(1)]]) { y[0] = n; }",
        "kernel void f(device float* y [[buffer(0)]], constant uint& n [[buffer(1)]]) { y[0] = n; }"),
    "structure as a buffer": ("pointer or a reference",
        "struct S { float a; }; kernel void f(device float* y [[buffer(0)]], S s [[buffer(1)]]) { y[0] = s.a; }",
        "struct S { float a; }; kernel void f(device float* y [[buffer(0)]], constant S* s [[buffer(1)]]) "
        "{ y[0] = s->a; }"),
    "alias of a value as a buffer": ("pointer or a reference",
        "typedef uint N; kernel void f(device float* y [[buffer(0)]], N n [[buffer(1)]]) { y[0] = n; }",
        "typedef device float* P; kernel void f(P y [[buffer(0)]]) { y[0] = 1; }"),
    "device pointer as threadgroup memory": ("threadgroup address space",
        "kernel void f(device float* y [[buffer(0)]], device float* t [[threadgroup(0)]]) { y[0] = t[0]; }",
        "kernel void f(device float* y [[buffer(0)]], threadgroup float* t [[threadgroup(0)]]) { y[0] = 1; }"),
    "one slot of threadgroup memory twice": ("second one with \\[\\[threadgroup\\(0\\)\\]\\]",
        "kernel void f(device float* y [[buffer(0)]], threadgroup float* t [[threadgroup(0)]], "
        "threadgroup int* u [[threadgroup(0)]]) { y[0] = 1; }",
        "kernel void f(device float* y [[buffer(0)]], threadgroup float* t [[threadgroup(0)]], "
        "threadgroup int* u [[threadgroup(1)]]) { y[0] = 1; }"),
    "vector for an index": ("thread_index_in_threadgroup.* has to be ushort or uint, not uint3",
        "kernel void f(device float* y [[buffer(0)]], uint3 i [[thread_index_in_threadgroup]]) { y[i.x] = 1; }",
        "kernel void f(device float* y [[buffer(0)]], uint3 i [[thread_position_in_threadgroup]]) { y[i.x] = 1; }"),
    "signed position": ("not int",
        "kernel void f(device float* y [[buffer(0)]], int i [[thread_position_in_grid]]) { y[i] = 1; }",
        "kernel void f(device float* y [[buffer(0)]], unsigned int i [[thread_position_in_grid]]) { y[i] = 1; }"),
    "signed vector of a position": ("not int2",
        "kernel void f(device float* y [[buffer(0)]], int2 i [[thread_position_in_grid]]) { y[i.x] = 1; }",
        "kernel void f(device float* y [[buffer(0)]], metal::vec<ushort, 2> i [[thread_position_in_grid]]) "
        "{ y[i.x] = 1; }"),
    "position of four components": ("not uint4",
        "kernel void f(device float* y [[buffer(0)]], uint4 i [[thread_position_in_grid]]) { y[i.x] = 1; }",
        "using Place = uint2; kernel void f(device float* y [[buffer(0)]], const Place i [[thread_position_in_grid]]) "
        "{ y[i.x] = 1; }"),
    "position of 64 bits": ("not ulong",
        "kernel void f(device float* y [[buffer(0)]], ulong i [[thread_position_in_grid]]) { y[i] = 1; }",
        "kernel void f(device float* y [[buffer(0)]], uint16_t i [[thread_position_in_grid]]) { y[i] = 1; }"),
    "one position twice": ("second one with \\[\\[thread_position_in_grid\\]\\]",
        "kernel void f(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]], uint k "
        "[[thread_position_in_grid]]) { y[i] = k; }",
        "kernel void f(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]], uint k "
        "[[thread_index_in_simdgroup]]) { y[i] = k; }"),
    "function constant with a value": ("gets its value when a kernel is made",
        "constant int k [[function_constant(0)]] = 3; kernel void f(device float* y [[buffer(0)]]) { y[0] = k; }",
        "constant int k = 3; kernel void f(device float* y [[buffer(0)]]) { y[0] = k; }"),
    "threadgroup array of values that are computed": ("constant expression",
        "threadgroup float t[2] = {x[0], 2}; y[i] = t[0];", "threadgroup float t[2] = {1, 2}; t[i] = 1; y[i] = t[i];"),
    "threadgroup variable with a value that is computed": ("constant expression",
        "threadgroup float t{x[0]}; y[i] = t;", "threadgroup float t{1}, u = 0; t = 1; y[i] = t;"),
    "constructors of the thread in threadgroup memory": ("no object with a constructor", helper(
        "struct S { float v; constexpr S() thread : v(0) {} };", "threadgroup S s; s.v = 1; y[i] = s.v;"), helper(
        "struct S { float v; constexpr S() thread : v(0) {} constexpr S() threadgroup : v(0) {} };",
        "threadgroup S s, t[4]; s.v = 1; t[i].v = 2; y[i] = s.v + t[i].v;")),
    "name of a kernel with a minus": ("name of a kernel is one word.*'a-b'",
        "[[kernel]] void a-b(device float* y [[buffer(0)]]) { y[0] = 1; }",
        "[[kernel]] void a_b(device float* y [[buffer(0)]]) { y[0] = 1; }"),
    "buffer of an unknown number": ("whole number known here",
        "kernel void f(device float* y [[buffer(WHERE)]]) { y[0] = 1; }",
        "enum Where { First = 1, Second }; kernel void f(device float* y [[buffer(Second)]], device float* z "
        "[[buffer(First)]]) { y[0] = z[0]; }"),
    "product of integers": ("floating point", "y[i] = dot(int3(1), int3(2));", "y[i] = dot(float3(1), float3(2));"),
    "cross product of integers": ("floating point", "y[i] = cross(int3(1), int3(2)).x;",
        "y[i] = cross(half3(1), half3(2)).x;"),
    "sum of bool vectors": ("no arithmetic on vectors of bool",
        "bool2 a = bool2(true); y[i] = (a + a).x;", "bool2 a = bool2(true); y[i] = (a & a).x || (a == a).y;"),
    "minus a bool vector": ("no arithmetic on vectors of bool",
        "bool2 a = bool2(true); y[i] = (-a).x;", "bool2 a = bool2(true); y[i] = (!a).x;"),
    "step of a float vector": ("vectors of integers", "float2 v = float2(1); v++; y[i] = v.x;",
        "uint2 v = uint2(1); v++; y[i] = v.x;"),
    "swizzle times a matrix": ("no matrices", "float4 v = float4(1); v.xy *= float2x2(1.0f); y[i] = v.x;",
        "float4 v = float4(1); v.xy = v.xy * float2x2(1.0f); v.zw *= float2(2); y[i] = v.x;"),
    "matrix from too few numbers": ("all its numbers", "float2x2 m(1, 2, 3); y[i] = m[0][0];",
        "float2x2 m(1, 2, 3, 4); y[i] = m[0][0];"),
    "64-bit integers of C": ("no long long", "long long a = 1; y[i] = a;", "long a = 1, b2 = long(2); y[i] = a + b2;"),
    "64-bit integers of C in another order": ("no long long", "unsigned long int long a = 1; y[i] = a;",
        "unsigned long int a = 1; y[i] = a;"),
    "64-bit literals of C": ("no long long", "y[i] = 1ull;", "y[i] = 1ul + 0x2L + 3u;"),
    "long double literals": ("no double", "y[i] = 1.0L;", "y[i] = 1.0f + 1L;"),
    "complex numbers": ("no complex", "_Complex float a; y[i] = 1;", "float2 a = float2(0); y[i] = a.x;"),
    "spaces of OpenCL": ("word of OpenCL", "__global float* p = y; p[i] = 1;", "device float* p = y; p[i] = 1;"),
    "vote as a number": (None, "ulong w = simd_ballot(x[i] > 0); y[i] = w;",
        "ulong w = (ulong)simd_ballot(x[i] > 0); simd_vote v(w); y[i] = simd_vote::vote_t(v) + v.all();"),
    "reference to a component": ("no address", "float4 v(1); thread float& r = v.x; r = 2; y[i] = v.x;",
        "float4 v(1); v.x = 2; v.y += 1; v.z++; --v.w; thread float4& r = v; y[i] = r.x;"),
    "pointer to a component": ("no address", "float4 v(1); thread float* p = &v.y; *p = 2; y[i] = v.y;",
        "float4 v(1); thread float* p = (thread float*)&v; p[1] = 2; y[i] = v.y;"),
    "reference to an element": ("no address", "float4 v(1); thread float& r = v[2]; r = 2; y[i] = v.z;",
        "float4 v(1); v[2] = 2; v[1] *= v[2]; v[0]++; auto s = v[2]; s = max(v[0], v[1]); y[i] = s;"),
    "pointer to an element": ("no address", "float4 v(1); thread float* p = &v[2]; *p = 2; y[i] = v.z;",
        "float4 v[2]; v[0] = 1; thread float4* p = &v[0]; (*p)[1] = 2; y[i] = v[0].y;"),
    "component as an out argument": (None,
        helper("void f(thread float& a) { a = 1; }", "float4 v(0); f(v.x); y[i] = v.x;"),
        helper("void f(thread float& a) { a = 1; }", "float4 v(0); float a; f(a); v.x = a; y[i] = v.x;")),
    "element as an out argument": (None, "float4 v(0); y[i] = sincos(1.0f, v[1]);",
        "float4 v(0); float a, s = sincos(1.0f, a); v[1] = a; y[i] = s + v[1];"),
    "components swapped": (None, helper(
        "template <typename T> void f(thread T& a, thread T& b2) { T t = a; a = b2; b2 = t; }",
        "float4 v(0); f(v.x, v.y); y[i] = v.x;"), helper(
        "template <typename T> void f(thread T& a, thread T& b2) { T t = a; a = b2; b2 = t; }",
        "float4 v(0), w(1); f(v, w); v.xy = v.yx; y[i] = v.x;")),
    "component of a member of an array's element": ("no address", helper("struct S { float2 v[3]; };",
        "S s; thread float& r = s.v[1].y; r = 1; y[i] = r;"), helper("struct S { float2 v[3]; };",
        "S s; thread float2& r = s.v[1]; r.y = 1; y[i] = s.v[1].y;")),
    "component in device memory": ("no address",
        "device float4* v = (device float4*)y; device float& r = v[i].x; r = 1;",
        "device float4* v = (device float4*)y; v[i].x += 1; v[i][2] += v[i][1]; device float4& r = v[i]; r.y = 1;"),
    "element in device memory": ("no address",
        "device float4* v = (device float4*)y; device float* p = &v[i][1]; *p = 1;",
        "device float4* v = (device float4*)y; device float* p = (device float*)&v[i]; p[1] = v[i][0];"),
    "component in threadgroup memory": ("no address",
        "threadgroup float2 t[4]; threadgroup float* p = &t[1].x; *p = 1; y[i] = 1;",
        "threadgroup float2 t[4]; t[i].x = 1; t[i][1] = t[i].x; y[i] = t[i][0] + (t[0] * 2.0f)[1];"),
    "component of a packed vector": ("no address",
        "packed_float3 v = packed_float3(1); thread float& r = v.x; y[i] = r;",
        "packed_float3 v = packed_float3(1); v.x = 2; v[1] = v.x; y[i] = v[1];"),
    "element of a matrix": ("no address", "float3x3 m(1.0f); thread float& r = m[0][1]; y[i] = r;",
        "float3x3 m(1.0f); thread float3& r = m[0]; r[1] = 2; m[1][2] = r.y; y[i] = m[1][2];"),
    "constant reference to an element": (None, helper("float f(thread float& a) { return a; }",
        "float4 v(1); y[i] = f(v.x);"), helper("float f(const thread float& a) { return a; }",
        "float4 v(1); y[i] = f(v.x) + f(v[1]);")),
    "float atomics in threadgroup memory": ("in device memory",
        "threadgroup atomic_float t; atomic_store_explicit(&t, 1.0f, memory_order_relaxed); y[i] = 1;",
        "device atomic_float* a = (device atomic_float*)y; atomic_store_explicit(a, 1.0f, memory_order_relaxed); "
        "atomic_fetch_sub_explicit(a, 1.0f, memory_order_relaxed);"),
    "sums of 64-bit atomics": ("64 bits have",
        "atomic_fetch_add_explicit((device atomic_ulong*)y, 1ul, memory_order_relaxed);",
        "atomic_max_explicit((device atomic_ulong*)y, 1ul, memory_order_relaxed); "
        "atomic_min_explicit((device atomic_ulong*)y, 1ul, memory_order_relaxed);"),
    "signed 64-bit atomics": ("atomic<T> needs", "device atomic<long>* p = (device atomic<long>*)y; y[i] = sizeof(*p);",
        "device atomic<int>* p = (device atomic<int>*)y; y[i] = sizeof(*p);"),
    "arithmetic of bool atomics": ("do not calculate",
        "atomic_fetch_or_explicit((device atomic_bool*)y, true, memory_order_relaxed);",
        "y[i] = atomic_exchange_explicit((device atomic_bool*)y, true, memory_order_relaxed);"),
    "initialised members in threadgroup memory": ("no object with a constructor", helper("struct S { float v = 1; };",
        "threadgroup S s; y[i] = s.v;"), helper("struct S { float v; float2 w[2]; float f() const threadgroup "
        "{ return v; } };", "threadgroup S s; s.v = 1; y[i] = s.f();")),
    "constructors in threadgroup memory": ("no object with a constructor", helper(
        "struct S { float v; S() : v(1) {} };", "threadgroup S s[3]; y[i] = s[1].v;"), helper(
        "struct S { float v; S() = default; S(float a) : v(a) {} };",
        "threadgroup S s[3]; s[i] = S(1); y[i] = s[1].v;")),
    "constant that a function computes": ("'sqrt' is computed", helper("constant float k = 2 * sqrt(2.0f);",
        "y[i] = k;"), helper("constant float k = 2.0f * 3; constant float2 v = float2(1, 2) * k; constant uint u = "
        "as_type<uint>(1.0f); constant float3x3 m = float3x3(1.0f);", "const float r = sqrt(2.0f); "
        "y[i] = k + r + v.x + u + m[0].x;")),
    "vector that a function computes": ("'normalize' is computed", helper(
        "namespace n { constant float2 t[2] = {float2(1), normalize(float2(1, 2))}; }", "y[i] = n::t[1].x;"), helper(
        "namespace n { constexpr float floor(float a) { return a; } constant float t[2] = {INFINITY, floor(2.0f)}; }",
        "y[i] = n::t[1];")),
    "function pointer in a variable": ("no function pointers",
        helper("float g(float a) { return a; }", "float (*f)(float) = g; y[i] = f(1);"),
        helper("float g(float a) { return a; } template <float (*F)(float)> float f(float a) { return F(a); }",
               "y[i] = f<g>(1);")),
}  # fmt: skip

# Legal programs of kinds that compilers for OpenCL have trouble with.
LEGAL = {
    "a function template as an argument": helper(
        "template <typename T> void load(const device float* p, short k, thread T& r) { r = T(p[k]); } "
        "template <typename Q, void (*F)(const device Q*, short, thread float4&)> float f(const device Q* p) "
        "{ float4 r; F(p, 0, r); return r.x; }", "y[i] = f<float, load>(x) + f<float, load<float4>>(x);"),
    "overloaded functions as arguments": helper(
        "float g(float a) { return a; } float g(half a) { return -a; } "
        "template <float (*F)(half)> float f(half a) { return F(a); }", "y[i] = f<g>(1.0h);"),
    "aliases of functions as parameters": helper(
        "typedef float (*Op)(float); template <typename T> using Unary = T (*)(T); float g(float a) { return 2 * a; } "
        "template <Op F, typename T, Unary<T> G> T f(T a) { return F(G(a)); }", "y[i] = f<g, float, g>(x[i]);"),
    "functions as parameters, written as functions": helper(
        "float g(float a) { return 2 * a; } template <float F(float), int N = 3> float f(float a) { return F(a) * N; }",
        "y[i] = f<g>(x[i]);"),
    "variable named as its kernel": "kernel void f(device float* y [[buffer(0)]]) { float2 f(1, 2); y[0] = f.x; }",
    "assert": "assert(i < 4096 && \"in range\"); assert((is_same_v<float, float>)); y[i] = 1;",
    "kernels in nested namespaces": "namespace a::b { struct S { float v; }; namespace { kernel void f(device S* y "
        "[[buffer(0)]]) { y[0].v = 1; } } }",
    "products in conditions": "for (short t = 0; t*4 < 9; ++t) { short NW = 2; y[i] = t*NW; }",
    "names of template parameters that are constants elsewhere": helper(
        "constexpr constant float S1 = 0.5f; template <typename S1> S1 f(bfloat v, half w) "
        "{ return w > 0 ? (S1) *(&v) : S1(0); }", "b[i] = f<bfloat>(b[i], h[i]); y[i] = S1;"),
}  # fmt: skip

# Complete libraries and the names of their kernels.
NAMES = {
    "typedef of decltype": ("template <typename T> kernel void f(device T* y [[buffer(0)]]) { y[0] = T(1); }\n"
        "typedef decltype(f<float>) f_t;\ntemplate [[host_name(\"f_float\")]] kernel f_t f<float>;\n"
        "template [[host_name(\"f_half\")]] kernel f_t f<half>;\n", ["f_float", "f_half"]),
    "alias of decltype": ("template <typename T, bool B> kernel void f(device T* y [[buffer(0)]]) { y[0] = T(B); }\n"
        "using f_t = decltype(f<float, true>);\ntemplate [[host_name(\"f\")]] kernel f_t f<float, (1 > 0)>;\n", ["f"]),
    "words of the type": ("template <typename T> kernel void f(device T* y [[buffer(0)]]) { y[0] = T(1); }\n"
        "template [[host_name(\"g\")]] kernel void f<uint>(device uint* y [[buffer(0)]]);\n"
        "template [[host_name(\"h\")]] kernel void f(device half* y [[buffer(0)]]);\n", ["g", "h"]),
    "namespaces": ("namespace n { kernel void f(device float* y [[buffer(0)]]) { y[0] = 1; } "
        "template <typename T> kernel void g(device T* y [[buffer(0)]]) { y[0] = 1; } "
        "typedef decltype(g<int>) g_t; template [[host_name(\"g_int\")]] kernel g_t g<int>; }\n"
        "template [[host_name(\"g_half\")]] kernel decltype(n::g<half>) n::g<half>;\n"
        "kernel void f(device float* y [[buffer(0)]]) { y[0] = 2; }\n", ["g_int", "g_half", "n::f", "f"]),
    "name of a plain kernel": ("[[host_name(\"other\")]] kernel void f(device float* y [[buffer(0)]]) { y[0] = 1; }\n",
        ["other"]),
    "specialised kernel": ("template <typename T> kernel void f(device T* y [[buffer(0)]]) { y[0] = 1; }\n"
        "template <> [[host_name(\"f_half\")]] kernel void f<half>(device half* y [[buffer(0)]]) { y[0] = 2; }\n",
        ["f_half"]),
}  # fmt: skip
