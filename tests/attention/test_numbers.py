"""Numbers of a call come as numpy, MLX and other libraries have them: the same bits, or an error that names them."""

import math

import bounds
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits

from mlx_flash import UnsupportedProblem, attention, quantized_attention, vmap

Q, K, V = mx.random.normal((3, 1, 2, 20, 16), key=mx.random.key(0))
KEY = mx.random.key(1)
IDS = np.arange(20) // 7

SAME = {  # options as others have them, and as Python has them
    "window": ({"window": (np.int64(8), np.uint8(0))}, {"window": (8, 0)}),
    "window array": ({"window": np.array([8, 0])}, {"window": (8, 0)}),
    "window of mlx": ({"window": (mx.array(8), mx.array(0))}, {"window": (8, 0)}),
    "window of a file": ({"window": [8, 0]}, {"window": (8, 0)}),
    "no left bound": ({"window": (-1, 2)}, {"window": (None, 2)}),
    "no window": ({"window": (-1, -1)}, {}),
    "no bounds": ({"window": (None, np.int64(-1))}, {}),
    "causal": ({"causal": np.True_}, {"causal": True}),
    "causal array": ({"causal": np.array(True)}, {"causal": True}),
    "causal of mlx": ({"causal": mx.array(True)}, {"causal": True}),
    "not causal": ({"causal": np.False_}, {}),
    "dropout": ({"dropout": np.float32(0.25), "key": KEY}, {"dropout": 0.25, "key": KEY}),
    "dropout of mlx": ({"dropout": mx.array(0.25), "key": KEY}, {"dropout": 0.25, "key": KEY}),
    "dropout off": ({"dropout": 0.0, "key": KEY}, {}),
    "dropout off by an integer": ({"dropout": 0, "key": KEY}, {}),
    "softcap": ({"softcap": np.float64(3)}, {"softcap": 3.0}),
    "softcap array": ({"softcap": np.array(3.0)}, {"softcap": 3.0}),
    "softcap of mlx": ({"softcap": mx.array(3.0)}, {"softcap": 3.0}),
    "softcap off": ({"softcap": 0}, {}),
    "scale": ({"scale": np.float16(0.5)}, {"scale": 0.5}),
    "scale array": ({"scale": np.array(0.5, np.float32)}, {"scale": 0.5}),
    "scale in an array of one": ({"scale": np.array([0.5])}, {"scale": 0.5}),
    "scale of mlx in an array of one": ({"scale": mx.array([[0.5]])}, {"scale": 0.5}),
    "softcap in an array of one": ({"softcap": np.array([3.0])}, {"softcap": 3.0}),
    "softcap of mlx in an array of one": ({"softcap": mx.array([3.0])}, {"softcap": 3.0}),
    "dropout in an array of one": ({"dropout": np.array([[0.25]]), "key": KEY}, {"dropout": 0.25, "key": KEY}),
    "scale integer": ({"scale": np.int32(1)}, {"scale": 1.0}),
    "ids": ({"segments": (IDS, IDS)}, {"segments": (mx.array(IDS, mx.int32),) * 2}),
    "ids of 64 bits": ({"segments": (mx.array(IDS),) * 2}, {"segments": (mx.array(IDS, mx.int32),) * 2}),
    "ids without a sign": (
        {"segments": (mx.array(IDS, mx.uint32), mx.array(IDS, mx.uint64))},
        {"segments": (mx.array(IDS, mx.int32),) * 2},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_bits(backend, name):
    others, plain = SAME[name]
    assert bits(attention(Q, K, V, **others)) == bits(attention(Q, K, V, **plain))


def test_the_same_call_is_found_again(reference):
    """Numbers of numpy are part of what a kept call is found by: another number is another call."""
    wide, narrow = (attention(Q, K, V, window=(np.int64(left), 0)) for left in (8, 2))
    assert bits(wide) == bits(attention(Q, K, V, window=(8, 0))) != bits(narrow)


WRONG = {
    "ids too large": ({"segments": (mx.array(IDS + 2**31),) * 2}, "segments q_ids: expected ids that fit 32"),
    "keys' ids too small": (
        {"segments": (mx.array(IDS), mx.array(IDS - 2**40))}, "segments k_ids: expected ids that fit 32",
    ),
    "causal array": ({"causal": np.array([True])}, "causal: expected True or False"),
    "window of bools": ({"window": np.array([True, False])}, "window: expected sides of at least 0"),
    "window -2": ({"window": (-2, 0)}, "window: expected sides of at least 0, or None or -1"),
    "scales of heads": ({"scale": mx.ones(2)}, "scale: expected a number, or an array of a single one"),
    "scale beyond float32": ({"scale": 3.5e38}, "scale: expected a finite number"),
    "scale complex": ({"scale": mx.array(1 + 2j)}, "scale: expected a number"),
    "scale bool": ({"scale": mx.array(True)}, "scale: expected a number"),
    "scale bool of numpy": ({"scale": np.array([True])}, "scale: expected a finite number"),
    "scales of numpy": ({"scale": np.ones(2)}, "scale: expected a finite number"),
    "scale text": ({"scale": np.array(["0.5"])}, "scale: expected a finite number"),
    "no scale": ({"scale": mx.zeros((0,))}, "scale: expected a number"),
    "softcap bool": ({"softcap": mx.array([True])}, "softcap: expected a number"),
    "dropout of heads": ({"dropout": np.array([0.1, 0.2]), "key": KEY}, "dropout: expected "),
    "softcap of heads": ({"softcap": mx.ones(2)}, "softcap: expected a number whose value is known"),
    "softcap negative": ({"softcap": mx.array(-1.0)}, "softcap: expected a finite number above 0"),
    "stream word": ({"stream": "cpu"}, "stream: expected an mlx.core.Stream or Device"),
    "stream number": ({"stream": 0}, "stream: expected an mlx.core.Stream or Device"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers(reference, name):
    options, pattern = WRONG[name]
    with pytest.raises(ValueError, match=rf"\[mlx_flash\.attention\] {pattern}"):
        attention(Q, K, V, **options)


@pytest.mark.parametrize("name, value", [("softcap", 3.0), ("dropout", 0.5), ("causal", True), ("window", 4)])
def test_numbers_that_a_trace_does_not_know(reference, name, value):
    """Inside mx.compile the error names the argument."""

    def call(q, number):
        return attention(q, K, V, key=KEY, **{name: (number, 0) if name == "window" else number})

    with pytest.raises(ValueError, match=rf"\[mlx_flash\.attention\] {name}: expected .*"):
        mx.compile(call)(Q, mx.array(value))


def test_ids_that_a_trace_does_not_know(reference):
    with pytest.raises(ValueError, match=r"segments q_ids: expected int32 where values are not known yet"):
        mx.compile(lambda q, ids: attention(q, K, V, segments=(ids, ids)))(Q, mx.array(IDS))
    mx.compile(lambda q, ids: attention(q, K, V, segments=(ids, ids)))(Q, mx.array(IDS, mx.int32))


LEARNED = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "causal, window, sinks": {"causal": True, "window": (6, 0), "sinks": mx.array([0.5, -1.0])},
    "dropout": {"dropout": 0.3, "key": KEY},
    "additive mask": {"mask": mx.random.normal((20, 20), key=mx.random.key(2))},
}


def loss(scale, options, q=Q):
    return (attention(q, K, V, scale=scale, **options) * V).sum()


@pytest.mark.parametrize("value", [0.4, -0.7])
@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_scale_has_its_gradient(backend, name, value):
    """The gradient agrees with central differences in float32, within the bound for a slope."""
    options, step = LEARNED[name], 2.0**-6
    slope = (loss(value + step, options) - loss(value - step, options)).item() / (2 * step)
    got, d_q = mx.grad(lambda scale, q: loss(scale, options, q), argnums=(0, 1))(mx.array(value), Q)
    assert got.shape == () and got.dtype == mx.float32
    assert abs(got.item() - slope) <= bounds.SLOPE * max(abs(slope), 1)
    want = mx.grad(lambda q: loss(value, options, q))(Q)
    bounds.check("dQ", d_q, bounds.float64(want), name, "float32")
    assert bits(mx.grad(loss)(mx.array([value]), options)) == bits(got.reshape(1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_learned_scale_in_16_bits(reference, dtype):
    """The gradient of a float32 scale is float32, whatever q's dtype; the result keeps q's."""
    q, k, v = (array.astype(getattr(mx, dtype)) for array in (Q, K, V))
    out, gradients = mx.vjp(lambda scale: attention(q, k, v, scale=scale), [mx.array(0.5)], [v])
    assert out[0].dtype == q.dtype and gradients[0].dtype == mx.float32
    assert bits(out[0]) == bits(attention(q, k, v, scale=0.5))  # a power of two: the product is exact
    want = mx.grad(lambda scale: (attention(*(x.astype(mx.float32) for x in (q, k, v)), scale=scale) * v).sum())
    slope = want(mx.array(0.5)).item()
    assert abs(gradients[0].item() - slope) <= bounds.SLOPE * max(abs(slope), 1)


def test_a_learned_scale_in_transformations(reference):
    gradient = mx.grad(lambda scale: loss(scale, {"causal": True}))
    want = gradient(mx.array(0.4))
    for function in (mx.compile(gradient), mx.grad(mx.checkpoint(lambda scale: loss(scale, {"causal": True})))):
        bounds.check("dQ", function(mx.array(0.4)), bounds.float64(want), "scale", "float32")
    scales = mx.array([0.4, -1.0, 2.0])
    mapped = vmap(gradient)(scales)
    bounds.check("dQ", mapped, bounds.float64(mx.stack([gradient(one) for one in scales])), "vmap", "float32")


@pytest.mark.parametrize("name, value", [("softcap", 2.0), ("dropout", 0.3)])
def test_no_other_number_has_a_silent_gradient(reference, name, value):
    def loss(number, q):
        return attention(q, K, V, key=KEY, **{name: number}).sum()

    pattern = rf"\[mlx_flash\.attention\] {name}: gradients with respect to it are not available"
    for function in (loss, mx.checkpoint(loss)):
        with pytest.raises(UnsupportedProblem, match=pattern):
            mx.grad(function)(mx.array(value), Q)
    with pytest.raises(UnsupportedProblem, match=pattern):
        mx.jvp(lambda number: loss(number, Q), [mx.array(value)], [mx.array(1.0)])
    # Constants that come as arrays are as good as numbers.
    d_q = mx.grad(loss, argnums=1)(mx.array(value), Q)
    assert bits(d_q) == bits(mx.grad(loss, argnums=1)(value, Q))
    assert mx.grad(lambda number: loss(mx.stop_gradient(number), Q))(mx.array(value)).item() == 0


@pytest.mark.parametrize("scale", [3.4e38, -3.4e38, 2.4e38])
def test_any_finite_scale(backend, scale):
    """One scale times log2(e) is beyond float32. Scores are 24 or 0: no product is below normal numbers."""
    q, k = mx.eye(20, 16)[None, None] * (24 / abs(scale) * 2.0**60), mx.eye(20, 16)[None, None] * 2.0**-60
    q, k = (mx.repeat(array, 2, axis=1) for array in (q, k))
    want = attention(q * abs(scale) * 2.0**-60, k * 2.0**60, V, scale=math.copysign(1.0, scale))
    bounds.check("O", attention(q, k, V, scale=scale), bounds.float64(want), "scale", "float32")


@pytest.mark.parametrize("transform", [mx.grad, lambda f: mx.grad(mx.checkpoint(f))])
def test_slopes_have_no_silent_gradient(backend, transform):
    slopes = mx.array([0.5, 0.25])
    pattern = (
        r"\[mlx_flash\.attention\] alibi_slopes: gradients with respect to it are not available. Learn them by score="
    )
    with pytest.raises(UnsupportedProblem, match=pattern):
        transform(lambda slopes: attention(Q, K, V, alibi_slopes=slopes).sum())(slopes)
    fixed = mx.grad(lambda slopes: attention(Q, K, V, alibi_slopes=mx.stop_gradient(slopes)).sum())
    assert fixed(slopes).tolist() == [0, 0]


@pytest.mark.parametrize("name, value", [("bits", 4.0), ("bits", "4"), ("group_size", 64.0), ("group_size", None)])
def test_wrong_numbers_of_a_format(reference, name, value):
    packed = mx.quantize(mx.random.normal((1, 2, 20, 64)), 64, 4)
    numbers = {"bits": 4, "group_size": 64, name: value}
    if value is None:  # the mode's own
        assert quantized_attention(mx.zeros((1, 2, 5, 64)), packed, packed, **numbers).shape == (1, 2, 5, 64)
        return
    with pytest.raises(ValueError, match=rf"\[mlx_flash\.quantized_attention\] {name}: expected .* got "):
        quantized_attention(mx.zeros((1, 2, 5, 64)), packed, packed, **numbers)


def test_quantized_numbers(backend):
    packed = [mx.quantize(mx.random.normal((1, 2, 20, 64), key=mx.random.key(n)), 64, 4) for n in (3, 4)]
    q = mx.random.normal((1, 2, 5, 64), key=mx.random.key(5))
    want = quantized_attention(q, *packed, scale=0.5, window=(4, 0), softcap=3.0, causal=True)
    others = {"scale": mx.array(0.5), "window": np.array([4, 0]), "softcap": mx.array(3.0), "causal": np.True_}
    assert bits(quantized_attention(q, *packed, **others)) == bits(want)
