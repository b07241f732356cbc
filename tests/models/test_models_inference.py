"""mlx-lm's models under patch(): the same greedy tokens and probabilities, on every backend."""

import bounds
import mlx.core as mx
import pytest
from machines import METAL, SIMULATED, across_backends, label
from mlx_lm import batch_generate
from mlx_lm.generate import speculative_generate_step
from mlx_lm.models.cache import (
    BatchKVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from tiny_models import MODELS, PROMPT, close, generated, tiny

import mlx_flash
from mlx_flash import use_backend
from mlx_flash.lm import tiny_model

pytestmark = pytest.mark.training

LAYERS = 2


def compare(model, **options) -> mlx_flash.patch:
    """Generates with and without the patch, which serves every call."""
    want_tokens, want = generated(model, **options)
    with mlx_flash.patch() as report:
        tokens, got = generated(model, **options)
    assert tokens == want_tokens and len(set(tokens)) > 1
    close(got, want)
    return report


@pytest.mark.parametrize("choice, name", across_backends(MODELS))
def test_generation(choice, name):
    """The prompt's first 20 tokens, its last, and 8 more: those with a window roll over."""
    with use_backend(*choice):
        report = compare(tiny(name))
    assert not report.built_in
    # mlx-lm computes a token ahead, also behind the last.
    expected = {} if name == "gemma2" else {"prefill": LAYERS, "decode": LAYERS * (1 + 8)}
    assert dict(report.served) == expected


@pytest.mark.parametrize("choice, name", across_backends(MODELS))
def test_logits_of_a_whole_text(choice, name):
    model = tiny(name)
    want = model(PROMPT[None])
    with use_backend(*choice), mlx_flash.patch() as report:
        got = model(PROMPT[None])
        mx.eval(got)
    assert report.ours == (0 if name == "gemma2" else LAYERS) and not report.built_in
    close(got, want)


@pytest.mark.parametrize("dtype", (mx.float16, mx.bfloat16), ids=str)
@pytest.mark.parametrize("choice", [*SIMULATED[1:], *METAL], ids=label)
def test_sixteen_bits(choice, dtype):
    """Every call is served, and the first token's probabilities are as near to float32's as the unpatched run's."""
    model = tiny("llama")
    _, exact = generated(model, 1)
    model.set_dtype(dtype)
    _, want = generated(model, 4)
    with use_backend(*choice), mlx_flash.patch() as report:
        _, got = generated(model, 4)
    assert report.ours == LAYERS * (1 + 5) and not report.built_in
    theirs, ours = (mx.abs(one[0].astype(mx.float32) - exact[0]).max().item() for one in (want, got))
    assert 0 < ours <= bounds.LARGEST * theirs


def test_a_rotating_cache(backend):
    assert compare(tiny("llama"), max_kv_size=16, prefill_step_size=11).ours == LAYERS * (2 + 9)


def test_a_draft_model(reference):
    """Speculative decoding: several queries at once over a cache that is trimmed where the draft was wrong."""
    model, draft = tiny("llama"), tiny("llama", num_hidden_layers=1)

    def tokens():
        return [token for token, _, _ in speculative_generate_step(PROMPT, model, draft, max_tokens=12)]

    want = tokens()
    with mlx_flash.patch() as report:
        assert tokens() == want
    assert report.ours and not report.built_in


@pytest.mark.parametrize("quantized", [False, True])
def test_a_cache_that_is_saved_loaded_and_trimmed(reference, tmp_path, quantized):
    model, file = tiny("qwen3"), str(tmp_path / "cache.safetensors")

    def logits():
        cache = make_prompt_cache(model)
        if quantized:
            cache = [one.to_quantized(group_size=32, bits=4) for one in cache]
        model(PROMPT[None, :15], cache=cache)
        save_prompt_cache(file, cache)
        cache = load_prompt_cache(file)
        trim_prompt_cache(cache, 3)
        return mx.concatenate([model(PROMPT[None, 12:17], cache=cache), model(PROMPT[None, 17:], cache=cache)], 1)

    want = logits()
    with mlx_flash.patch() as report:
        close(logits(), want)
    kinds = {"quantized prefill", "quantized decode"} if quantized else {"prefill", "decode"}
    assert set(report.served) == kinds and not report.built_in


def test_left_padded_prompts(backend):
    """A batch of two prompts of different lengths, and what mlx-lm's batched cache makes of them."""
    model, padding = tiny("llama"), [5, 0]
    tokens = mx.stack([mx.concatenate([mx.zeros(5, mx.int32), PROMPT[:-5]]), PROMPT])

    def generate():
        cache, given, logits = [BatchKVCache(padding) for _ in range(LAYERS)], tokens, []
        for _ in range(6):
            logits.append(model(given, cache=cache)[:, -1])
            given = logits[-1].argmax(-1)[:, None]
        return mx.stack(logits)

    want = generate()
    with mlx_flash.patch() as report:
        got = generate()
        mx.eval(got)
    assert report.ours == LAYERS * 6 and not report.built_in
    assert mx.array_equal(got.argmax(-1), want.argmax(-1))
    close(got, want)


def test_batched_generation(reference):
    """mlx-lm's own, for prompts of three lengths."""
    model, tokenizer = tiny_model()
    prompts = [tokenizer.encode(text) for text in ("Some words", "a longer text than that", "x")]

    def texts():
        return batch_generate(model, tokenizer, prompts, max_tokens=6).texts

    want = texts()
    with mlx_flash.patch() as report:
        assert texts() == want
    assert report.served["prefill"] and report.served["decode"] and not report.built_in
