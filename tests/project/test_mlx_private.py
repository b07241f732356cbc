"""Each fact of mlx_flash/common/mlx_private.py, with the MLX installed: a release that changes one fails one test.

It uses nothing else of the package and of the tests, so that it can be run against any release of MLX.
"""

import os
import sys
import tempfile
import threading

import mlx.core as mx
import pytest

from mlx_flash.common import mlx_private

X = mx.array([1.0, 2.0, 3.0])


def seen(question, start) -> bool:
    """The answer to a question inside a trace that `start` begins for a function."""
    answers = []

    def function(x):
        answers.append(question())
        return x.sum()

    start(function)
    assert not question(), "and outside again"
    return answers[0]


def exported(function, **options):
    with tempfile.TemporaryDirectory() as folder:
        mx.export_function(os.path.join(folder, "f.mlxfn"), function, X, **options)


TRACES = {
    "grad": lambda f: mx.grad(f)(X),
    "value_and_grad": lambda f: mx.value_and_grad(f)(X),
    "vjp": lambda f: mx.vjp(f, [X], [mx.array(1.0)]),
    "jvp": lambda f: mx.jvp(f, [X], [X]),
    "vmap": lambda f: mx.vmap(f)(X[:, None]),
    "compile": lambda f: mx.compile(f)(X),
    "export": exported,
    "gradient of a checkpoint": lambda f: mx.grad(mx.checkpoint(f))(X),
}
SHAPELESS = {
    "compile": lambda f: mx.compile(f, shapeless=True)(X),
    "export": lambda f: exported(f, shapeless=True),
    "gradient inside": lambda f: mx.compile(mx.grad(f), shapeless=True)(X),
    "map inside": lambda f: mx.compile(mx.vmap(f), shapeless=True)(X[:, None]),
}
PLAIN = {"call": lambda f: f(X), "checkpoint": lambda f: mx.checkpoint(f)(X)}


@pytest.mark.parametrize("name", TRACES)
def test_in_trace(name):
    assert seen(mlx_private.in_trace, TRACES[name])


@pytest.mark.parametrize("name", SHAPELESS)
def test_in_trace_without_shapes(name):
    assert seen(mlx_private.in_trace, SHAPELESS[name])


@pytest.mark.parametrize("name", PLAIN)
def test_not_in_a_trace(name):
    assert not seen(mlx_private.in_trace, PLAIN[name])


def test_in_trace_after_one_that_failed():
    def fails(x):
        raise KeyError

    with pytest.raises(KeyError):
        mx.grad(fails)(X)
    assert not mlx_private.in_trace()


def test_in_trace_is_cautious_where_it_cannot_know():
    mx.disable_compile()
    try:
        assert mlx_private.in_trace()
    finally:
        mx.enable_compile()
    assert not mlx_private.in_trace()
    answers = []
    worker = threading.Thread(target=lambda: answers.append(mlx_private.in_trace()))
    worker.start()
    worker.join()
    assert answers == [True]


def test_in_trace_where_it_was_first_asked_without_compilation(monkeypatch):
    """An array that was not traced then is not mistaken for a placeholder later."""
    monkeypatch.setattr(mlx_private, "_probe", None)
    mx.disable_compile()
    try:
        assert mlx_private.in_trace()
    finally:
        mx.enable_compile()
    assert seen(mlx_private.in_trace, TRACES["grad"]) and not mlx_private.in_trace()


@pytest.mark.parametrize("name", SHAPELESS)
def test_in_shapeless_trace(name):
    assert seen(mlx_private.in_shapeless_trace, SHAPELESS[name])


@pytest.mark.parametrize("name", [*TRACES, *PLAIN])
def test_not_in_a_shapeless_trace(name):
    assert not seen(mlx_private.in_shapeless_trace, (TRACES | PLAIN)[name])


def test_a_trace_belongs_to_its_thread():
    answers = []

    def ask():
        answers.append((mlx_private.in_shapeless_trace(), mlx_private.in_export_trace()))

    def function(x):
        worker = threading.Thread(target=ask)
        worker.start()
        worker.join()
        return x.sum()

    exported(function, shapeless=True)
    assert answers == [(False, False)]


@pytest.mark.skipif(mx.metal.is_available(), reason="MLX with Metal does not tell")
def test_in_export_trace():
    assert seen(mlx_private.in_export_trace, exported)
    for start in (*TRACES.values(), *PLAIN.values()):
        if start is not exported:
            assert not seen(mlx_private.in_export_trace, start)


def test_a_custom_function_hides_what_is_inside_from_the_next_transformation_only():
    """MLX maps the operations inside before it asks the rule; behind stop_gradient, mx.jvp asks the rule at once."""
    asked = []
    inner = mx.custom_function(lambda x: -x)
    inner.vmap(lambda arrays, axes: (asked.append("inner") or -arrays, axes))
    inner.jvp(lambda primals, tangents: (asked.append("inner"), -tangents)[1])
    inner.vjp(lambda primals, cotangents, outputs: -cotangents)

    def custom(function):
        outer = mx.custom_function(function)
        outer.vmap(lambda arrays, axes: (asked.append("outer") or -arrays, axes))
        outer.jvp(lambda primals, tangents: (asked.append("outer"), -tangents)[1])
        return outer

    mx.vmap(custom(lambda x: inner(x)))(X)
    assert asked == ["inner", "outer"]
    asked.clear()
    mx.jvp(custom(lambda x: inner(mx.stop_gradient(x))), [X], [X])
    assert asked == ["outer"]


def test_says_traced():
    def evaluates(x):
        with pytest.raises(ValueError) as caught:
            mx.eval(x)
        assert mlx_private.says_traced(caught.value)
        return x

    mx.compile(evaluates)(X)
    mx.vmap(evaluates)(X)
    assert not mlx_private.says_traced(ValueError("something else"))


def kernel(source="b[thread_position_in_grid.x] = a[0];", header=""):
    return mx.fast.metal_kernel(name="fact", input_names=["a"], output_names=["b"], source=source, header=header)


def text_of(array: mx.array, **parts) -> str:
    """MLX's text of a kernel, read from the file of an export; verbose=True prints it too."""
    call = kernel(**parts)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "f.mlxfn")
        mx.export_function(path, lambda a: launched(call, a), array)
        with open(path, "rb") as file:
            return file.read().decode("latin-1")


def launched(call, array, **options):
    return call(
        inputs=[array], output_shapes=[(8,)], output_dtypes=[mx.float32], grid=(8, 1, 1), threadgroup=(8, 1, 1),
        **options,
    )[0]  # fmt: skip


@pytest.mark.skipif(mx.metal.is_available(), reason="a Metal GPU runs it")
def test_says_no_metal():
    with pytest.raises(RuntimeError) as caught:
        launched(kernel(), X)
    assert mlx_private.says_no_metal(caught.value)


@pytest.mark.parametrize("size", (1, mlx_private.CONSTANT_BELOW - 1, mlx_private.CONSTANT_BELOW, 9))
def test_the_constant_address_space(size):
    text = text_of(mx.zeros((size,)))
    space = "constant" if size < mlx_private.CONSTANT_BELOW else "device"
    assert f"const {space} float* a" in text and "const constant float& a" in text_of(mx.array(1.0))


def test_kernel_attribute():
    attribute = mlx_private.kernel_attribute("max_total_threads_per_threadgroup(64)")
    assert f"// header\n{attribute}[[kernel]] void" in text_of(X, header=f"// header\n{attribute}")


def test_printed_source(capfd):
    exported(lambda a: launched(kernel(), a, verbose=True))
    sys.stdout.flush()
    text = mlx_private.printed_source(capfd.readouterr().out)
    assert text is not None and "[[kernel]] void" in text and "```" not in text
    assert text.endswith("\n}\n"), "one end of line, as in the text that MLX compiles, without that of the print"
    assert mlx_private.printed_source("nothing") is None


def copies(make) -> int:
    """Bytes that making an array takes beyond its input."""
    mx.eval(X)
    before = mx.get_active_memory()
    array = make()
    mx.eval(array)
    return mx.get_active_memory() - before


def test_views_copy_only_what_is_not_contiguous():
    whole = mx.zeros((64, 128))
    parts = {"slice": whole[8:24], "columns": whole[:, 32:64], "transposed": whole.T, "steps": whole[:, ::2]}
    mx.eval(whole, parts)
    for name, part in parts.items():
        taken = copies(lambda part=part: mlx_private.as_bytes(part))
        assert (taken == 0) == (name in ("slice", "columns")), name
        assert mlx_private.as_bytes(part).size == 4 * part.size
        assert mx.array_equal(mlx_private.contiguous(part), part)
    assert copies(lambda: mlx_private.contiguous(whole)) == 0 < copies(lambda: mlx_private.contiguous(whole.T))


@pytest.mark.long
def test_an_order_bounds_the_memory():
    """Twenty large products: one after the other they need far less at once."""

    def peak(ordered: bool) -> int:
        base, done, sums = mx.zeros((256, 1024)), mx.zeros(()), []
        mx.eval(base, done)
        mx.reset_peak_memory()
        before = mx.get_active_memory()  # what other tests hold is in the peak too
        for n in range(20):
            (start,) = mlx_private.after([done], [base]) if ordered else (base,)
            large = mx.exp(start + n)
            done = (large @ large.T).sum()
            sums.append(done)
        mx.eval(mx.stack(sums))
        return mx.get_peak_memory() - before

    assert peak(ordered=True) < 0.7 * peak(ordered=False)


@pytest.mark.parametrize("letter", "pgsd")
def test_chip_letter(letter):
    assert mlx_private.chip_letter(f"applegpu_g16{letter}") == letter


@pytest.mark.skipif(not mx.metal.is_available(), reason="no Metal GPU")
def test_this_chip_has_a_known_letter():
    """The GPU of a virtual machine has an architecture of its own, such as air64_v27."""
    architecture = mx.device_info(mx.gpu)["architecture"]
    assert not architecture.startswith("applegpu") or mlx_private.chip_letter(architecture) in "pgsd"


@pytest.mark.parametrize(
    "code, wanted",
    [
        (b"", "553e93901e462a6e"),
        (b"a", "454ddee488c1ed6b"),
        (b"mlx_flash", "335636c5e156ff50"),
        (b"0123456789abcdef", "934b0d760642ed86"),
        (b"compiled attention kernels", "225965710c5ccbc2"),
    ],
)
def test_compiled_kernels_are_named_by_the_hash_of_libstdcxx(code, wanted):
    """Values of std::hash<std::string> compiled by GCC for 64 bits."""
    assert mlx_private.compiled_name("kernel", code) == f"kernel_{wanted}"


def test_the_folder_of_compiled_kernels(monkeypatch):
    """The folder is named by MLX's own variable, or by those of std::filesystem::temp_directory_path."""
    for name in ("MLX_PTX_CACHE_DIR", "TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert str(mlx_private.compiled_kernels()) == f"/tmp/mlx/{mx.__version__}/ptx"
    monkeypatch.setenv("TEMP", "/later")
    monkeypatch.setenv("TMPDIR", "/first")
    assert str(mlx_private.compiled_kernels()) == f"/first/mlx/{mx.__version__}/ptx"
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", "/own")
    assert str(mlx_private.compiled_kernels()) == "/own"
