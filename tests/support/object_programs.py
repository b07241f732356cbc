"""Programs whose objects have operators, whose constants are lists and whose kernels leave out what Metal gives by
itself, as in language_programs.py: taken, and refused."""

from language_programs import helper

ARRAY = """template <typename T, int N> struct Array {
  T d[N];
  thread T& operator[](int k) { return d[k]; }
  T operator[](int k) const { return d[k]; }
  thread T* begin() { return d; }
  thread T* end() { return d + N; }
  thread Array& operator++() { for (int k = 0; k < N; ++k) d[k] += 1; return *this; }
  Array operator++(int) { Array before = *this; ++*this; return before; }
};
"""
COMPLEX = """struct Complex {
  float re, im;
  thread Complex& operator*=(Complex o) { return *this = {re * o.re - im * o.im, re * o.im + im * o.re}; }
  Complex operator+(Complex o) const { return {re + o.re, im + o.im}; }
  Complex operator-() const thread { return {-re, -im}; }
  float norm() const { return re * re + im * im; }
};
"""
ITERATOR = """struct Iterator {
  const device float* at;
  float operator*() const { return *at; }
  thread Iterator& operator++() { ++at; return *this; }
  bool operator!=(Iterator o) const { return at != o.at; }
};
struct Range {
  const device float* first;
  uint n;
  Iterator begin() const { return {first}; }
  Iterator end() const { return {first + n}; }
};
"""
UNSAFE = """template <typename T, size_t N> struct Unsafe {
  T elements[N];
  thread T& operator[](size_t k) thread { return elements[k]; }
  constexpr const constant T& operator[](size_t k) const constant { return elements[k]; }
};
constant Unsafe<int, 3> known = Unsafe<int, 3>({1, 20, 300});
"""
SIGN = """template <typename T, typename = enable_if_t<is_integral_v<T>>> T sign(T x) {
  return select(T(-1), T(1), x > 0);
}
"""
PLAIN = "struct S { float v; };\n"
FUNCTION = "typedef float (*F)(float); using G = float (*)(float); float g(float a) { return a; }\n"

ACCEPTED = {
    "templates with names of the library": helper(
        "template <typename T> float dot(T a, T b) { return float(a * b); } "
        "template <typename T> float cross(T a, T b) { return 1; } "
        "template <typename T, typename U> T max(T a, U b) { return a; } "
        "template <typename T> T clamp(T a, T b, T c) { return a < b ? b : a > c ? c : a; } "
        "template <typename T, int N> vec<T, N> mix(vec<T, N> a, vec<T, N> b, vec<T, N> c) { return a; } "
        "template <typename T> inline __attribute__((always_inline)) T select(T a, T b, bool c) { return a; }",
        "half4 v = half4(1); static_assert(is_same_v<decltype(dot(v, v)), half>, \"the library's\"); "
        "static_assert(is_same_v<decltype(dot(1.0h, 2.0h)), float>, \"the own one\"); int3 n = clamp(int3(i), 1, 2); "
        "static_assert(is_same_v<decltype(cross(float3(1), float3(2))), float3>, \"the library's\"); "
        "n = clamp(n, n, n); v = mix(v, v, v) + max(v, v); y[i] = dot(v, v) + n.x + select(1, 2, i > 1);"),
    "pointers that a method returns": helper("struct S { float v; }; struct P { S s; thread S* operator->() "
        "{ return &s; } thread S* none() { return nullptr; } };", "P p; p->v = 1; y[i] = p.none() == nullptr;"),
    "constant methods of values": helper(COMPLEX, "Complex a = {1, 2}; y[i] = (-(a + a)).norm() + (a + a + a).norm();"),
    "members that are private": helper("class S { float v; public: S(float a) : v(a) {} float get() const "
        "{ return v; } friend float peek(S s) { return s.v; } };", "S s(1); y[i] = s.get() + peek(s);"),
    "functions for integers under a name of the library": helper(SIGN, "y[i] = sign(int4(i) - 2).x + sign(x[i]) + "
        "sign(float2(1)).y;"),
    "names of numbers in metal::": "using metal::uint; metal::uchar a = 1; metal::size_t n = 2; metal::int64_t k = -1; "
        "y[i] = a + n + k;",
    "literals": "int a = 1'000'000; uint n = 0xff'ffu; y[i] = a + n + 1.0f + 1.h + .5F + 1e3f + 0x1p3f + 3ul + 1.5bf;",
    "a comment that goes on": "y[i] = 1; // on the next line \\\n too;\ny[i] += 1; // \\ no further\ny[i] += 1;",
    "attributes of stages": "kernel void f(device float* y [[user(a)]], constant uint& n [[user(a)]], threadgroup "
        "float* t, threadgroup uint& u) { t[0] = 1; u = n; y[0] = t[0] + u; }",
    "aliases of functions as parameters": helper(FUNCTION + "float apply(F f, float a) { return f(a); } "
        "template <G f> float again(float a) { return f(a); }", "y[i] = apply(g, 1) + again<g>(2);"),
}  # fmt: skip

# rule: (part of the message, program)
REFUSED = {
    "private member": ("'a' is a private member", helper("class S { float a; };", "S s; s.a = 1; y[i] = 1;")),
    "private method": ("'f' is a private member", helper("class S { float a; float f() const { return a; } };",
        "S s; y[i] = s.f();")),
    **{f"function in a variable: {name}": ("no function pointers", helper(FUNCTION, program))
        for name, program in {
            "typedef": "F f = g; y[i] = f(1);", "alias": "const G f = g; y[i] = f(1);",
            "array": "F f[2] = {g, g}; y[i] = f[0](1);", "array of pointers": "float (*f[1])(float) = {g}; y[i] = 1;",
            "member": "struct S { G f; }; y[i] = 1;",
        }.items()},
    **{f"literal {one}": ("suffixes of Metal's literals", f"y[i] = {one};") for one in ("1.0q", "1.0f16", "3uz")},
    "template lambda": ("need Metal 4.0", "auto f = []<typename T>(T a) { return a; }; y[i] = f(1);"),
    "bits of a structure": ("as_type takes numbers and vectors", helper(PLAIN, "S s = {1}; y[i] = as_type<uint>(s);")),
    "bits of a pointer": ("as_type takes numbers and vectors", "ulong a = as_type<ulong>(x); y[i] = a;"),
    "pointer to a pointer as a buffer": ("an address space too",
        "kernel void f(device uint** y [[buffer(0)]]) { y[0][0] = 1; }"),
    "reference to a pointer as a buffer": ("an address space too",
        "kernel void f(device uint*& y [[buffer(0)]]) { y[0] = 1; }"),
    "instance of no kernel": ("no instance of a kernel",
        "template [[host_name(\"a\")]] kernel void g<float>(device float* y);"),
    "two instances of one name": ("a second kernel has the host name 'a'",
        "template <typename T> kernel void f(device T* y [[buffer(0)]]) { y[0] = 1; } "
        "template [[host_name(\"a\")]] kernel void f<float>(device float* y); "
        "template [[host_name(\"a\")]] kernel void f<half>(device half* y);"),
}  # fmt: skip
