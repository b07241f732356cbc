"""mlx-lm's quantized caches under patch(): the same tokens from keys and values that stay quantized."""

import sys

import mlx.core as mx
import mlx_lm
import pytest
from machines import across_backends
from mlx_lm.models import base
from mlx_lm.models.cache import QuantizedKVCache
from tiny_models import PROMPT, close, generated, tiny

import mlx_flash
from mlx_flash import use_backend

MLX_LM = base.quantized_scaled_dot_product_attention
LAYERS, GROUP = 2, 32
SCALE = 0.2


@pytest.fixture(autouse=True)
def mlx_lm_again():
    yield
    assert base.quantized_scaled_dot_product_attention is MLX_LM


@pytest.mark.training
@pytest.mark.parametrize("choice, bits", across_backends((4, 8)))
def test_generation(choice, bits):
    """mlx-lm quantizes the cache behind the prompt's first 20 tokens."""
    model, options = tiny("llama"), {"kv_bits": bits, "kv_group_size": GROUP, "quantized_kv_start": 0}
    want_tokens, want = generated(model, **options)
    with use_backend(*choice), mlx_flash.patch() as report:
        tokens, got = generated(model, **options)
    assert tokens == want_tokens
    close(got, want)
    assert dict(report.served) == {"prefill": LAYERS, "quantized decode": LAYERS * 9} and not report.built_in


def test_a_prompt_in_two_parts(backend):
    """The cache is quantized from the first token on."""
    model = tiny("llama")

    def logits():
        cache = [QuantizedKVCache(group_size=GROUP, bits=8) for _ in range(LAYERS)]
        model(PROMPT[None, :10], cache=cache)
        return model(PROMPT[None, 10:], cache=cache)

    want = logits()
    with mlx_flash.patch() as report:
        got = logits()
        mx.eval(got)
    assert dict(report.served) == {"quantized prefill": 2 * LAYERS} and not report.built_in
    close(got, want)


def call(queries=12, bits=4, mask=None, q=None, group_size=GROUP):
    draw = (mx.random.normal((2, heads, length, 64), key=mx.random.key(heads)) for heads, length in ((4, 12), (2, 20)))
    own, keys = draw
    parts = [mx.quantize(array, group_size=group_size, bits=bits) for array in (keys, keys + 1)]
    q = own[:, :, :queries] if q is None else q
    return base.quantized_scaled_dot_product_attention(q, *parts, SCALE, mask, group_size=group_size, bits=bits)


MASKS = {
    "none": None,
    "causal": "causal",
    "of a window": mx.arange(20) + 3 >= mx.arange(8, 20)[:, None],
    "left padding": (mx.arange(20) >= mx.array([[0], [5]]))[:, None, None],
    "added": mx.random.normal((12, 20), key=mx.random.key(9)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(reference, name):
    if name == "left padding" and tuple(map(int, mlx_lm.__version__.split(".")[:2])) < (0, 32):
        pytest.skip("mlx-lm before 0.32 takes the batch of a mask for the heads of a group")
    want = call(mask=MASKS[name])
    with mlx_flash.patch() as report:
        close(call(mask=MASKS[name]), want)
    assert report.ours == 1


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 8])
def test_every_width_that_mlx_quantizes_to(reference, bits):
    want = call(bits=bits)
    with mlx_flash.patch() as report:
        close(call(bits=bits), want)
    assert report.ours == 1


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"mask": mx.ones((2, 12, 20), mx.bool_)}, "a mask of 3 axes"),
        ({"mask": mx.ones((2, 2, 12, 20), mx.bool_)}, "mask: expected a shape"),
    ],
    ids=("mask of a group's heads", "mask of key heads"),
)
def test_what_is_not_served_goes_to_mlx_lm(reference, options, reason):
    want = call(**options)
    with mlx_flash.patch() as report:
        got = call(**options)
    assert mx.array_equal(got, want) and report.ours == 0
    ((why, count),) = report.built_in.items()
    assert reason in why and count == 1


def refusal(function) -> tuple[type, str]:
    with pytest.raises((ValueError, NotImplementedError, TypeError)) as caught:
        mx.eval(function())
    return caught.type, str(caught.value)


def sinks_over_a_quantized_cache():
    cache = [QuantizedKVCache(group_size=GROUP, bits=8) for _ in range(LAYERS)]
    return tiny("gpt_oss")(PROMPT[None, :5], cache=cache)


QUANTIZED = {"kv_bits": 8, "kv_group_size": GROUP, "quantized_kv_start": 0}
REFUSED = {
    "rotating cache": lambda: generated(tiny("gpt_oss"), 2, **QUANTIZED)[1],
    "sinks": sinks_over_a_quantized_cache,
    "scores of its own": lambda: generated(tiny("gemma2"), 2, **QUANTIZED)[1],
    "columns of values": lambda: generated(tiny("deepseek_v3"), 2, **QUANTIZED)[1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mlx_lm_refuses_it_refuses_in_its_own_words(reference, name):
    """Caches that it does not quantize, and models that cannot use those it does."""
    want = refusal(REFUSED[name])
    with mlx_flash.patch() as report:
        assert refusal(REFUSED[name]) == want
    assert not report.built_in, "it refuses before it asks for attention"


def test_min_queries(reference):
    with mlx_flash.patch(min_queries=9) as report:
        call(), call(3)
    assert dict(report.served) == {"quantized prefill": 1} and dict(report.built_in) == {"fewer than 9 queries": 1}


def test_gradients_come_from_mlx_lm(reference):
    def gradient(q):
        return mx.grad(lambda q: mx.square(call(q=q)).sum())(q)

    q = mx.random.normal((2, 4, 12, 64), key=mx.random.key(1))
    want = gradient(q)
    with mlx_flash.patch() as report:
        close(gradient(q), want)
    assert dict(report.built_in) == {"quantized cache: a gradient": 1}


def test_mlx_lm_imported_while_patched(reference, monkeypatch):
    """Any attention call finds it; patch() itself imports nothing."""
    monkeypatch.delitem(sys.modules, "mlx_lm.models.base")
    with mlx_flash.patch() as report:
        assert "mlx_lm.models.base" not in sys.modules
        monkeypatch.undo()
        assert base.quantized_scaled_dot_product_attention is MLX_LM
        q = mx.zeros((1, 1, 1, 8))
        mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0)
        call()
    assert dict(report.served) == {"decode": 1, "quantized prefill": 1}
