"""The simulator accepts and refuses what Metal accepts and refuses: one small program for each rule."""

import address_programs
import class_programs
import kernel_programs
import language_programs
import mlx.core as mx
import object_programs
import pytest
from programs import compiled

from mlx_flash.metal.cpu.settings import MODES
from mlx_flash.metal.frontend.language import VERSIONS
from mlx_flash.metal.frontend.translate import translate
from mlx_flash.simulator import CompileError, SimulatorError, language, metal_kernel, mode

PROGRAMS = (language_programs, address_programs, kernel_programs, class_programs, object_programs)
ACCEPTED = {rule: program for one in PROGRAMS for rule, program in one.ACCEPTED.items()}
REFUSED = {rule: program for one in PROGRAMS for rule, program in one.REFUSED.items()}


@pytest.mark.parametrize("rule", ACCEPTED)
def test_accepted(rule):
    compiled(ACCEPTED[rule])


@pytest.mark.parametrize("rule", REFUSED)
def test_refused(rule):
    message, program = REFUSED[rule]
    with pytest.raises(CompileError, match=message) as caught:
        compiled(program)
    assert "line " in str(caught.value)


@pytest.mark.parametrize("how", MODES)
def test_a_kernel_that_runs_does_not_call_itself(how):
    """The kernel is compiled once, and the code of its functions is checked during that compilation."""
    header = "struct S { int f(int n) const thread { return n ? this->f(n - 1) : 0; } };"
    kernel = metal_kernel("again", [], ["y"], "S s; y[0] = s.f(3);", header=header)
    with mode(how), pytest.raises(CompileError, match="line 1: .*no recursion: 'f' calls itself"):
        kernel(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.int32])


# name: (first version that takes it, what the others say, the program)
NEWER = {
    "bfloat": (
        "3.1",
        "'bfloat', which needs Metal 3.1",
        "kernel void f(device bfloat* y [[buffer(0)]]) { y[0] = y[1]; }",
    ),
    "vectors of bfloat": (
        "3.1",
        "'packed_bfloat4', which needs Metal 3.1",
        "kernel void f(device packed_bfloat4* y [[buffer(0)]]) { y[0] = y[1]; }",
    ),
    "coherent memory": (
        "3.2",
        "'coherent', which needs Metal 3.2",
        "kernel void f(coherent(device) device float* y [[buffer(0)]]) { y[0] = 1; }",
    ),
    "fences": (
        "3.2",
        "'atomic_thread_fence', which needs Metal 3.2",
        "kernel void f(device float* y [[buffer(0)]]) { y[0] = 1; "
        "metal::atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_device); }",
    ),
    "lambdas": (
        "4.0",
        "lambda expressions need Metal 4.0",
        "kernel void f(device float* y [[buffer(0)]]) { auto g = [](float a) { return a + 1; }; y[0] = g(1); }",
    ),
    "lambdas that capture": (
        "4.0",
        "lambda expressions need Metal 4.0",
        "kernel void f(device float* y [[buffer(0)]]) { float b = 2; auto g = [&](float a) { return a + b; }; "
        "y[0] = g(1); }",
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NEWER)
def test_versions(name, version):
    first, message, program = NEWER[name]
    if version >= first:
        compiled(program, version)
    else:
        with pytest.raises(CompileError, match=message) as caught:
            compiled(program, version)
        assert str(caught.value).startswith("line 1: ") and "note" not in str(caught.value)


def test_the_version_is_a_setting(monkeypatch):
    """It also applies to custom kernels, whose signature MLX writes."""
    kernel = metal_kernel("versions", [], ["y"], "y[0] = __METAL_VERSION__;")
    call = dict(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.int32])
    assert kernel(**call)[0].item() == 310
    for version in VERSIONS:
        with language(version):
            assert kernel(**call)[0].item() == int(version.replace(".", "")) * 10
    monkeypatch.setenv("MLX_FLASH_METAL_LANGUAGE", "3.2")
    assert kernel(**call)[0].item() == 320
    with pytest.raises(ValueError, match="one of Metal 3.0, 3.1, 3.2, 4.0, 4.1, not '2.4'"), language("2.4"):
        pass


def test_own_templates_beside_the_library():
    """The library's function wins only where its names need no metal::, and only outside of namespaces."""
    own = "template <typename T> float dot(T a, T b) { return 7; }"
    for text, added in (
        (f"#include <metal_stdlib>\nusing namespace metal;\n{own}", True),
        (f"#include <metal_stdlib>\n{own}", False),
        (f"using namespace metal;\nnamespace own {{ {own} }}", False),
        (f"{own} template <> float dot(int a, int b) {{ return 8; }}", True),
    ):
        translated = translate(text).text
        assert translated.count("vec<half, 3> a, vec<half, 3> b") == added
        assert translated.count("\n") == text.count("\n")
    kernel = metal_kernel("own", [], ["y"], "y[0] = dot(float3(2), float3(3)) + dot(2.0f, 3.0f);", header=own)
    call = dict(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    assert kernel(**call)[0].item() == 18 + 7


# name: (a source's own overloads of the library's functions, a number, its value)
OWN = {
    "select by one bool": (
        "template <typename T> T select(T a, T b, bool c) { return c ? b + T(10) : a; }",
        "select(float4(1), float4(2), true).x + select(float4(1), float4(2), bool4(false)).y + select(1, 2, true)",
        12 + 1 + 2,
    ),
    "select by integers": (
        "template <typename T, int N> vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<int, N> c) "
        "{ return select(a, b, c < 0); }",
        "select(float2(1), float2(2), int2(-1, 0)).x + select(float2(1), float2(2), int2(-1, 0)).y",
        2 + 1,
    ),
    "of bfloat, which the library has not": (
        "template <typename T> T exp(T x) { return T(7); } template <typename T> T fma(T a, T b, T c) { return T(8); } "
        "template <typename T> T max(T a, T b) { return T(9); } template <typename T> float isnan(T x) { return 10; } "
        "inline bfloat min(bfloat a, bfloat b) { return 11; }",
        "float(exp(bfloat(0))) + float(fma(bfloat(1), bfloat(1), bfloat(1))) + float(max(bfloat(1), bfloat(2))) "
        "+ isnan(bfloat(1)) + float(min(bfloat(1), bfloat(2)))",
        7 + 8 + 9 + 10 + 11,
    ),
    "of bfloat, where the source has others": (
        "template <typename T> T exp(T a, T b) { return T(7); } struct S { float v; }; "
        "inline S max(S a, S b) { return a; }",
        "float(exp(bfloat(0))) + exp(1, 2) + float(max(bfloat(1), bfloat(2))) + max(S{3}, S{4}).v",
        1 + 7 + 2 + 3,
    ),
    "more arguments, and objects": (
        "struct C { float re, im; }; inline float abs(C a) { return sqrt(a.re * a.re + a.im * a.im); } "
        "inline C fma(C a, C b, C c) { return c; } inline float3 normalize(float3 v, float least) "
        "{ return v * rsqrt(max(dot(v, v), least)); } template <typename T> T max(T a, T b, T c) "
        "{ return max(max(a, b), c); } inline float length(float a, float b) { return length(float2(a, b)); }",
        "abs(C{3, 4}) + abs(-1.0f) + fma(C{}, C{}, C{2, 3}).re + normalize(float3(0), 1).x "
        "+ normalize(float3(2, 0, 0)).x"
        " + max(1, 3, 2) + max(float2(1), float2(3), float2(2)).y + length(3, 4)",
        5 + 1 + 2 + 0 + 1 + 3 + 3 + 5,
    ),
    "arguments of two types": (
        "template <typename A, typename B> auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; } "
        "inline float pow(float b, int e) { return e > 0 ? b * pow(b, e - 1.0f) : 1; }",
        "min(1.5f, 2) + min(3u, 2u) + pow(2.0f, 3) + pow(2.0f, 2.0f)",
        1.5 + 2 + 8 + 4,
    ),
}


@pytest.mark.parametrize("own, number, value", OWN.values(), ids=OWN)
def test_own_overloads_of_library_functions(own, number, value):
    """They win or stand beside the library's, as Apple's compiler has it."""
    kernel = metal_kernel("own", [], ["y"], f"y[0] = {number};", header=own)
    call = dict(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    assert kernel(**call)[0].item() == value


def test_both_corpora_are_large():
    assert len(ACCEPTED) >= 60 and len(REFUSED) >= 60


@pytest.mark.parametrize("how", MODES)
def test_methods_work_on_their_objects(how):
    """Members bind to references of type thread, and what methods write stays in the object."""
    header = """void twice(thread float& a) { a *= 2; }
struct S {
  float n;
  simdgroup_matrix<float, 8, 8> m;
  void f() { twice(n); m.thread_elements() *= n; }
  float sum() const { return m.thread_elements()[0] + m.thread_elements()[1]; }
};"""
    source = "S s; s.n = 3; s.m = simdgroup_matrix<float, 8, 8>(1); s.f(); y[thread_position_in_grid.x] = s.sum();"
    kernel = metal_kernel("methods", [], ["y"], source, header=header)
    call = dict(grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)], output_dtypes=[mx.float32])
    with mode(how):
        (out,) = kernel(inputs=[], **call)
        assert sorted(out.tolist()) == [0.0] * 24 + [6.0] * 8


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("operator", ["", class_programs.OWN])
def test_components_of_vectors_whose_type_is_a_templates(how, operator):
    """The steps change the vector itself, whatever an operator of one's own makes of it."""
    kernel = metal_kernel("steps", ["x"], ["y"], "y[0] = steps(x[0]);", header=operator + class_programs.STEPS)
    call = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    with mode(how):
        (out,) = kernel(inputs=[mx.array([3.0])], **call)
    assert out.item() == (3 + 3 + 1) + ((3 - 1) * 3 + 1)


def test_constants_of_threadgroup_memory_are_not_stored():
    kernel = metal_kernel("unwritten", [], ["y"], "threadgroup float t = 0.0f; y[0] = t;")
    with pytest.raises(SimulatorError, match="unwritten"):
        kernel(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
