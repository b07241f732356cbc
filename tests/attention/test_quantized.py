"""quantized_attention: packed keys and values are read in place and give what attention gives on their values."""

import itertools

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import address, bits
from cases import Case, expected
from feature_cases import Variant
from machines import across_backends, each_simulated_family
from problems import with_variants

from mlx_flash import UnsupportedProblem, attention, quantized_attention, use_backend, vmap
from mlx_flash.backends import backend as backend_of
from mlx_flash.backends.reference import kernels
from mlx_flash.explanations.explain import inner_problem
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import DECODE, FORWARD
from mlx_flash.problem.problem import problem_of
from mlx_flash.problem.quantization import FORMATS, quantization_of
from mlx_flash.simulator import mode, profile, schedule

DTYPES = ("float32", "float16", "bfloat16")
EVERY = [
    {"mode": name, "bits": width, "group_size": size}
    for name, (widths, sizes) in FORMATS.items()
    for width, size in itertools.product(widths, sizes)
]
NVFP4 = {"mode": "nvfp4", "bits": 4, "group_size": 16}
AFFINE = {"mode": "affine", "bits": 4, "group_size": 64}
PREFILL, TOKEN = 37, 2  # queries: the forward kernel, the decoding kernel


def named(form: dict) -> str:
    return str(quantization_of(**form))


def packed(array: mx.array, form: dict) -> tuple[mx.array, ...]:
    return tuple(mx.quantize(array, **form))


def values(parts, form: dict, dtype) -> mx.array:
    """The dequantized values: scale * code + bias in float32, rounded once."""
    numbers = [part.astype(mx.float32) if form["mode"] == "affine" else part for part in parts[1:]]
    return mx.dequantize(parts[0], *numbers, **form, dtype=mx.float32).astype(dtype)


def operands(case: Case, form: dict):
    """q, packed k and v, and the arrays of the case with their values in the place of k and v."""
    arrays = case.arrays()
    parts = {name: packed(arrays[name], form) for name in "kv"}
    exact = {name: values(parts[name], form, arrays["q"].dtype) for name in "kv"}
    return arrays["q"], parts["k"], parts["v"], arrays | exact


def formats_and_lengths() -> list[tuple[dict, Case]]:
    """Every format in both kernels with alternating types, the commonest in all types, and one with another width of
    v."""
    turns = itertools.cycle(DTYPES)
    found = [
        (form, Case(queries, 331, max(64, form["group_size"]), next(turns), queries == PREFILL, 4, key_heads=2))
        for form, queries in itertools.product(EVERY, (PREFILL, TOKEN))
    ]
    found += [(AFFINE, Case(queries, 1100, 128, dtype, True, 2)) for queries, dtype in ((1, DTYPES[1]), (8, DTYPES[2]))]
    return [*found, (AFFINE, Case(TOKEN, 70, 64, "float16", value_dim=128, group=2))]


CASES = formats_and_lengths()


def waits(number: int) -> bool:
    form, case = CASES[number]
    rare = form["bits"] % 4 != 0  # of these, groups of 64 in turns
    return form["group_size"] != 64 or form["bits"] // 3 % 2 != (case.query_length == TOKEN) if rare else number & 1


# Each is a kernel text of its own: every second one waits for `pytest -m ""`.
IN_TURNS = [
    pytest.param(*parameter.values, id=parameter.id, marks=pytest.mark.slow if waits(parameter.values[1]) else ())
    for parameter in across_backends(range(len(CASES)))
]


@pytest.mark.parametrize("backend, number", IN_TURNS, indirect=["backend"])
def test_accuracy(backend, number):
    form, case = CASES[number]
    q, k, v, arrays = operands(case, form)
    out = quantized_attention(q, k, v, scale=case.scale, causal=case.causal, **form)
    expected(case, arrays).check(O=out)


def test_both_kernels_and_every_format_are_covered():
    met = {(named(form), case.query_length <= 8) for form, case in CASES}
    assert met == set(itertools.product(map(named, EVERY), (False, True)))
    assert {(case.dtype, case.query_length <= 8) for _, case in CASES} == set(itertools.product(DTYPES, (False, True)))


FEATURES = (
    "causal", "window", "bool", "additive", "blocks", "softcap", "sinks", "alibi", "segments", "lse", "score",
    "visible",
)  # fmt: skip


def by_turns(index: int) -> bool:
    """Each feature waits with one of the two kernels."""
    return index % 2 != index // 2 % 2


@pytest.mark.parametrize(
    "backend, case", across_backends(itertools.product(FEATURES, (PREFILL, TOKEN)), by_turns), indirect=["backend"]
)
def test_features_are_those_of_attention(backend, case):
    """nvfp4's values are exact in every type, so that every bit must be the same."""
    name, queries = case
    problem = Case(queries, 600, 16, group=2, key_heads=2, batch=2)
    q, k, v, arrays = operands(problem, NVFP4)
    arguments, _ = feature_cases.build(Variant(problem, (name,), window=(300, 0)))
    want = attention(q, arrays["k"], arrays["v"], **arguments)
    got = quantized_attention(q, k, v, **NVFP4, **arguments)
    pairs = zip(*[result if isinstance(result, tuple) else (result,) for result in (got, want)])
    assert [bits(ours) == bits(theirs) for ours, theirs in pairs] == [True] * (1 + (name == "lse"))


def one_key(codes: np.ndarray, scales: np.ndarray, form: dict, dtype) -> tuple[mx.array, mx.array]:
    """O over a single key, whose value is then O, and what mx.dequantize makes of it."""
    parts = [mx.array(codes)[None, None, None], mx.array(scales)[None, None, None]]
    parts = parts[:1] + [parts[1]] * (2 if form["mode"] == "affine" else 1)
    want = values(parts, form, dtype)
    zeros = packed(mx.zeros(want.shape, dtype), form)
    return quantized_attention(mx.zeros(want.shape, dtype), zeros, parts, **form), want


@pytest.mark.parametrize("form", [form for form in EVERY if form["mode"] != "affine"], ids=named)
def test_every_code_and_scale(backend, form):
    """All codes with ordinary and extreme scales, NaN and infinity included, have exactly MLX's bits."""
    codes = np.arange(256, dtype=np.uint8) if form["bits"] == 8 else np.tile(np.arange(256, dtype=np.uint8), 2)
    groups = codes.size * 8 // form["bits"] // form["group_size"]
    for scale in (0, 1, 7, 8, 56, 126, 127, 128, 131, 140):
        scales = np.full(groups, scale, np.uint8)
        with np.errstate(invalid="ignore"):
            got, want = (np.array(array)[0, 0, 0] for array in one_key(codes.view(np.uint32), scales, form, mx.float32))
        # An infinite sum of finite values is not asked for: NaN anywhere in a row of one key stays where it is.
        assert np.array_equal(got, want, equal_nan=True), scale


def cached(parts, length: int, garbage) -> list[mx.array]:
    """The front of larger buffers, as QuantizedKVCache hands out; behind it lies garbage."""
    found = []
    for array in parts:
        buffer = mx.full((*array.shape[:2], 2048, array.shape[3]), garbage(array.dtype), array.dtype)
        buffer[:, :, :length] = array
        found.append(mx.contiguous(buffer)[:, :, :length])
    return found


def garbage(dtype):
    return 0xFFFFFFFF if dtype == mx.uint32 else 255 if dtype == mx.uint8 else mx.nan


@pytest.mark.parametrize("queries", [PREFILL, TOKEN])
@pytest.mark.parametrize("form", [AFFINE, NVFP4], ids=named)
@each_simulated_family
def test_a_cache_is_read_in_place(family, form, queries):
    """Neither arrays nor memory are copied, and rows behind the cache's front change nothing."""
    case = Case(queries, 1800, 64, "float16", key_heads=2)
    q, k, v, _ = operands(case, form)
    caches = [cached(parts, 1800, garbage) for parts in (k, v)]
    mx.eval(q, k, v, caches)
    with use_backend("simulator", family):
        want = quantized_attention(q, k, v, causal=True, **form)
        mx.eval(want)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        got = quantized_attention(q, *caches, causal=True, **form)
        mx.eval(got)
        grown = mx.get_peak_memory() - before
    assert bits(got) == bits(want)
    assert grown <= 2 * q.nbytes + 8192 < caches[0][0].nbytes
    asked, chosen = planned(q, case, form, family)
    names = ("K", "V", *quantization_of(**form).inputs)
    half = len(k)
    parts = dict(zip(("K", *names[2 : 1 + half], "V", *names[1 + half :]), (*caches[0], *caches[1])))
    launched = chosen.launch(asked).arguments({"Q": q, "scale": 1.0, "decode_params": (1, 0, 256, 512, 1), **parts})
    for name, array in zip(chosen.kernel.inputs, launched):
        assert name not in parts or address(array) == address(parts[name]), f"{name} was copied"


def planned(q, case: Case, form: dict, family: str):
    like = [mx.zeros(case.shapes[name], q.dtype) for name in "kv"]
    asked = with_variants(inner_problem(problem_of(q, *like)), quantization=quantization_of(**form))
    return asked, plan_of(DECODE if case.query_length <= 8 else FORWARD, asked, backend_of("simulator", family).family)


@pytest.mark.parametrize("form", [AFFINE, NVFP4], ids=named)
@each_simulated_family
def test_packed_bytes_are_read_once(family, form):
    """A token reads them once for all query heads that share them, also on families that read all else directly."""
    case = Case(1, 331, 64, "float16", group=4, key_heads=2)
    q, k, v, _ = operands(case, form)
    with use_backend("simulator", family), mode("check"), profile() as counted:
        mx.eval(quantized_attention(q, k, v, **form))
    (launch,) = counted.launches
    loaded = {name: buffer["loaded"] for name, buffer in launch["buffers"].items()}
    runs = 64 // 8  # of eight elements, whose scale is read once
    for name, parts in (("K", k), ("V", v)):
        assert loaded[name] == parts[0].nbytes < case.key_length * 2 * 64 * 2 // 3
        for part, array in zip(("scales", "biases"), parts[1:]):
            assert loaded[f"{name}_{part}"] == array.nbytes * runs // array.shape[3]


@pytest.mark.parametrize("queries", [PREFILL, TOKEN])
@each_simulated_family
def test_every_schedule_gives_the_same_bits(family, queries):
    q, k, v, _ = operands(Case(queries, 600, 16, group=2, key_heads=2, batch=2), NVFP4)

    def once(*order):
        with use_backend("simulator", family), mode("check"), schedule(*order):
            return bits(quantized_attention(q, k, v, causal=True, **NVFP4))

    want = once("forward")
    assert [order for order in (("reversed", 0), ("random", 1)) if once(*order) != want] == []


def test_a_cache_of_mlx_lm(backend):
    """QuantizedKVCache as it is, over several steps, and what mlx-lm computes from it."""
    from mlx_lm.models.base import quantized_scaled_dot_product_attention
    from mlx_lm.models.cache import QuantizedKVCache

    cache = QuantizedKVCache(group_size=64, bits=8)
    for step, length in enumerate((33, 1, 1)):
        q, k, v = (
            mx.random.normal((1, heads, length, 64), key=mx.random.key(10 * step + heads + n))
            for n, heads in enumerate((4, 2, 2))
        )
        keys, values = cache.update_and_fetch(k, v)
        ours = quantized_attention(q, keys, values, group_size=64, bits=8, causal=True)
        theirs = quantized_scaled_dot_product_attention(
            q, keys, values, 64**-0.5, "causal" if length > 1 else None, group_size=64, bits=8
        )
        bounds.check("O", ours, bounds.float64(theirs), f"step {step}", "float32", terms=4.0)


def test_empty_and_one_key(backend):
    q, k, v, arrays = operands(Case(3, 1, 64, group=2), AFFINE)
    assert bits(quantized_attention(q, k, v)) == bits(attention(q, arrays["k"], arrays["v"]))
    none = [[part[:, :, :0] for part in parts] for parts in (k, v)]
    out, lse = quantized_attention(q, *none, return_lse=True)
    assert not np.array(out).any() and np.isneginf(np.array(lse)).all() and out.shape == q.shape


def refused(function, words):
    with pytest.raises(ValueError) as caught:
        function()
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_bad_arguments(reference):
    q, k, v, _ = operands(Case(3, 9, 64, group=2), AFFINE)
    call = quantized_attention
    refused(lambda: call(q, k, v, bits=7), ["bits", "4 or 8 or 2 or 3 or 5 or 6", "got 7"])
    refused(lambda: call(q, k, v, group_size=16), ["group_size", "64 or 32 or 128", "got 16"])
    refused(lambda: call(q, k, v, mode="mxfp4", bits=8), ["bits", "expected 4 in mode 'mxfp4'", "got 8"])
    refused(lambda: call(q, k, v, mode="nf4"), ["mode", "affine, mxfp4, mxfp8, nvfp4", "'nf4'"])
    refused(lambda: call(q, k, v, mode="fp8"), ["mode", "'fp8'", 'use "mxfp8"', "or attention in bfloat16"])
    refused(lambda: call(q, k, v, mode="mxfp4"), ["k", "(codes, scales)", "3 arrays"])
    refused(lambda: call(q, k[:2], v), ["k", "(codes, scales, biases)", "2 arrays"])
    refused(lambda: call(q, k, k[0]), ["v", "tuple of a quantized cache", "array"])
    refused(lambda: call(q, k, v, bits=8), ["k scales", "(1, 1, 9, 0)", "bits and group_size"])
    refused(lambda: call(q, k, (k[0].astype(mx.int32), *k[1:])), ["v codes", "uint32", "int32"])
    refused(lambda: call(q.astype(mx.float16), k, v), ["k scales", "float16", "float32"])
    refused(lambda: call(q, k, [part[:, :, 1:] for part in v]), ["v", "(1, 1, 9)", "(1, 1, 8)"])
    refused(lambda: call(q[..., :32], k, v), ["k", "head dimension 32", "64"])
    refused(lambda: call(q, k, v, window=(-2, 0)), ["window"])
    refused(lambda: call([1], k, v), ["q", "mlx.core.array", "list"])


def test_forward_only(backend):
    """One sentence, whatever the derivative is taken of."""
    q, k, v, _ = operands(Case(3, 9, 64, group=2), AFFINE)

    def of_scales(scales):
        return quantized_attention(q, (k[0], scales, k[2]), v).sum()

    words = ["mlx_flash.quantized_attention", "forward only", "dequantize"]
    refused(lambda: mx.eval(mx.grad(lambda x: quantized_attention(x, k, v).sum())(q)), words)
    refused(lambda: mx.eval(mx.grad(of_scales)(k[1])), words)
    refused(lambda: mx.eval(mx.jvp(lambda x: quantized_attention(x, k, v), [q], [q])), words)
    each = vmap(mx.grad(lambda x: quantized_attention(x, k, v).sum()))
    refused(lambda: mx.eval(each(q[None])), words)
    with pytest.raises(UnsupportedProblem):
        mx.grad(of_scales)(k[1])


@pytest.mark.parametrize("shared", [False, True])
def test_mapped(backend, shared):
    """One cache for each entry, or one for all: the same bits as one call per entry."""
    q, k, v, _ = operands(Case(TOKEN, 300, 64, "float16", batch=3, group=2, key_heads=2), AFFINE)
    q, k, v = q[:, None], *([part[:, None] for part in parts] for parts in (k, v))
    if shared:
        k, v = ([part[0] for part in parts] for parts in (k, v))
    options = {"causal": True, "window": (200, 0), "alibi_slopes": mx.array([0.5, 0.1, 0.0, 1.0])}

    def step(q, k, v):
        return quantized_attention(q, tuple(k), tuple(v), **options)

    axis = None if shared else 0
    got = vmap(step, in_axes=(0, axis, axis))(q, k, v)
    want = [step(q[n], *(parts if shared else [part[n] for part in parts] for parts in (k, v))) for n in range(3)]
    assert bits(got) == bits(mx.stack(want))


def peak(length: int) -> int:
    parts = packed(mx.random.normal((1, 1, length, 32)), {"group_size": 32, "bits": 4})
    q = mx.random.normal((1, 1, 8, 32))
    mx.eval(q, parts)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(quantized_attention(q, parts, parts, group_size=32))
    return mx.get_peak_memory() - before


def test_the_reference_dequantizes_blocks(reference, monkeypatch):
    """Never the whole cache."""
    monkeypatch.setattr(kernels, "BLOCK", 128)
    length = 16384
    assert peak(length) < length * 32 * 4  # the keys alone, dequantized


def test_lazy_inside_compile(reference):
    q, k, v, _ = operands(Case(3, 70, 64, group=2), AFFINE)
    compiled = mx.compile(lambda q, *parts: quantized_attention(q, parts[:3], parts[3:], causal=True))
    # Compiling fuses elementwise operations, which may round differently: close, not equal.
    want = bounds.float64(quantized_attention(q, k, v, causal=True))
    bounds.check("O", compiled(q, *k, *v), want, "compiled", "float32")
