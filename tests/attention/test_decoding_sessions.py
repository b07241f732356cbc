"""Caches as servers treat them: trimmed, with another batch, and of threads that decode at once."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from arrays import bits
from cases import Case, expected

from mlx_flash import attention, use_backend
from mlx_flash.autodiff import call as calls
from mlx_flash.kernels import source
from mlx_flash.kernels.plan import plan

WHOLE = Case(1, 1100, 16, group=4, key_heads=2, batch=3)
LENGTHS = (511, 512, 513, 40, 1100, 512, 1, 511)  # around a second part, trimmed, all of it, and again


def token(arrays, keys: int, batch: slice = slice(None)) -> mx.array:
    """The attention of one token over a view of the first keys of a cache."""
    q, k, v = (arrays[name][batch] for name in "qkv")
    return attention(q, k[:, :, :keys], v[:, :, :keys], causal=True)


def test_a_cache_that_is_trimmed(backend):
    arrays = WHOLE.arrays()
    first = {}
    for keys in LENGTHS:
        shown = {name: arrays[name] if name in ("q", "d_o") else arrays[name][:, :, :keys] for name in arrays}
        out = token(arrays, keys)
        expected(Case(1, keys, 16, causal=True, group=4, key_heads=2, batch=3), shown).check(O=out)
        assert first.setdefault(keys, bits(out)) == bits(out)


def test_a_batch_that_changes_between_tokens(backend):
    """Entries come and go: the others keep their bits."""
    arrays = WHOLE.arrays()
    alone = {(entry, keys): token(arrays, keys, slice(entry, entry + 1)) for entry in range(3) for keys in (600, 601)}
    for keys, batch in ((600, slice(0, 3)), (601, slice(1, 3)), (600, slice(0, 2)), (601, slice(0, 3))):
        out = token(arrays, keys, batch)
        for place, entry in enumerate(range(3)[batch]):
            assert bits(out[place : place + 1]) == bits(alone[entry, keys]), (keys, batch)


def test_the_second_time_makes_nothing(kernels):
    """Lengths and batches that came before: no text, no plan, no launch."""
    arrays = WHOLE.arrays()

    def made() -> list[int]:
        kept = [one.plan for call in calls._cache.values() for one in call._attention._choices.values()]
        found = [one.cache_info().misses for one in (source.build, plan)]
        return [*found, len(calls._cache), *(len(one.resources["launches"]) for one in kept if one)]

    def session():
        for keys in LENGTHS:
            token(arrays, keys)
            token(arrays, keys, slice(1, 3))

    session()
    before = made()
    session()
    assert made() == before


def test_threads_that_decode_at_once(kernels):
    """Each with a cache and lengths of its own: every token has the bits that it has alone."""
    arrays = WHOLE.arrays()
    mx.eval(arrays)

    def session(start: int) -> list[bytes]:
        with use_backend(kernels.name, kernels.family.name):
            return [bits(token(arrays, keys)) for keys in range(start, start + 6)]

    starts = (40, 255, 509, 700)
    want = [session(start) for start in starts]
    calls.clear_cache()
    with ThreadPoolExecutor(len(starts)) as pool:
        assert list(pool.map(session, starts)) == want


@pytest.mark.parametrize("name", ["q", "k"])
def test_lengths_beyond_32_bits_are_refused(name):
    """Kernels count rows in 32 bits. The arrays are views of one row, so that this costs no memory."""
    one = mx.zeros((1, 1, 1, 8))
    arrays = dict.fromkeys("qkv", one)
    for part in name if name == "q" else "kv":
        arrays[part] = mx.broadcast_to(one, (1, 1, 2**30, 8))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name}: expected fewer than 1073741824 rows"):
            attention(*arrays.values())
