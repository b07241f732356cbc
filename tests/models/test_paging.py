"""PagePool: what mlx-lm generates from pages, the memory that this takes, and what is refused."""

import copy
import threading

import bounds
import mlx.core as mx
import pytest
import tiny_models
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import LRUPromptCache
from paged_sequences import Lives, logits_of

from mlx_flash import patch, use_backend
from mlx_flash.lm import PagePool, PagePoolError, PagePoolFull
from mlx_flash.lm.paging import row

FAMILIES = {"llama": 2, "qwen3": 2, "gemma3_text": 2, "gpt_oss": 2}  # layers in pages
PROMPTS = [[(7 * i * i + i * n) % 64 for i in range(length)] for n, length in ((1, 21), (3, 5), (2, 40), (5, 1))]


@pytest.fixture(autouse=True)
def served():
    with use_backend("reference"), patch() as report:
        yield report


def pool_of(name: str, **options):
    model = tiny_models.tiny(name)
    pool = PagePool(model, **{"page": 8, "bytes": 1 << 24} | options)
    return model, pool


def batched(model, prompts, count: int = 12, caches=None) -> list[list[int]]:
    """Tokens of mlx-lm's BatchGenerator."""
    generator = BatchGenerator(model, max_tokens=count, completion_batch_size=3, prefill_batch_size=2)
    found: dict[int, list[int]] = {number: [] for number in generator.insert(prompts, caches=caches)}
    while any(len(tokens) < count for tokens in found.values()):
        for response in generator.next_generated():
            found[response.uid].append(response.token)
    return list(found.values())


@pytest.mark.training
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_generates_the_tokens_of_its_rows_alone(name, served):
    """Prompts of unequal lengths come and go, more than fit at once."""
    model, pool = pool_of(name)
    assert pool.paged == FAMILIES[name] and not pool.ordinary
    with use_backend("reference"):
        want = [[token for token, _ in generate_step(mx.array(one), model, max_tokens=12)] for one in PROMPTS]
        model.make_cache = pool.caches
        before = served.served
        assert batched(model, PROMPTS) == want
        assert set(served.served - before) == {"decode from pages", "prefill to pages"} and not served.built_in
        alone = [[token for token, _ in generate_step(mx.array(one), model, max_tokens=12)] for one in PROMPTS]
    assert alone == want and pool.pages == 0


@pytest.mark.long
@pytest.mark.parametrize("asked", [4, 8, 13])
@pytest.mark.parametrize("step", [512, 7])
def test_a_mask_decides_over_a_window(asked, step):
    """Caches hold 8 keys; the model's masks reach as many, fewer, or more than a cache holds of the tokens before."""
    plamo3 = pytest.importorskip("mlx_lm.models.plamo3", reason="mlx-lm before 0.32")
    mx.random.seed(3)
    model = plamo3.Model(plamo3.ModelArgs(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, window_size=8,
        sliding_window_pattern=2, intermediate_size=64, vocab_size=64,
    ))  # fmt: skip
    for layer in model.layers:
        layer.mixer.qkv_proj.weight *= 4
    model.model.layers.window_size = asked - 1
    mx.eval(model.parameters())

    def tokens(prompt):
        found = generate_step(mx.array(prompt), model, max_tokens=12, prefill_step_size=step)
        return mx.stack([logits for _, logits in found])

    want = [tokens(prompt) for prompt in PROMPTS]
    pool = PagePool(model, page=8, bytes=1 << 24)
    assert pool.paged == 2
    model.make_cache = pool.caches
    for prompt, logits in zip(PROMPTS, want):
        tiny_models.close(tokens(prompt), logits)


@pytest.mark.parametrize("name, why", [("gemma2", "computes with its mask"), ("deepseek_v3", "computes with its mask")])
def test_families_that_compute_with_keys_keep_their_caches(name, why):
    model, pool = pool_of(name)
    assert pool.paged == 0 and pool.ordinary.total() == 2 and why in str(pool)
    want = batched(model, PROMPTS[:2], 4)
    model.make_cache = pool.caches
    assert batched(model, PROMPTS[:2], 4) == want


def close(got: mx.array, want: mx.array):
    limit = bounds.MODEL_LOGITS * max(1.0, float(mx.abs(want).max()))
    assert float(mx.abs(got - want).max()) <= limit and int(got.argmax()) == int(want.argmax())


def near(got: mx.array, want: mx.array):
    limit = bounds.QUANTIZED_LOGITS * max(1.0, float(mx.abs(want).max()))
    assert float(mx.abs(got - want).max()) <= limit


LIVES = {
    "full": ("llama", close, {}),
    "window": ("gemma3_text", close, {}),
    "sinks": ("gpt_oss", close, {}),
    "quantized": ("llama", near, {"bits": 8, "group_size": 32}),
}


def live(name: str, operations: int, seed: int) -> dict[str, int]:
    family, check, options = LIVES[name]
    model, pool = pool_of(family, **options)
    lives = Lives(model, pool, check, seed)
    done = lives.run(operations)
    lives.end()
    assert pool.pages == 0, "pages that nobody holds"
    return done


@pytest.mark.long
@pytest.mark.parametrize("name", LIVES)
def test_random_lives_of_sequences(name):
    """Inserted, stepped, padded, trimmed, evicted, forked: every token as of the text without a cache."""
    assert set(live(name, 60, seed=1)) >= {"insert", "step", "evict", "again", "padded", "trim"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVES)
def test_two_thousand_operations(name):
    live(name, 2000, seed=2)


@pytest.mark.long
def test_pages_behind_a_window_are_given_back(monkeypatch):
    """All but a reserve are returned, and no key that a query still sees is lost."""
    monkeypatch.setattr(row, "RESERVE", 8)
    model, pool = pool_of("gemma3_text")
    lives = Lives(model, pool, close, seed=3)
    lives.run(60)
    local, full = (next(layer for layer in pool.layers if bool(layer.window) is some) for some in (True, False))
    assert local.used < full.used
    cache = pool.caches()
    for start in range(0, 96, 4):
        model(mx.array([[n % 64 for n in range(start, start + 4)]]), cache=cache)
    close(model(mx.array([[5]]), cache=cache)[0, -1], logits_of(model, [n % 64 for n in range(96)] + [5]))
    window = next(one for one in cache if one.layer.window)
    assert not window.is_trimmable() and window.trim(4) == 4
    with pytest.raises(ValueError, match="behind a window"):
        window.trim(60)


def test_prompts_with_a_common_head_share_its_pages():
    """mlx-lm's server keeps prompts in this way: a copy is trimmed to the common tokens, and written to."""
    model, pool = pool_of("llama")
    head, kept = PROMPTS[2][:37], LRUPromptCache()  # which ends inside a page
    first = pool.caches()
    model(mx.array([head + [1, 2, 3]]), cache=first)
    kept.insert_cache("model", head + [1, 2, 3], first)
    pages, before = pool.pages, [logits_of(model, head + [1, 2, 3, 7])]
    for number in range(3):
        found, rest = kept.fetch_nearest_cache("model", head + [9 + number] * 12)
        assert len(rest) == 12  # more than a tail holds: they go to pages at once
        logits = model(mx.array([rest]), cache=found)[0, -1]
        close(logits, logits_of(model, head + rest))
        del found
    assert pool.pages == pages
    found, _ = kept.fetch_nearest_cache("model", head + [1, 2, 3, 7])
    close(model(mx.array([[7]]), cache=found)[0, -1], before[0])
    assert sum(cache.nbytes for cache in first) <= pool.nbytes + 2 * 2 * 2 * 8 * 32 * 4


def grown(function) -> int:
    """Bytes by which the peak of memory exceeds what was in use before."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    function()
    mx.synchronize()
    return mx.get_peak_memory() - before


def filled(rows: int = 4, tokens: int = 600, page: int = 64):
    """A cache of 8 heads and D = 128 in float16, some MiB large, of one layer."""
    model = tiny_models.tiny("llama", num_hidden_layers=1)
    pool = PagePool(model, page=page)
    layer = pool.layers[0]
    layer.heads, layer.dims, layer.dtype = 8, (128, 128), mx.float16
    caches = []
    for _ in range(rows):
        cache = pool.caches()[0]
        cache.update_and_fetch(*[mx.ones((1, 8, tokens, 128), mx.float16)] * 2)
        caches.append(cache)
    batch = caches[0].merge(caches)
    mx.eval(batch.state)
    return pool, batch


TOKEN = [mx.ones((4, 8, 1, 128), mx.float16)] * 2


def stepped(batch, ahead: bool) -> None:
    """One decoding step that reads the pool, computed at once or while the next one is being prepared."""
    batch.update_and_fetch(*TOKEN)
    read = [array[:1].max() for array in batch.state[:2]]  # whose buffer is the whole pool
    (mx.async_eval if ahead else mx.eval)(read, batch.state)


def test_moving_sequences_moves_integers():
    """Insert, evict, fork, trim: none copies a page."""
    pool, batch = filled()
    other = batch.fork()
    deeds = {
        "insert": lambda: batch.extend(other),
        "evict": lambda: batch.filter([0, 1, 2, 3]),
        "fork": lambda: copy.deepcopy(batch),
        "extract": lambda: batch.extract(1),
        "trim": lambda: batch.trim(70),
        "merge": lambda: batch.merge([batch.extract(0), batch.extract(2)]),
    }
    assert pool.nbytes > 9 << 20
    assert {name: size for name, size in ((name, grown(deed)) for name, deed in deeds.items()) if size > 4096} == {}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_copies_the_tail_at_most(ahead):
    """This holds also when tails move to pages: the pool itself is written in place."""
    pool, batch = filled()
    for _ in range(3):
        stepped(batch, ahead)
    tail = sum(array.nbytes for array in batch._rows[0].tail)
    assert 9 * tail < pool.nbytes
    peaks = []
    for _ in range(130):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        stepped(batch, ahead)
        if not ahead:
            mx.synchronize()
        peaks.append(mx.get_peak_memory() - before)
    assert sorted(peaks)[-4] <= (tail if ahead else 0) + 65536, (sorted(peaks), tail)
    assert max(peaks) <= 3 * tail, (sorted(peaks), tail)  # two steps of 130 move the tails


def test_a_full_pool_writes_nothing():
    model, pool = pool_of("llama", bytes=2 * 16 * (2 * 2 * 8 * 32 * 4))  # 16 pages a layer
    cache = pool.caches()
    text = [n % 64 for n in range(100)]
    model(mx.array([text]), cache=cache)
    with pytest.raises(PagePoolFull, match="Release caches"):
        model(mx.array([text]), cache=cache)
    assert [one.offset for one in cache] == [100, 100]
    close(model(mx.array([[7]]), cache=cache)[0, -1], logits_of(model, text + [7]))
    with pytest.raises(PagePoolFull):
        for token in range(64):
            model(mx.array([[token]]), cache=cache)
    offsets = {one.offset for one in cache}
    assert len(offsets) == 1 and offsets.pop() >= 127
    for one in cache:
        one.release()
    assert pool.pages == 0
    model(mx.array([text]), cache=pool.caches())


def test_released_caches_and_old_handles_are_refused():
    model, pool = pool_of("llama")
    (cache, _), q = pool.caches(), mx.zeros((1, 4, 1, 32))
    new = [mx.zeros((1, 2, 1, 32))] * 2
    old = cache.update_and_fetch(*new)
    now = cache.update_and_fetch(*new)
    call = mx.fast.scaled_dot_product_attention
    assert call(q, *now, scale=1.0, mask=None).shape == q.shape
    for handles, words in (
        (old, "earlier step"), ((now[0], old[1]), "different steps"), ((now[0], mx.zeros((1, 2, 2, 32))), "different"),
    ):  # fmt: skip
        with pytest.raises(PagePoolError, match=words):
            call(q, *handles, scale=1.0, mask=None)
    with pytest.raises(PagePoolError, match="array mask"):
        call(q, *now, scale=1.0, mask=mx.ones((1, 1, 1, 2), mx.bool_))
    with pytest.raises(PagePoolError, match="queries of another step"):
        call(mx.zeros((2, 4, 1, 32)), *now, scale=1.0, mask=None)
    cache.release()
    for deed in (
        lambda: call(q, *now, scale=1.0, mask=None), lambda: cache.update_and_fetch(*new), cache.fork,
        lambda: cache.trim(1), lambda: cache.extract(0), lambda: cache.filter([0]), lambda: cache.merge([cache]),
    ):  # fmt: skip
        with pytest.raises(PagePoolError, match="released"):
            deed()


def test_one_thread_at_a_time():
    """Made in one thread and used in another is fine; two inside at the same moment are not."""
    model, pool = pool_of("llama")
    cache, found = pool.caches(), []

    def use():
        try:
            found.append(model(mx.array([[1, 2]]), cache=cache).shape)
        except PagePoolError as error:
            found.append(str(error))

    def in_another_thread():
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    in_another_thread()
    with pool.entered():
        in_another_thread()
    assert found[0] == (1, 2, 64) and "two threads" in found[1]


def test_bad_pools_and_batches():
    model = tiny_models.tiny("llama")
    for options, words in (
        ({"page": 12}, "a multiple of 8"), ({"page": 0}, "page"), ({"bytes": 0.5}, "bytes"), ({"bits": 7}, "bits"),
        ({"bits": 4, "mode": "nf4"}, "mode"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            PagePool(model, **options)
    pool = PagePool(model, bits=8, group_size=64)  # of head dimension 32
    assert pool.paged == 0 and "group size 64" in str(pool)
    cache = PagePool(model, page=8).caches()
    model(mx.array([[1, 2]]), cache=cache)
    with pytest.raises(ValueError, match="batch 1 as in the cache"):
        model(mx.array([[1], [2]]), cache=cache)
    with pytest.raises(ValueError, match="left_padding"):
        cache[0].prepare(left_padding=[1])
