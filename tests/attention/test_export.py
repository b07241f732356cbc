"""export_function: functions with attention inside: on any machine, for any GPU family, gradients too."""

import re

import bounds
import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import (
    UnsupportedProblem,
    attention,
    export_function,
    exporter,
    quantized_attention,
    use_backend,
    vmap,
)  # fmt: skip
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY_DELTA, FORWARD
from mlx_flash.problem.problem import problem_of
from mlx_flash.transforms import installed

SHAPES = ((2, 4, 33, 64), (2, 2, 65, 64), (2, 2, 65, 64))
IDS = (mx.arange(33) // 20, mx.arange(65) // 20)
# Options of attention, as a function of the fourth array of the exported function where there is one.
CALLS = {
    "plain": (None, lambda: {}),
    "causal": (None, lambda: {"causal": True}),
    "window": (None, lambda: {"window": (16, 4), "softcap": 20.0}),
    "segments": (None, lambda: {"segments": IDS, "causal": True}),
    "bool": ("bool", lambda mask: {"mask": mask}),
    "bias": ("float32", lambda mask: {"mask": mask, "causal": True}),
}
APPLE = [family.name for family in FAMILIES.values() if not family.tensor]
GRADIENTS = (FORWARD, BACKWARD_QUERY_DELTA, BACKWARD_KEY_VALUE)


def drawn(extra) -> list[mx.array]:
    generator = np.random.default_rng(0)
    arrays = [mx.array(generator.standard_normal(shape), mx.float32) for shape in SHAPES]
    if extra is not None:
        numbers = generator.standard_normal((33, 65))
        arrays.append(mx.array(numbers > -1) if extra == "bool" else mx.array(numbers, mx.float32))
    return arrays


def forward(options):
    return lambda q, k, v, *rest: attention(q, k, v, **options(*rest))


def gradients(options, count: int):
    def loss(*arrays):
        return mx.square(forward(options)(*arrays)).sum()

    def function(*arrays):
        value, found = mx.value_and_grad(loss, argnums=tuple(range(count)))(*arrays)
        return [value, *found]

    return function


def both(name: str):
    """The arrays of a call, and what is exported of it: its output, and its loss with all gradients."""
    extra, options = CALLS[name]
    arrays = drawn(extra)
    return arrays, (forward(options), gradients(options, 4 if extra == "float32" else 3))


def loads_anywhere(path) -> str:
    """A copy whose kernels are meant for the CPU: MLX loads a file only where its devices are, and checks no more."""
    kernels, streams = path.read_bytes(), (b"\xff\xff\xff\xff\x01\0\0\0", bytes(8))
    copy = path.with_suffix(".cpu.mlxfn")
    copy.write_bytes(kernels.replace(*streams))
    return str(copy)


def recorded(path) -> dict[str, str]:
    """Name and Metal text of every kernel in the file, as MLX will compile it. Strings stand behind their length."""
    raw, found = path.read_bytes(), {}
    for place in re.finditer(rb"CustomKernel", raw):
        start, texts = place.end(), []
        for _ in range(2):
            length = int.from_bytes(raw[start : start + 8], "little")
            texts.append(raw[start + 8 : start + 8 + length].decode("ascii"))
            start += 8 + length
        found[texts[0]] = texts[1]
    return found


@pytest.mark.parametrize("family", APPLE)
@pytest.mark.parametrize("name", CALLS)
def test_the_recorded_text_is_ours(tmp_path, name, family):
    """Each kernel of the family once, and no other: its header and body, letter for letter."""
    arrays, functions = both(name)
    extra, options = CALLS[name]
    steps = (*GRADIENTS, *((BACKWARD_MASK,) if extra == "float32" else ()))
    asked = problem_of(*arrays[:3], **options(*arrays[3:]))
    for function, wanted in zip(functions, ((FORWARD,), steps)):
        file = tmp_path / f"{len(wanted)}.mlxfn"
        with use_backend("metal", family):
            export_function(str(file), function, *arrays)
        kernels = [plan_of(step, asked, FAMILIES[family]).kernel for step in wanted]
        texts = recorded(file)
        assert len(texts) == len(kernels)
        for kernel in kernels:
            (text,) = (text for name, text in texts.items() if name.startswith(f"custom_kernel_{kernel.name}_"))
            assert kernel.header.strip() in text and kernel.body.strip() in text


@pytest.mark.parametrize("keys", [40, 5000])
def test_decoding_is_written_too(tmp_path, keys):
    """Few queries against a cache, whose keys are one part or several."""
    q, k = mx.zeros((1, 4, 1, 64), mx.float16), mx.zeros((1, 2, keys, 64), mx.float16)
    with use_backend("metal", "apple9"):
        export_function(str(tmp_path / "decode.mlxfn"), lambda q, k: attention(q, k, k), q, k)
    names = sorted(recorded(tmp_path / "decode.mlxfn"))
    steps = ["combine", "decode"] if keys == 5000 else ["decode"]
    assert [re.match("custom_kernel_flash_([a-z]+)_", name).group(1) for name in names] == steps


def test_a_quantized_cache_is_written_too(tmp_path):
    q, k = mx.zeros((1, 4, 1, 64), mx.float16), mx.quantize(mx.zeros((1, 2, 40, 64), mx.float16))
    with use_backend("metal", "apple9"):
        export_function(str(tmp_path / "cache.mlxfn"), lambda q, *k: quantized_attention(q, k, k), q, *k)
    (text,) = recorded(tmp_path / "cache.mlxfn").values()
    assert "dequantize" in text


@pytest.mark.parametrize("name", CALLS)
def test_what_was_written_loads(tmp_path, name):
    """The same shapes and dtypes come out, from other arrays of the same shapes."""
    arrays, functions = both(name)
    for function in functions:
        file = tmp_path / "function.mlxfn"
        with use_backend("metal", "apple9"):
            export_function(str(file), function, *arrays)
        with use_backend("reference"):
            want = function(*arrays)
        got = mx.import_function(loads_anywhere(file))(*(array + array for array in arrays))
        want = [want] if isinstance(want, mx.array) else want
        assert [(one.shape, one.dtype) for one in got] == [(one.shape, one.dtype) for one in want]
        if not mx.metal.is_available():
            with pytest.raises(RuntimeError, match="only run on GPU"):
                mx.eval(got)


@pytest.mark.parametrize("name", CALLS)
def test_the_graph_computes_the_same(tmp_path, reference, name):
    """Steps are wired as in a call: seen on the backend whose steps can run where they were written."""
    arrays, functions = both(name)
    for function in functions:
        file = str(tmp_path / "function.mlxfn")
        export_function(file, function, *arrays)
        want = function(*arrays)
        want = [want] if isinstance(want, mx.array) else want
        for got, one, title in zip(mx.import_function(file)(*arrays), want, ("O", "dQ", "dK", "dV", "dM")):
            bounds.check(title, got, bounds.float64(one), f"exported {name}", "float32")


def test_layers_maps_and_compiled_functions(tmp_path, reference):
    """Two layers, one of them mapped over the batch, inside mx.compile, with sinks, slopes and LSE; by an exporter."""
    q, k, v = drawn(None)
    sinks, slopes = mx.array([0.5, -1.0, 0.0, 2.0]), mx.array([0.1, 0.2, 0.3, 0.4])

    def model(q, sinks):
        inner = vmap(lambda q, k, v: attention(q[None], k[None], v[None], sinks=sinks)[0])(q, k, v)
        out, lse = attention(inner, k, v, causal=True, alibi_slopes=slopes, return_lse=True)
        return mx.square(out).sum() + mx.where(lse == -mx.inf, 0, lse).sum()

    def step(q, sinks):
        value, grads = mx.compile(mx.value_and_grad(model, argnums=(0, 1)))(q, sinks)
        return [value, *grads]

    file = str(tmp_path / "model.mlxfn")
    with exporter(file, step) as export:
        export(q, sinks)
        export(q[:, :, :20], sinks)
    loaded = mx.import_function(file)
    for queries in (q, q[:, :, :20]):
        for got, want, name in zip(loaded(queries, sinks), step(queries, sinks), ("O", "dQ", "dsinks")):
            bounds.check(name, got, bounds.float64(want), "exported model", "float32")


def test_keywords_metadata_and_functions_without_attention(tmp_path, reference):
    file, calls = str(tmp_path / "function.mlxfn"), []

    def scaled(x, *, by):
        calls.append(x)
        return x * by

    notes = {} if mx.__version__ == "0.32.0" else {"metadata": "notes"}  # an option that came later
    export_function(file, scaled, mx.ones(3), by=mx.array(2.0), **notes)
    assert len(calls) == 1, "a function that has nothing to do with attention is traced once"
    assert mx.import_function(file)(mx.ones(3), by=mx.array(4.0))[0].tolist() == [4, 4, 4]
    q, k, v = drawn(None)
    export_function(file, lambda q, *, k, v: attention(q, k, v), q, k=k, v=v)
    (got,) = mx.import_function(file)(q, k=k, v=v)
    bounds.check("O", got, bounds.float64(attention(q, k, v)), "by keyword", "float32")


without_metal = pytest.mark.skipif(mx.metal.is_available(), reason="a Metal GPU runs what it is given")


@without_metal
@pytest.mark.parametrize("name", ["grad", "vmap"])
def test_transformations_from_before_an_export(tmp_path, name):
    """Made by MLX's own function, they are not seen; made under `installed`, they are, and so they are inside."""
    q = drawn(None)[0]
    q = q[0] if name == "grad" else q
    written, loss = str(tmp_path / "f.mlxfn"), lambda q: attention(q[None], q[None], q[None]).sum()
    with use_backend("metal", "apple9"):
        with pytest.raises(
            UnsupportedProblem, match=r"export_function. fun: a derivative or map that was made outside"
        ):
            export_function(written, getattr(mx, name)(loss), q)
        with installed():
            export_function(written, getattr(mx, name)(loss), q)


@without_metal
def test_kernels_are_written_here_and_not_run():
    q, k, v = drawn(None)
    with use_backend("metal", "apple8") as chosen:
        assert chosen.family is FAMILIES["apple8"]
        for call in (attention, lambda *x: mx.grad(lambda q: attention(q, k, v).sum())(q)):
            with pytest.raises(UnsupportedProblem, match=r"no Metal GPU, so its kernels can be exported .* not run"):
                mx.eval(call(q, k, v))


def test_metal_is_for_apple_families():
    with pytest.raises(UnsupportedProblem, match=r"kernels of sm90 are NVIDIA's. Name a family of Apple"):
        use_backend("metal", "sm90")
