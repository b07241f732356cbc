"""Programs about classes, their methods and type traits: some legal, some that Metal refuses.

language_programs.py explains their form.
"""

from language_programs import helper

TILE = """template <typename T> struct Tile {
  simdgroup_matrix<T, 8, 8> parts[2] = {simdgroup_matrix<T, 8, 8>(0)};
  METAL_FUNC Tile() thread {}
  METAL_FUNC void load(const threadgroup T* from) { simdgroup_load(parts[0], from, 8); }
  METAL_FUNC void multiply() {
    parts[1].thread_elements()[0] = T(1);
    simdgroup_multiply_accumulate(parts[0], parts[0], parts[1], parts[0]);
  }
  METAL_FUNC T first() const { return parts[0].thread_elements()[0]; }
};
float twice(thread const short& a) { return 2 * a; }
"""
ADD = "void add(thread float& a) { a += 1; }\n"
COUNTER = ADD + "struct S { float n; void f() { add(n); } float g(float a) const; };\n"

ACCEPTED = {
    "members as references of the thread": helper(COUNTER, "S s; s.n = 1; s.f(); y[i] = s.n;"),
    "methods defined outside": helper(COUNTER + "const thread float& same(const thread float& a) { return a; }\n"
        "float S::g(float a) const { return same(n) + a; }", "S s; s.n = 1; y[i] = s.g(2);"),
    "methods of templates": helper(ADD + "template <typename T, int N> struct S { T n[N]; "
        "template <typename U> void f(U a) { add(n[0]); n[1] = a; } T operator()(int k) const { return n[k]; } };",
        "S<float, 2> s; s.f(1); y[i] = s(0) + s(1);"),
    "methods that call methods": helper(ADD + "struct S { float n; void f() { add(n); } "
        "void g() { f(); this->f(); } };", "S s; s.n = 0; s.g(); y[i] = s.n;"),
    "methods of a base": helper(ADD + "struct A { float n; void f() { add(n); } }; "
        "struct B : A { void g() { f(); add(n); } };", "B s; s.n = 0; s.g(); y[i] = s.n;"),
    "matrices as members": helper(TILE, "threadgroup float t[64]; t[i] = 1; Tile<float> a; a.load(t); a.multiply(); "
        "y[i] = a.first();"),
    "matrices as members beside bound values": helper(TILE, "const int three = 3; Tile<half> a; a.multiply(); "
        "y[i] = a.first() + twice(three);"),
    "functors beside methods": helper(ADD + "struct S { float n; void f() { add(n); } }; "
        "struct Sum { template <typename T> METAL_FUNC T operator()(T a, T b) { return a + b; } };",
        "S s; s.n = 0; s.f(); y[i] = Sum()(s.n, 1.0f) + Sum{}(1, 2);"),
    "constructors by the full name of a template": helper("template <typename T> struct S { T n; "
        "constexpr S<T>() = default; constexpr S<T>() threadgroup = default; };", "S<float> s; s.n = 1; y[i] = s.n;"),
    "traits of vectors": """static_assert(vec_elements<float>::value == 0 && vec_elements<float3>::value == 3, "");
static_assert(vec_elements<const packed_half2>::value == 2 && is_vector_v<packed_float3> && !is_vector_v<float>, "");
static_assert(is_same_v<make_scalar_t<half4>, half> && is_same_v<make_scalar<int>::type, int>, "");
static_assert(is_floating_point_v<float4> && !is_integral_v<float4> && is_integral_v<uchar2>, "");
static_assert(is_arithmetic_v<half3> && !is_scalar_v<half3> && is_scalar_v<half> && is_vector<float2>::value, "");
static_assert(is_signed_v<int2> && is_unsigned_v<uint4> && !is_unsigned_v<float>, "");
static_assert(is_same_v<make_unsigned_t<int2>, uint2> && is_same_v<make_signed_t<ushort>, short>, "");
y[i] = 1;""",
    "traits of traits": "static_assert(conjunction_v<is_integral<int>, is_signed<int>>, \"\"); "
        "static_assert(!disjunction_v<is_integral<float>, is_enum<float>>, \"\"); y[i] = 1;",
    "types below enumerations": helper("enum class E : ushort { A };",
        "static_assert(is_same_v<underlying_type_t<E>, ushort>, \"\"); y[i] = 1;"),
    "limits of one's own types": helper("template <typename T> struct Pair { uint at; T value; };\n"
        "template <typename T> struct _numeric_limits_impl<Pair<T>> { static constexpr METAL_FUNC Pair<T> lowest() { "
        "return Pair<T>{0, numeric_limits<T>::lowest()}; } };", "y[i] = numeric_limits<Pair<float>>::lowest().value;"),
    "names that Metal does not have": helper("template <typename T> struct element { T n; }; "
        "template <typename T> using element_t = element<T>; template <typename T> struct same { T n; }; "
        "template <typename T> using plain_t = T; struct negation { int n; };",
        "element_t<plain_t<float>> s{1}; same<int> a{1}; negation w{1}; y[i] = s.n + a.n + w.n;"),
}  # fmt: skip

NUMBER = "template <int N> struct Number { constexpr operator int() const { return N; } };\n"
STEPS = ("template <typename T> T steps(T a) { vec<T, 2> v = {a, a}; v.x += a; v.y -= T(1); v.g *= a; "
    "v.xy += 1; return v.x + v.y; }\n")  # fmt: skip
OWN = "struct S { float n; }; thread S& operator+=(thread S& a, S b) { a.n += b.n; return a; }\n"
ACCEPTED |= {
    "steps of components of a template's vectors": helper(STEPS, "y[i] = steps(x[i]) + steps(h[i]) + steps(int(i));"),
    "the same beside an operator of one's own": helper(OWN + STEPS, "S s = {1}; s += s; y[i] = steps(x[i]) + s.n;"),
    "steps by an object that converts to a number": helper(NUMBER, "int n = i; n += Number<2>(); n *= Number<3>(); "
        "device float* at = y; at += Number<1>(); at[0] = n;"),
    "the same beside steps of components": helper(NUMBER + STEPS, "int n = i; n -= Number<2>(); y[i] = steps(n);"),
    "functions that return constant pointers": helper("constant float table[2] = {1, 2}; "
        "template <int N> inline constant float* chosen() { return table + N; }\n"
        "inline uchar low(float a) { return a < 0; }", "y[i] = chosen<1>()[0] + low(x[i]);"),
    "C linkage": helper("extern \"C\" struct S { uint a; uint b; }; extern \"C\" { float f(float a) { return a; } }\n"
        "extern \"C\" float g(float a) { return f(a); }", "S s = {1, 2}; y[i] = g(s.b);"),
    "thread pointers to other spaces": "thread const device float* p[2]; p[1] = x; const thread device float* q = x; "
        "device thread float* w = y; w[i] = p[1][i] + q[i];",
    "functions as arguments of functions": helper("float add(float a, float b) { return a + b; }\n"
        "template <typename T> T twice(T a, T (*op)(T, T)) { return op(op(a, a), a); }\n"
        "struct S { static float f(vec<float, 2> (*op)(float2, vec<float, 2>), float (*g)(float, float)) "
        "{ return twice(op(1, 2).x, g); } }; float2 sum(float2 a, float2 b) { return a + b; }",
        "y[i] = twice(x[i], add) + S::f(sum, add);"),
    "a circle of calls that no number closes": helper("float small(float a); float large(float a) "
        "{ if (a < 12) return log(small(a)); return a; }\n"
        "float small(float a) { if (a >= 12) return exp(large(a)); return a * a; }",
        "y[i] = large(x[i]) + small(x[i]);"),
    "kernels declared before their definition": "template <typename T> kernel void f(device T* y, uint i); "
        "template [[host_name(\"g\")]] kernel void ::f<float>(device float* y, uint i); "
        "template <typename T> kernel void f(device T* y [[buffer(0)]], uint i [[thread_position_in_grid]]) "
        "{ y[i] = 1; }",
    "types of expressions in a namespace metal of one's own": helper("namespace a { namespace metal { "
        "struct S { float n; float f() const { decltype(n) m = n; return m; } }; } }",
        "a::metal::S s = {1}; y[i] = s.f();"),
    "barriers of both memories": "threadgroup_barrier(mem_flags::mem_device_and_threadgroup); y[i] = 1;",
    "loops over constant arrays": "const array<float, 2> a = {1, 2}; for (auto v : a) y[i] += v; "
        "for (float v : a) y[i] += v;",
    "threadgroup memory with constants": "constexpr int N = 4; threadgroup float t = 0.0f, a[N] = {0}; "
        "threadgroup half u = -1, w; a[i] = t = 1; w = u = 1; y[i] = t + u + w + a[i];",
    "logs": helper("#include <metal_logging>\nconstant os_log shared(\"a\", \"b\");", "os_log mine(\"a\", \"c\"); "
        "mine.log(\"%d\", i); shared.log_debug(\"%f\", x[i]); os_log_default.log_info(\"none\"); y[i] = 1;"),
}  # fmt: skip

KEPT = ("struct S { float n; void set(float a) { n = a; } float get() const; "
    "float operator()(int k) const { return n; } S operator+(S o) const { return o; } }; "
    "float S::get() const { return n; } struct Outer { S s; };\n")  # fmt: skip
SHARED = "device Outer* o = (device Outer*)y; device const S* s = (device const S*)x; threadgroup S t; "
ACCEPTED |= {
    "methods without a space on the thread's copies": helper(KEPT, "device S* s = (device S*)y; S t = s[0]; t.set(1); "
        "const S u = t + t; y[i] = u.get() + u(1) + (t + u).n;"),
    "methods of several spaces": helper("struct S { float n; float f() const { return n; } "
        "float f() const device { return n; } float f() const threadgroup { return n; } };",
        "threadgroup S t; t.n = 1; S s; s.n = 1; y[i] = t.f() + s.f() + ((device S*)y)->f();"),
    "methods on shared objects without members": helper("struct Sum { float operator()(float a) const { return a; } "
        "static float two() { return 2; } };", "threadgroup Sum t; y[i] = t(1) + ((device Sum*)y)->two();"),
}  # fmt: skip
REFUSED = {
    **{f"a method without a space on a shared object: {call}": (
        f"an object in {space} memory.*write {space} behind", helper(KEPT, SHARED + call)) for space, call in (
            ("device", "o->s.set(1);"), ("device", "y[i] = s->get();"), ("device", "y[i] = s[0](1);"),
            ("device", "S w = s[0] + s[1]; y[i] = w.n;"), ("threadgroup", "t.set(1);"), ("threadgroup", "y[i] = t(1);"),
        )},
    "vectors of classes": ("elements of a vector are numbers", helper("struct S { int n; };", "vec<S, 2> v;")),
    "methods of the thread on device objects": (None, helper("struct S { float n; float f() thread { return n; } };",
        "device S* s = (device S*)y; y[i] = s->f();")),
    "device members as references of the thread": ("cannot bind reference", helper(ADD +
        "struct S { float n; void f() device { add(n); } };", "device S* s = (device S*)y; s->f();")),
    "a circle of calls that a number closes": ("no recursion", helper("float g(float a, int n); "
        "float f(float a, int n) { return n > 0 ? g(2 * a, n - 1) : a; } float g(float a, int n) "
        "{ return f(a + 1, n - 1); }", "y[i] = f(x[i], i);")),
    "functions as members": ("no function pointers", helper("struct S { float (*op)(float, float); };", "y[i] = 1;")),
    "two spaces of a pointer": ("multiple address spaces", "device threadgroup float* p = 0; y[i] = p[0];"),
    "objects that convert to no number": ("invalid operands", helper("struct S { float n; };",
        "int n = i; n += S{1}; y[i] = n;")),
}  # fmt: skip
