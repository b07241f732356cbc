"""patch() puts attention in place of the built-in for whoever looks it up: reversibly, never with another answer."""

import threading

import bounds
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gpt_oss, llama

import mlx_flash
from mlx_flash import use_backend
from mlx_flash.integrations import unpatch

BUILT_IN = mx.fast.scaled_dot_product_attention
LLAMA = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 64,
    "rms_norm_eps": 1e-5, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "sliding_window": 8, "rope_theta": 10000,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
TOKENS = mx.array([[(7 * i * i + i) % 64 for i in range(21)]])


@pytest.fixture(autouse=True)
def built_in_again():
    yield
    unpatch()
    assert mx.fast.scaled_dot_product_attention is BUILT_IN


def arrays(queries=12):
    lengths = (queries, 20, 20)
    return tuple(mx.random.normal((1, 2, length, 16), key=mx.random.key(n)) for n, length in enumerate(lengths))


def model(which):
    mx.random.seed(3)
    made = which.Model(which.ModelArgs.from_dict(LLAMA if which is llama else GPT_OSS))
    if which is gpt_oss:
        made.update({"model": {"layers": [{"self_attn": {"sinks": mx.random.normal((4,))}} for _ in range(2)]}})
    return made


def close(got: mx.array, want: mx.array):
    difference = mx.abs(got - want).max().item()
    assert difference <= bounds.MODEL_LOGITS * max(1, mx.abs(want).max().item()), difference


@pytest.mark.parametrize("which", (llama, gpt_oss), ids=lambda module: module.__name__.split(".")[-1])
def test_models_of_mlx_lm(backend, which):
    made = model(which)
    want = made(TOKENS)
    with mlx_flash.patch(min_queries=1) as report:
        got = made(TOKENS)
        mx.eval(got)
    assert (report.ours, sum(report.built_in.values())) == (2, 0), str(report)
    close(got, want)
    assert mx.array_equal(got.argmax(-1), want.argmax(-1)).item()


def test_the_gradients_of_a_model(backend):
    made = model(llama)

    def loss(made):
        return nn.losses.cross_entropy(made(TOKENS[:, :-1]), TOKENS[:, 1:]).mean()

    want = dict(tree_flatten(nn.value_and_grad(made, loss)(made)[1]))
    with mlx_flash.patch() as report:
        got = dict(tree_flatten(nn.value_and_grad(made, loss)(made)[1]))
        mx.eval(got)
    assert report.ours == 2
    for name, gradient in want.items():
        close(got[name], gradient)


def test_a_layer_of_mlx(reference):
    layer, x = nn.MultiHeadAttention(32, 4), mx.random.normal((2, 11, 32))
    mask = nn.MultiHeadAttention.create_additive_causal_mask(11)
    want = layer(x, x, x, mask)
    with mlx_flash.patch() as report:
        close(layer(x, x, x, mask), want)
    assert report.ours == 1


def test_what_is_not_served_goes_to_the_built_in(reference):
    with mlx_flash.patch() as report:
        few = mx.fast.scaled_dot_product_attention(*arrays(queries=3), scale=0.25)
        mixed = [x.astype(dtype) for x, dtype in zip(arrays(), (mx.float16, mx.float32, mx.float32))]
        assert mx.fast.scaled_dot_product_attention(*mixed, scale=0.25).dtype == mx.float32
    close(few, BUILT_IN(*arrays(queries=3), scale=0.25))
    assert report.ours == 1 and report.built_in.total() == 1
    assert "served 1 of 2" in str(report) and "fewer than 9 queries" in str(report)


@pytest.mark.parametrize(
    "wrong",
    (
        {"mask": mx.zeros((5, 7))}, {"mask": "diagonal"}, {"sinks": mx.zeros((3,))}, {"scale": "large"},
        {"q": mx.zeros((1, 2, 12, 8))}, {"q": mx.zeros((2, 12, 16))}, {"q": mx.zeros((1, 3, 12, 16))},
    ),
    ids=("mask shape", "mask name", "sinks", "scale", "head dimension", "rank", "heads"),
)  # fmt: skip
def test_wrong_calls_raise_what_the_built_in_raises(reference, wrong):
    arguments = dict(zip("qkv", arrays())) | {"scale": 0.25} | wrong
    with pytest.raises(Exception) as theirs:
        BUILT_IN(**arguments)
    with mlx_flash.patch() as report, pytest.raises(type(theirs.value)) as ours:
        mx.fast.scaled_dot_product_attention(**arguments)
    # nanobind ends its TypeErrors with how the function was called, by position or by name
    assert str(ours.value).split("Invoked")[0] == str(theirs.value).split("Invoked")[0] and report.ours == 0


def test_patches_nest_and_are_taken_back_in_any_order(reference):
    outer, inner = mlx_flash.patch(), mlx_flash.patch(min_queries=1)
    mx.fast.scaled_dot_product_attention(*arrays(queries=2), scale=0.25)
    outer.undo()
    mx.fast.scaled_dot_product_attention(*arrays(queries=2), scale=0.25)
    assert (outer.ours, inner.ours) == (0, 2)
    inner.undo()
    inner.undo()
    assert mx.fast.scaled_dot_product_attention is BUILT_IN


def test_threads_are_counted_one_by_one():
    def work():
        with use_backend("reference"):
            for _ in range(20):
                mx.eval(mx.fast.scaled_dot_product_attention(*arrays(), scale=0.25))

    with mlx_flash.patch() as report:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert report.ours == 160


def test_min_queries_is_checked():
    with pytest.raises(ValueError, match="min_queries: expected a whole number of at least 1, got 0"):
        mlx_flash.patch(min_queries=0)
