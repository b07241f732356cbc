"""Programs about references, pointers, address spaces and constants: some legal, some that Metal refuses.

language_programs.py explains their form.
"""

from language_programs import helper

COMPONENT = "a component of a vector has no address"
SPACE = "needs an address space"

ACCEPTED = {
    "auto references to elements of arrays": "float a[4] = {1, 2, 3, 4}; auto& r = a[1]; r = 2; y[i] = a[1];",
    "auto references to rows": "float a[4][4]; auto& r = a[1]; r[2] = 2; y[i] = a[1][2];",
    "auto references to columns": "float4x4 m(1.0f); auto& r = m[1]; r.x = 2; y[i] = m[1].x;",
    "auto references to constants": "auto& r = c[2]; y[i] = r;",
    "auto references to threadgroup elements": "threadgroup float t[4]; auto& r = t[1]; r = 2; auto p = &t[2]; *p = 3; "
        "y[i] = t[1];",
    "auto pointers": "auto p = &y[i]; *p = 1; auto q = &x[i]; y[i] = *q; auto s = &c[2]; y[i] = *s;",
    "const auto references to vectors": "float4 v = float4(1); const auto& r = v; y[i] = r[1];",
    "copies of components": "float4 v = float4(1); auto r = v[1]; r = 2; const auto s = (v + v)[2]; y[i] = v[1] + s;",
    "components as arguments of templates": helper("template <typename T> T f(T a) { return a; }",
        "float4 v = float4(1); y[i] = f(v[2]) + f(v.x);"),
    "references to members": helper("struct S { float a[3]; int n; };", "S s[2]; auto& r = s[1]; r.n = 1; "
        "auto& q = s[1].a[2]; q = 1; thread float* p = &s[0].a[1]; *p = 1; y[i] = s[1].n;"),
    "ranges": "float a[4] = {1, 2, 3, 4}; float sum = 0; for (auto v : a) sum += v; for (auto& v : a) v = 1; "
        "for (thread float& v : a) v = 2; y[i] = sum;",
    "volatile elements": "threadgroup volatile float t[4]; t[i] = 1; y[i] = *(&t[1] + 1);",
    "pointers to pointers": "device float* q = y; device float* thread* p = &q; y[i] = **p;",
    "references to pointers": helper("void next(const device float* thread& p) { p += 1; }",
        "const device float* q = x; next(q); y[i] = *q;"),
    "results behind an arrow": helper("auto f(float a) -> float { return a; } "
        "auto g(device float* p) -> device float* { return p; }", "*g(y) = f(1);"),
    "macros that name the space": "\n#define POINTER device float*\n#define SPACE device\nPOINTER p = y; *p = 1; "
        "SPACE float* q = p; *q = 2;",
    "spaces before macros": "\n#define POINTER float*\ndevice POINTER p = y; *p = 1;",
    "spaces as arguments of macros": helper("#define TO(S, T) S T*\n#define SUM(S) float f(S float* p) { return *p; }\n"
        "SUM(device)\nSUM(thread)\n", "TO(device, float) p = y; y[i] = f(p);"),
    "macros that multiply": "\n#define SQUARE(a) (a * a)\n#define BOTH(a, d) ((a) & (d))\n#define TO(t, n) t(n) * t(2)"
        "\ny[i] = SQUARE(x[i]) + BOTH(i, 3u) + TO(float, 3);",
    "macros that point and follow": "\n#define AT(a) (&(a))\n#define OF(p) *p\ny[i] = *AT(x[i]) + OF(x);",
    "macros that nobody uses": "\n#define POINTER float*\ny[i] = 1;",
    "macros that paste": "\n#define QUOTE(a) #a\n#define PASTE(a, d) a##d\nfloat PASTE(va, lue) = 1; y[i] = value;",
    "lists for constant vectors": helper("constant float4 k = {1, 2, 3, 4}; constant float4 m{1, 2, 3, 4}; "
        "constant half3 n(1); constant float2 t[] = {{1.0f, 2.0f}, float2(3)}; "
        "constant float2 u[2][1] = {{{1, 2}}, {{3, 4}}};", "y[i] = k.x + m.y + n.z + t[1].y + u[1][0].x;"),
    "functions for constants": helper("constexpr float g(float a) { return a * 2; } constant float k = g(3); "
        "struct S { float a; constexpr S(float b2) : a(b2) {} }; constant S s = S(2);", "y[i] = k + s.a;"),
}  # fmt: skip

# rule: (part of the error message, program)
REFUSED = {
    **{name: (COMPONENT, program) for name, program in {
        "auto reference to a component": "float4 v = float4(1); auto& r = v[1]; r = 2; y[i] = v.y;",
        "forwarding reference to a component": "float4 v = float4(1); auto&& r = v[1]; r = 2; y[i] = v.y;",
        "auto pointer to a component": "half4 v = half4(1); auto p = &v[1]; *p = 2; h[i] = v.y;",
        "decltype(auto) of a component": "float4 v = float4(1); decltype(auto) r = (v[1]); r = 2; y[i] = v.y;",
        "auto reference to a device component": "device float4* v = (device float4*)y; auto& r = v[i][1]; r = 2;",
        "auto pointer to a device component": "device float4* v = (device float4*)y; auto p = &v[i][1]; *p = 2;",
        "auto reference to a threadgroup component": "threadgroup float4 t[4]; auto& r = t[1][2]; r = 1; y[i] = 1;",
        "auto reference to a matrix's element": "float4x4 m(1.0f); auto& r = m[1][2]; r = 2; y[i] = m[1][2];",
        "auto reference to a member's component": helper("struct S { float4 v; };",
            "S s[2]; auto& r = s[1].v[3]; r = 1; y[i] = s[1].v.w;"),
        "pointer to a component as a template's argument": helper("template <typename T> void f(T p) { *p = 1; }",
            "float4 v; f(&v[1]); y[i] = v.y;"),
    }.items()},
    "conditional reference to components": (None, "float4 v; auto& r = i > 1 ? v[0] : v[1]; r = 1; y[i] = v.x;"),
    "reference argument to a component": (None, helper("template <typename T> void f(thread T& a) { a = 1; }",
        "float4 v; f(v[2]); y[i] = v.z;")),
    "swap of components": (None, helper("template <typename T> void exchange(thread T& a, thread T& d) { T t = a; "
        "a = d; d = t; }", "float2 v = float2(1, 2); exchange(v.x, v.y); y[i] = v.x;")),
    "reference to a named component": (None, "float4 v; auto& r = v.y; r = 1; y[i] = v.y;"),
    **{name: (SPACE, program) for name, program in {
        "pointer in a macro": "\n#define P(a) float* a\nfloat q = 1; P(p) = &q; y[i] = *p;",
        "type of a pointer in a macro": "\n#define POINTER float*\nfloat q = 1; POINTER p = &q; y[i] = *p;",
        "reference in a macro": "\n#define REFER(a, d) auto a = d; float& r = a\nREFER(k, x[i]); y[i] = k;",
        "parameter in a macro": helper("#define DEFINE(T) T f(T* p) { return *p; }\nDEFINE(float)\n", "y[i] = 1;"),
        "cast in a macro": "\n#define AT(p) (*(float*)(p))\ny[i] = AT(x);",
        "pointer in a macro of a macro": "\n#define TYPE float\n#define POINTER TYPE*\nfloat q; POINTER p = &q; "
            "y[i] = *p;",
        "pointer to a decltype": "float a = 1; decltype(a)* p = &a; y[i] = *p;",
        "pointer behind an arrow": helper("auto f(float a) -> float* { return nullptr; }", "y[i] = 1;"),
    }.items()},
    "matrices of whole numbers": ("matrices are of float", "matrix<int, 2, 2> m; y[i] = 1;"),
    "copy of an atomic": (None, "device atomic_int* a = (device atomic_int*)y; atomic_int n = a[0]; y[i] = 1;"),
    "atomic in place of another": (None, "device atomic_int* a = (device atomic_int*)y; a[0] = a[1];"),
    "constant that a function computes": ("computed when it runs", helper("float g() { return 1; } "
        "constant float k = g();", "y[i] = k;")),
    "select of two types": (None, "y[i] = select(1.0f, 2, true);"),
}  # fmt: skip
