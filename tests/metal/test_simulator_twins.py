"""Every refusal has a legal twin that differs little: what the rules must catch, and what they must leave alone."""

import mlx.core as mx
import numpy as np
import pytest
from programs import compiled
from twin_programs import LEGAL, NAMES, TWINS

from mlx_flash.simulator import CompileError, MetalLibrary, metal_kernel

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


@pytest.mark.parametrize("rule", TWINS)
def test_refused(rule):
    message, program, _ = TWINS[rule]
    with pytest.raises(CompileError, match=message) as caught:
        compiled(program)
    assert "line " in str(caught.value)


@pytest.mark.parametrize("rule", TWINS)
def test_its_twin_is_accepted(rule):
    compiled(TWINS[rule][2])


@pytest.mark.parametrize("kind", LEGAL)
def test_legal(kind):
    compiled(LEGAL[kind])


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_kernels(kind):
    text, names = NAMES[kind]
    library = MetalLibrary(HEAD + text)
    assert library.kernel_names == names
    library.check()


def test_the_kernel_of_each_name_runs():
    """Two kernels of one name in two namespaces, and the instances of a template in one."""
    library = MetalLibrary(HEAD + NAMES["namespaces"][0])
    for name, dtype, wanted in (("n::f", mx.float32, 1), ("f", mx.float32, 2), ("g_int", mx.int32, 1)):
        assert library.kernel(name)([((1,), dtype)], (1, 1, 1), (1, 1, 1))[0].item() == wanted
    library = MetalLibrary(HEAD + NAMES["specialised kernel"][0])
    assert library.kernel("f_half")([((1,), mx.float16)], (1, 1, 1), (1, 1, 1))[0].item() == 2


def test_buffers_by_the_names_of_enumerators():
    """A name that is not a number does not silently mean buffer 0."""
    program = TWINS["buffer of an unknown number"][2]
    kernel = MetalLibrary(HEAD + program).kernel("f")
    made = kernel({2: ((1,), mx.float32), 1: np.array([7], np.float32)}, (1, 1, 1), (1, 1, 1))
    assert made[0].item() == 7


def test_a_comment_beyond_ascii_is_a_warning():
    kernel = metal_kernel("comment", [], ["y"], "// one thread \u2014 no tail\ny[0] = 1; /* \u00b5s */")
    call = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    with pytest.warns(UserWarning, match="line 3: a comment holds '\u2014', which is not ASCII"):
        assert kernel(inputs=[], **call)[0].item() == 1


@pytest.mark.parametrize("body", ["float \u00b5 = 1; y[0] = \u00b5;", 'assert("\u00b5"); y[0] = 1;'])
def test_code_and_strings_beyond_ascii_are_errors(body):
    kernel = metal_kernel("code", [], ["y"], body)
    call = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32])
    with pytest.raises(CompileError, match="'\u00b5' is not ASCII"):
        kernel(inputs=[], **call)
    with pytest.raises(CompileError, match="'\u00b5' is not ASCII"):
        MetalLibrary(HEAD + f"kernel void f(device float* y [[buffer(0)]]) {{ {body} }}")


def test_a_library_with_a_comment_beyond_ascii():
    with pytest.warns(UserWarning, match="line 1: a comment"):
        MetalLibrary("// \u2014\n" + HEAD + "kernel void f(device float* y [[buffer(0)]]) { y[0] = 1; }").check()
