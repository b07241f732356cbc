"""MetalLibrary: whole Metal sources with includes, function constants, structures and memory sized by the launch."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.simulator import CompileError, MetalLibrary, SimulatorError, mode

SOURCE = """
#include <metal_stdlib>
#include "scale.h"
using namespace metal;

constant bool negate [[function_constant(0)]];
constant float extra [[function_constant(1)]];
constant float more = is_function_constant_defined(extra) ? extra : 0.5f;

template <typename T>
[[kernel]] void scaled(
    const device T* x [[buffer(0)]],
    device T* y [[buffer(2)]],
    constant Scale& scale [[buffer(1)]],
    const device T* shift [[buffer(3), function_constant(negate)]],
    uint i [[thread_position_in_grid]]) {
  Scale s = scale;
  T v = T(s.factor * float(x[i]) + more);
  y[i] = negate ? T(shift[i] - v) : v;
}
template [[host_name("scaled_float")]] [[kernel]] decltype(scaled<float>) scaled<float>;
template [[host_name("scaled_half")]] [[kernel]] void scaled<half>(
    const device half*, device half*, constant Scale&, const device half*, uint);

kernel void reversed(device int* x, threadgroup int* shared [[threadgroup(0)]], uint i [[thread_index_in_threadgroup]],
                     uint n [[threads_per_threadgroup]]) {
  shared[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x[i] = shared[n - 1 - i];
}
"""
HEADER = """
#pragma once
struct Scale { int unused; float factor; };
"""
SCALE = np.array((0, 3.0), np.dtype([("unused", np.int32), ("factor", np.float32)]))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("include")
    (folder / "scale.h").write_text(HEADER)
    return MetalLibrary(SOURCE, [folder], name="scale.metal")


@pytest.mark.parametrize("simulator_mode", ("fast", "check"))
@pytest.mark.parametrize("name, dtype", (("scaled_float", mx.float32), ("scaled_half", mx.float16)))
def test_a_template_kernel_with_a_structure_and_constants(library, simulator_mode, name, dtype):
    x = mx.arange(70).astype(dtype)
    with mode(simulator_mode):
        (y,) = library.kernel(name, {"negate": False})([x, SCALE, ((70,), dtype)], (70, 1, 1), (32, 1, 1))
        (z,) = library.kernel(name, {0: True, 1: 2.0})([x, SCALE, ((70,), dtype), 2 * x], (70, 1, 1), (32, 1, 1))
    assert y.dtype == dtype
    assert mx.array_equal(y, 3 * x + 0.5)
    assert mx.array_equal(z, 2 * x - (3 * x + 2))


def test_any_instance_of_a_template_by_its_arguments(library):
    x = mx.arange(70)
    (y,) = library.kernel("scaled<int>", {"negate": False})([x, SCALE, ((70,), mx.int32)], (70, 1, 1), (32, 1, 1))
    assert mx.array_equal(y, 3 * x)
    for name in ("scaled", "reversed<int>", "missing<int>"):
        with pytest.raises(ValueError, match="There is no kernel"):
            library.kernel(name)


@pytest.mark.parametrize("simulator_mode", ("fast", "check"))
def test_threadgroup_memory_of_the_launch_and_a_buffer_written_in_place(library, simulator_mode):
    x = np.arange(48, dtype=np.int32)
    with mode(simulator_mode):
        assert library.kernel("reversed")([x], (48, 1, 1), (48, 1, 1), {0: 48 * 4}) == []
    np.testing.assert_array_equal(x, np.arange(48)[::-1])


def test_too_little_threadgroup_memory_is_reported(library):
    with mode("check"), pytest.raises(SimulatorError, match="'shared' at byte 128 .it has 128 bytes"):
        library.kernel("reversed")([np.zeros(48, np.int32)], (48, 1, 1), (48, 1, 1), {0: 128})


def test_a_report_names_the_file_and_its_line(tmp_path):
    (tmp_path / "outside.h").write_text("METAL_FUNC void f(device float* x) {\n  x[100] = 1;\n}\n")
    source = '#include "outside.h"\nkernel void g(device float* x [[buffer(0)]]) { f(x); }\n'
    with (
        mode("check"),
        pytest.raises(SimulatorError, match=r"out of bounds: 'x' at index 100.*x\[100\] = 1;.*outside.h:2"),
    ):
        MetalLibrary(source, [tmp_path]).kernel("g")([np.zeros(4, np.float32)], (1, 1, 1), (1, 1, 1))


def test_a_literal_in_a_template_is_a_float():
    source = "template <typename T> T tenth(T x) { return 0.1 * x; }\n"
    source += "kernel void f(device float* x [[buffer(0)]]) { x[0] = tenth(x[0]); }\n"
    x = np.full(1, 9, np.float32)
    MetalLibrary(source).kernel("f")([x], (1, 1, 1), (1, 1, 1))
    assert x[0] == np.float32(0.1) * np.float32(9) != np.float32(0.1 * 9)


@pytest.mark.parametrize("language, wanted", (("3.1", 310), ("4.0", 400)))
def test_the_language_is_known_to_the_source(language, wanted):
    source = "kernel void f(device int* x [[buffer(0)]]) { x[0] = __METAL_VERSION__; }\n"
    x = np.zeros(1, np.int32)
    MetalLibrary(source, language=language).kernel("f")([x], (1, 1, 1), (1, 1, 1))
    assert x[0] == wanted


@pytest.mark.parametrize("kind", ["uint3", "metal::half2", "unsigned int", "ulong", "bool", "Mode", "Count"])
def test_function_constants_are_numbers(kind):
    text = f"""#include <metal_stdlib>
        using namespace metal;
        enum Mode : uint {{ A, B }};
        typedef ushort Count;
        constant {kind} k [[function_constant(65535)]];
        kernel void f(device float* y [[buffer(0)]]) {{ y[0] = sizeof(k); }}
        """
    MetalLibrary(text).check()


def test_bad_input(library):
    kernel = library.kernel("scaled_float", {"negate": False})
    x, grid = mx.zeros(4), ((4, 1, 1), (4, 1, 1))
    with pytest.raises(ValueError, match="There is no kernel 'missing'.*scaled_float"):
        library.kernel("missing")
    with pytest.raises(ValueError, match="There is no function constant 7; there are negate .0., extra .1."):
        library.kernel("scaled_float", {7: True})
    with pytest.raises(ValueError, match="uses the function constant 'negate', which has no value"):
        library.kernel("scaled_float")({0: x, 1: SCALE, 2: ((4,), mx.float32)}, *grid)
    with pytest.raises(ValueError, match=r"needs buffer 1 \('scale'\)"):
        kernel({0: x, 2: ((4,), mx.float32)}, *grid)
    with pytest.raises(ValueError, match="has no buffer 9"):
        kernel({0: x, 1: SCALE, 2: ((4,), mx.float32), 9: x}, *grid)
    with pytest.raises(TypeError, match="may write buffer 2.*pass a numpy array or a pair"):
        kernel([x, SCALE, x], *grid)
    with pytest.raises(ValueError, match="threadgroup_memory has no size"):
        library.kernel("reversed")([np.zeros(4, np.int32)], *grid)
    with pytest.raises(ValueError, match="language must be a version"):
        MetalLibrary("", language="new")
    with pytest.raises(CompileError, match="line 1.*unknown attribute"):
        MetalLibrary("kernel void f(device int* x [[bufer(0)]]) {}\n")
