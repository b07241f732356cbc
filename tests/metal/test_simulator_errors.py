"""Bad input is refused in MLX's own words where MLX has them; what the simulator cannot do, it says in one sentence."""

import re
import subprocess
import sys
from types import ModuleType

import mlx.core as mx
import pytest

from mlx_flash.metal.cpu import compiler
from mlx_flash.simulator import (
    CompileError,
    MetalLibrary,
    SimulatorError,
    ToolchainError,
    metal_kernel,
    mode,
    schedule,
)

CALL = dict(grid=(8, 1, 1), threadgroup=(8, 1, 1), output_shapes=[(8,)], output_dtypes=[mx.float32])
SOURCE = "uint i = thread_position_in_grid.x; y[i] = x[i];"


def copy_kernel(**changes):
    return metal_kernel(**{"name": "copy", "input_names": ["x"], "output_names": ["y"], "source": SOURCE, **changes})


def call(kernel=None, **changes):
    return (kernel or copy_kernel())(**{"inputs": [mx.zeros(8)], **CALL, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": []}, ValueError, "Expected `inputs` to have size 1 but got size 0."),
        ({"output_shapes": []}, ValueError, "Expected `output_shapes` to have size 1 but got size 0."),
        ({"output_dtypes": [mx.float32] * 2}, ValueError, "Expected `output_dtypes` to have size 1 but got size 2."),
        (
            {"template": [("T", 1.5)]},
            ValueError,
            "Invalid template argument. Must be `mlx.core.Dtype`, `int` or `bool`.",
        ),
        ({"stream": mx.cpu}, ValueError, "Only supports the GPU."),
        ({"grid": (0, 1, 1)}, ValueError, "`grid` must be at least 1"),
        ({"threadgroup": (8, 0, 1)}, ValueError, "`threadgroup` must be at least 1"),
        ({"grid": (8, 1)}, TypeError, "`grid` must be three integers"),
        (
            {"threadgroup": (1025, 1, 1)},
            ValueError,
            r"Thread group size \(1025\) is greater than  the maximum allowed threads per threadgroup \(1024\).",
        ),
    ],
)
def test_calls(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_names": []}, "Must specify at least one output."),
        ({"compile_options": 3}, "Expected `compile_options` to be a dict."),
        ({"compile_options": {"fast": True}}, "Unknown compile option `fast`."),
        ({"compile_options": {"math_mode": "quick"}}, "Expected math_mode to be 'safe', 'relaxed', or 'fast'."),
    ],
)
def test_kernels(changes, message):
    with pytest.raises(ValueError, match=message):
        copy_kernel(**changes)


def test_the_default_stream_is_no_choice_of_the_cpu():
    """Code for Macs passes it, and finds a GPU there."""
    for stream in (None, mx.default_device(), mx.default_stream(mx.default_device())):
        assert call(stream=stream)[0].tolist() == [0] * 8
    with pytest.raises(ValueError, match="Only supports the GPU"):
        call(stream=mx.new_stream(mx.cpu))


def test_calls_are_keyword_only():
    with pytest.raises(TypeError):
        copy_kernel()([mx.zeros(8)])


def test_the_kernels_own_limit_of_threads():
    kernel = copy_kernel(header="[[max_total_threads_per_threadgroup(4)]]\n")
    with pytest.raises(ValueError, match=r"Thread group size \(8\) .* threadgroup \(4\)"):
        call(kernel)


def test_compile_errors_name_the_metal_line():
    with pytest.raises(CompileError) as caught:
        call(copy_kernel(source="uint i = thread_position_in_grid.x;\n  y[i] = undefined(x[i]);"))
    message = str(caught.value)
    assert "Kernel 'copy'" in message and "undefined(x[i])" in message and "line 6: error" in message
    assert "__" not in message and ".cl" not in message


def test_compile_errors_quote_the_text_as_it_was_written():
    line = "half h = static_cast<bfloat>(x[i] > 0 ? x[i] : 1.0f);"
    with pytest.raises(CompileError) as caught:
        call(copy_kernel(source=f"uint i = thread_position_in_grid.x;\n  {line}\n  y[i] = h;"))
    assert f"\n    {line}\n" in f"{caught.value}\n" and "msl_" not in str(caught.value)


def test_too_many_variables_of_a_thread():
    """The variables are on a stack of the simulator, which must not run into the neighbouring stack."""
    with pytest.raises(CompileError, match="own variables take 12.... bytes, and there are 73728"):
        call(copy_kernel(source=SOURCE + " float a[30000]; a[i * 3000] = x[0]; y[i] = a[i * 2999];"))


def test_template_value_missing():
    with pytest.raises(CompileError, match="undeclared identifier 'N'"):
        call(copy_kernel(source=SOURCE + " y[i] += N;"))


def test_zero_sized_inputs():
    kernel = copy_kernel(source="y[thread_position_in_grid.x] = x_shape[0];")
    assert call(kernel, inputs=[mx.zeros((0, 3))])[0].tolist() == [0] * 8


def test_init_value_and_dtypes():
    kernel = copy_kernel(source="if (thread_position_in_grid.x == 0) y[0] = x[0];")
    for dtype in (mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.uint8):
        (y,) = call(kernel, inputs=[mx.ones(8, dtype=dtype)], output_dtypes=[dtype], init_value=3.0)
        assert y.dtype == dtype and y.tolist() == [1] + [3] * 7


def test_what_is_not_written_shows_in_fast_mode():
    kernel = copy_kernel(source="if (thread_position_in_grid.x == 0) y[0] = x[0];")
    with mode("fast"):
        for dtype in (mx.float32, mx.float16, mx.bfloat16):
            assert (
                mx.isnan(call(kernel, inputs=[mx.zeros(8, dtype=dtype)], output_dtypes=[dtype])[0]).tolist()
                == [False] + [True] * 7
            )


@pytest.mark.parametrize("transform", (mx.compile, mx.vmap))
def test_tracing_is_refused_in_one_sentence(transform):
    with pytest.raises(
        ValueError, match="kernel 'copy' at once and so cannot be traced: call it outside mx.compile and mx.vmap"
    ):
        transform(lambda x: call(inputs=[x])[0])(mx.zeros((8, 8)))


def test_no_gradient_is_made_up():
    with pytest.raises(ValueError, match="Not implemented for CustomKernel"):
        mx.grad(lambda x: call(inputs=[x])[0].sum())(mx.zeros(8))


def test_gradients_through_custom_function():
    @mx.custom_function
    def twice(x):
        return 2 * call(inputs=[x])[0]

    @twice.vjp
    def twice_vjp(primals, cotangents, outputs):
        return 2 * call(inputs=[cotangents])[0]

    assert mx.grad(lambda x: twice(x).sum())(mx.ones(8)).tolist() == [2] * 8
    assert mx.grad(lambda x: mx.checkpoint(twice)(x).sum())(mx.ones(8)).tolist() == [2] * 8


def test_no_compiler(monkeypatch):
    def nothing():
        raise ToolchainError("The Metal simulator needs clang")

    monkeypatch.setattr(compiler, "toolchain", nothing)
    compiler._sources_hash.cache_clear()
    try:
        with pytest.raises(ToolchainError, match="needs clang"):
            call(copy_kernel(source=SOURCE + " // never built before"))
    finally:
        compiler._sources_hash.cache_clear()


def test_finding_no_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ziglang", None)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match=r'pip install "mlx-flash-attention\[simulator\]"'):
        compiler.toolchain.__wrapped__()


@pytest.mark.parametrize("file", (True, False), ids=("not executable", "missing"))
def test_a_damaged_compiler_counts_as_none(monkeypatch, tmp_path, file):
    """As unpacked without modes, or what remains of a package that was removed: a folder is a namespace to Python."""
    ziglang = ModuleType("ziglang")
    ziglang.__path__ = [str(tmp_path)]
    if file:
        (tmp_path / "zig").touch(mode=0o644)
    monkeypatch.setitem(sys.modules, "ziglang", ziglang)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match=rf"{re.escape(str(tmp_path / 'zig'))}.* cannot be executed: install it"):
        compiler.toolchain.__wrapped__()
    monkeypatch.setattr(compiler.shutil, "which", lambda name: "/own/clang" if name == "clang" else None)
    found = subprocess.CompletedProcess([], 0, "clang version 19.1.0", "")
    monkeypatch.setattr(compiler.subprocess, "run", lambda *_, **__: found)
    assert compiler.toolchain.__wrapped__()[0] == ("/own/clang",)


def test_unknown_modes():
    for block in (lambda: mode("slow"), lambda: schedule("sideways"), lambda: mode([]), lambda: schedule({})):
        with pytest.raises(ValueError, match="must be one of"), block():
            pass


@pytest.mark.parametrize("argument", ("name", "input_names", "output_names", "source", "header"))
@pytest.mark.parametrize("value", (None, b"x", 3, mx.array(1.0), [None]), ids=str)
def test_texts_and_names_are_strings(argument, value):
    arguments = {"name": "k", "input_names": ["x"], "output_names": ["y"], "source": "y[0] = 1;"} | {argument: value}
    with pytest.raises(TypeError, match=f"`{argument}` must be a (string|list of strings), not "):
        metal_kernel(**arguments)
    if argument == "source":
        with pytest.raises(TypeError, match="has to be a string|must be a string"):
            MetalLibrary(value)


def test_a_report_does_not_spoil_the_next_launch():
    with mode("check"), pytest.raises(SimulatorError):
        call(copy_kernel(source=SOURCE.replace("x[i]", "x[i + 9]")))
    assert call()[0].tolist() == [0] * 8
