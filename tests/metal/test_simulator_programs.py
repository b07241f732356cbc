"""What small programs write, by numpy; sentences for what no target here has, and for names that mean two things."""

import mlx.core as mx
import numpy as np
import pytest
from pattern_programs import PATTERNS
from value_programs import VALUES, N, X

from mlx_flash.simulator import CompileError, MetalLibrary, metal_kernel, mode

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
KERNEL = """
kernel void values(
    device const float* x [[buffer(0)]], device float* y [[buffer(1)]], uint i [[thread_position_in_grid]],
    uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint sg [[simdgroup_index_in_threadgroup]]) {{ {} }}"""
PROGRAMS = VALUES | PATTERNS


@pytest.mark.parametrize("name", PROGRAMS)
def test_values(name):
    definitions, body, wanted = PROGRAMS[name]
    kernel = MetalLibrary(HEAD + definitions + KERNEL.format(body)).kernel("values")
    with mode("check"):
        (y,) = kernel([X, ((N,), mx.float32)], (N, 1, 1), (N, 1, 1))
    half = "half" in name  # rounded in between
    np.testing.assert_allclose(np.array(y), wanted, rtol=2e-3 if half else 2e-5, atol=1e-5)


# Metal that compute kernels may have on a GPU, in the body of a kernel or among its parameters
ABSENT = {
    "textures or samplers": [
        "kernel void f(texture2d<float> t [[texture(0)]], device float* y [[buffer(0)]]) { y[0] = t.read(0).x; }",
        "kernel void f(texture3d<half, access::write> t [[texture(0)]], uint3 p [[thread_position_in_grid]]) {}",
        "kernel void f(depth2d<float> t [[texture(0)]], device float* y [[buffer(0)]]) { y[0] = 1; }",
        "kernel void f(texture_buffer<uint> t [[texture(0)]], device float* y [[buffer(0)]]) { y[0] = 1; }",
        "kernel void f(sampler s [[sampler(0)]], device float* y [[buffer(0)]]) { y[0] = 1; }",
        "constexpr sampler s(filter::linear); kernel void f(device float* y [[buffer(0)]]) { y[0] = 1; }",
    ],
    "rays": [
        "kernel void f(device float* y [[buffer(0)]]) { raytracing::ray r; y[0] = 1; }",
        "kernel void f(instance_acceleration_structure a [[buffer(0)]], device float* y [[buffer(1)]]) { y[0] = 1; }",
    ],
    "tables of functions or command buffers": [
        "kernel void f(visible_function_table<float(float)> t [[buffer(0)]], device float* y [[buffer(1)]]) {}",
        "kernel void f(command_buffer c [[buffer(0)]]) {}",
    ],
    "imageblocks": ["kernel void f(imageblock<half4> b, ushort2 p [[thread_position_in_threadgroup]]) {}"],
    "stages that draw": [
        "vertex float4 f(uint i [[vertex_id]]) { return float4(1); }",
        "struct In { float4 at [[position]]; }; fragment float4 f(In in [[stage_in]]) { return in.at; }",
    ],
}


@pytest.mark.parametrize("what, program", [(what, one) for what, programs in ABSENT.items() for one in programs])
def test_what_no_target_has_is_named(what, program):
    sentence = f"cannot be run:\nline 3: error: there are no {what} here: compute kernels work on buffers"
    with pytest.raises(CompileError, match=sentence):
        MetalLibrary(HEAD + program)


def test_names_of_what_is_absent_are_free():
    """Members, variables and types of a source's own may have them."""
    text = (
        "struct sampler { float position, color; }; struct In { sampler texture2d; };\n"
        "float depth(float position, float sampler) { return position + sampler; }\n"
        "kernel void f(device float* y [[buffer(0)]]) { In in; in.texture2d = sampler{1, 2}; sampler s = in.texture2d; "
        "float imageblock = 3, command_buffer = imageblock; y[0] = depth(s.color, s.position) + command_buffer; }"
    )
    assert MetalLibrary(text).kernel("f")([((1,), mx.float32)], (1, 1, 1), (1, 1, 1))[0].item() == 6


# What else has the name of a kernel: (definitions, a call that gives 3); only calls of the kernel are refused.
NAMESAKES = {
    "parameter": (
        "template <typename F> float twice(F add, float v) { return add(add(v)); } "
        "struct S { float operator()(float a) const { return a + 1; } };",
        "twice(S(), 1)",
    ),
    "variable": ("struct S { float operator()(float a) const { return a + 1; } };", "0; S add; y[0] = add(2)"),
    "function of a namespace": (
        "namespace own { inline float add(float v) { return v + 1; } "
        "inline float twice(float v) { return add(add(v)); } }",
        "own::twice(1)",
    ),
    "method": (
        "struct T { void add(float v) { n += v; } void more() { add(1); } float n; }; "
        "inline float twice(float v) { T t{v}; t.add(1); t.more(); return t.n; }",
        "twice(1)",
    ),
    "overload": ("inline float add(float a, float b) { return a + b; }", "add(1, 2)"),
}


@pytest.mark.parametrize("definitions, call", NAMESAKES.values(), ids=NAMESAKES)
def test_names_that_a_kernel_shares(definitions, call):
    text = f"{definitions} kernel void add(device float* y [[buffer(0)]]) {{ y[0] = {call}; }}"
    kernel = MetalLibrary(HEAD + text).kernel("add")
    assert kernel([((1,), mx.float32)], (1, 1, 1), (1, 1, 1))[0].item() == 3


@pytest.mark.parametrize(
    "function, body",
    [
        ("missing", "y[0] = missing(1.0f);"),
        ("own::missing", "y[0] = own::missing(2);"),
        ("S::missing", "S s; y[0] = s.missing(1);"),
        ("S::kept", "const S s{}; y[0] = s.kept(1);"),
        ("own::T::missing", "y[0] = own::T::missing(1);"),
    ],
)
def test_a_function_that_is_never_defined(function, body):
    header = "float missing(float a); struct S { float missing(float a); float kept(float a) const; }; "
    header += "namespace own { float missing(int a); struct T { static float missing(int a); }; }"
    kernel = metal_kernel("undefined", [], ["y"], body, header=header)
    call = dict(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    sentence = f"the function '{function}' is called and never defined"
    with pytest.raises(CompileError, match=sentence):
        kernel(**call)
    text = f"{header} kernel void f(device float* y [[buffer(0)]]) {{ {body} }}"
    with pytest.raises(CompileError, match=sentence):
        MetalLibrary(text).kernel("f")([((1,), mx.float32)], (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(
    "message, body",
    [
        ("behind the last line: error: expected '}'", "if (true) {"),
        ("identifier 'as_float'\n", "y[0] = as_float(1);"),  # and no name of the simulator's own is suggested
        ("Metal has no namespace std", "using namespace std;"),
    ],
)
def test_messages(message, body):
    kernel = metal_kernel("messages", [], ["y"], body)
    with pytest.raises(CompileError, match=message) as caught:
        kernel(inputs=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    assert "msl_" not in str(caught.value) and "entry" not in str(caught.value)
