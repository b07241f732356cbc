"""Bugs of other implementations with masks, variants and gradients of them; the id names the thread."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, backward
from feature_cases import Variant

from mlx_flash import BlockMask, attention, use_backend

CASE = Case(45, 70, 16, group=2, key_heads=2, batch=2)
# What went wrong elsewhere with features that need nothing special: forward and every gradient against the oracle.
ORDINARY = {
    "mlx-2909-gradient-of-a-mask": Variant(CASE, ("additive", "lse")),
    "pytorch-145208-learned-bias-of-a-column": Variant(CASE, ("additive", "lse"), "hj"),
    "jax-flash-attn2-1-learned-bias-of-a-row": Variant(CASE, ("additive", "lse"), "bi"),
    "flash-attention-2424-options-in-the-backward-pass": Variant(CASE, ("softcap", "lse")),
    "pytorch-185991-learned-bias-of-all-heads": Variant(CASE, ("additive", "lse"), "ij"),
    "pytorch-158212-alibi-in-the-backward-pass": Variant(CASE, ("alibi", "lse")),
    "mlx-2053-causal-with-few-queries": Variant(Case(3, 70, 16, group=4, batch=2), ("causal",)),
    "mlx-2152-batch-with-one-query": Variant(Case(1, 70, 16, group=2, key_heads=2, batch=2), ("bool",)),
    "jax-40140-gradient-of-sinks": Variant(CASE, ("sinks", "lse")),
    "pytorch-141126-sparse-block-mask": Variant(CASE, ("blocks", "lse")),
    "pytorch-169222-keys-no-multiple-of-32": Variant(Case(45, 33, 16, group=2, key_heads=2), ("window",)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_variant(backend, name):
    feature_cases.check(ORDINARY[name])


def drawn(case: Case = CASE) -> list[mx.array]:
    return [case.arrays()[name] for name in "qkv"]


def values_and_gradients(q, k, v, **options) -> list[mx.array]:
    outs, grads = mx.vjp(lambda *x: attention(*x, **options), [q, k, v], [mx.ones((*q.shape[:3], v.shape[3]))])
    return [*outs, *grads]


@pytest.mark.reported("flash-attention-1133", "transformers-39408")
def test_an_open_left_window_is_causal(backend):
    """(S - 1, 0) and (None, 0) are causal; one key less is another window, by one pair."""
    q, k, v = drawn()
    causal = values_and_gradients(q, k, v, causal=True)
    for left in (70 - 1, None):
        for got, want in zip(values_and_gradients(q, k, v, window=(left, 0)), causal):
            assert np.array_equal(np.array(got), np.array(want))
    shorter, want = np.array(attention(q, k, v, window=(70 - 2, 0))), np.array(causal[0])
    assert np.array_equal(shorter[:, :, :-1], want[:, :, :-1])
    assert (shorter[:, :, -1] != want[:, :, -1]).any(-1).all()


@pytest.mark.reported("mlx-lm-390")
def test_a_window_includes_the_query_itself(backend):
    """left = 2: itself and two before. Keys are one-hot in V, scores equal."""
    q, k, v = mx.zeros((1, 1, 9, 16)), mx.zeros((1, 1, 9, 16)), mx.eye(9, 16)[None, None]
    seen = np.array(attention(q, k, v, window=(2, 0)))[0, 0, :, :9] > 0
    assert np.array_equal(seen, np.tri(9, dtype=bool) & ~np.tri(9, k=-3, dtype=bool))


@pytest.mark.reported("pytorch-127055", "llama-cpp-7434")
def test_a_window_written_as_minus_infinities(backend):
    """A window written as an additive mask of -inf, and -inf inside the window: zeros, not NaN."""
    q, k, v = drawn()
    i, j = np.arange(45)[:, None] + 25, np.arange(70)[None]
    near = (j <= i) & (j >= i - 9)
    by_mask = values_and_gradients(q, k, v, mask=mx.array(np.where(near, 0, -np.inf).astype(np.float32)))
    by_window = values_and_gradients(q, k, v, window=(9, 0))
    for name, got, want in zip(("O", "dQ", "dK", "dV"), by_mask, by_window):
        bounds.check(name, got, bounds.float64(want), "window as mask", "float32")
    hidden = mx.array(np.where(near & (i > 40), 0, -np.inf).astype(np.float32))
    for array in values_and_gradients(q, k, v, mask=hidden):
        assert np.isfinite(np.array(array)).all()


@pytest.mark.reported("flash-attention-2199")
def test_rows_with_an_empty_window(backend):
    """More queries than keys: the windows of the first rows lie before the first key."""
    q, k, v = drawn(Case(70, 45, 16, group=2, key_heads=2, batch=2))
    found = values_and_gradients(q, k, v, window=(5, 0))
    assert not np.array(found[0])[:, :, : 70 - 45].any() and not np.array(found[1])[:, :, : 70 - 45].any()
    assert all(np.isfinite(np.array(array)).all() for array in found)


GARBAGE = {  # what lies behind the first keys
    "pytorch-101967": (50, mx.nan), "pytorch-119320": (65, mx.nan), "flash-attention-1745": (50, mx.inf),
    "flash-attention-2374": (33, mx.nan), "flash-attention-1395": (1, -mx.inf),
}  # fmt: skip


@pytest.mark.parametrize("thread", GARBAGE)
def test_garbage_at_masked_keys(backend, thread):
    """NaN and infinity in K and V where nobody looks: the bits of zeros there."""
    q, k, v = drawn()
    count, garbage = GARBAGE[thread]
    seen = mx.arange(70) < count
    clean, dirty = ([mx.where(seen[:, None], array, other) for array in (k, v)] for other in (0, garbage))
    want = list(map(bits, values_and_gradients(q, *clean, mask=seen)))
    assert list(map(bits, values_and_gradients(q, *dirty, mask=seen))) == want


ALIGNMENTS = {"mlx-2967": (9, 13), "mlx-2835": (13, 9), "executorch-22426": (1, 13)}


@pytest.mark.parametrize("thread", ALIGNMENTS)
def test_the_last_query_sees_the_last_key(backend, thread):
    """Causality is aligned to the lower right. Keys are one-hot in V, scores equal."""
    rows, columns = ALIGNMENTS[thread]
    q, k, v = mx.zeros((1, 1, rows, 16)), mx.zeros((1, 1, columns, 16)), mx.eye(columns, 16)[None, None]
    seen = np.array(attention(q, k, v, causal=True))[0, 0, :, :columns] > 0
    assert np.array_equal(seen, np.tri(rows, columns, columns - rows, dtype=bool))


BLIND = {
    "mlx-2626": [0, 7, 44], "mlx-2608": [0], "mlx-2406": [44], "mlx-2029": range(45), "mlx-2096": range(0, 45, 2),
    "pytorch-41508": range(32), "pytorch-103963": range(32, 45), "pytorch-109517": range(1, 45),
    "pytorch-156707": range(8),
}  # fmt: skip


@pytest.mark.parametrize("thread", BLIND)
def test_fully_masked_rows_by_mask(backend, thread):
    """Rows masked by False or by -inf are zero, with zero gradients. The other rows have, to the bit, the results of
    the call without a mask or with a mask that adds nothing, since scores are scaled before anything is added."""
    q, k, v = drawn()
    blind = np.zeros((45, 1), bool)
    blind[list(BLIND[thread])] = True
    added = mx.array(np.where(blind, -np.inf, 0).astype(np.float32))
    for mask, without in ((mx.array(~blind), None), (added, mx.zeros_like(added))):
        found, plain = values_and_gradients(q, k, v, mask=mask), values_and_gradients(q, k, v, mask=without)
        for got, want in zip(found[:2], plain[:2]):
            assert not np.array(got)[:, :, blind[:, 0]].any()
            assert np.array_equal(np.array(got)[:, :, ~blind[:, 0]], np.array(want)[:, :, ~blind[:, 0]])


@pytest.mark.reported("mlx-lm-1906", "mlx-lm-439", "mlx-vlm-1946", "mlxcel-76")
def test_left_padded_batches(backend):
    """Each prompt of a batch, padded on the left, is what it is alone: rows of its own tokens."""
    lengths, total = (70, 41), 70
    q, k, v = (mx.random.normal((2, heads, total, 16), key=mx.random.key(heads)) for heads in (4, 2, 2))
    real = np.arange(total) >= total - np.array(lengths)[:, None]
    mask = mx.array(np.tri(total, dtype=bool) & real[:, None, None])
    together = attention(q, k, v, mask=mask)
    for entry, length in enumerate(lengths):
        own = [array[entry : entry + 1, :, total - length :] for array in (q, k, v)]
        alone = bounds.float64(attention(*own, causal=True))
        bounds.check("O", together[entry : entry + 1, :, total - length :], alone, "padded on the left", "float32")
    assert not np.array(together)[1, :, : total - 41].any(), "padding sees nothing"


@pytest.mark.reported("mlx-3452")
def test_sinks_of_one_query_and_of_many(backend):
    """Token by token against a cache gives what the whole prompt gives."""
    q, k, v = drawn(Case(20, 20, 16, group=2, key_heads=2))
    sinks = mx.array([0.5, -2.0, 3.0, 0.0])
    whole = attention(q, k, v, causal=True, sinks=sinks)
    for n in (0, 1, 7, 19):
        one = attention(q[:, :, n : n + 1], k[:, :, : n + 1], v[:, :, : n + 1], causal=True, sinks=sinks)
        bounds.check("O", one, bounds.float64(whole[:, :, n : n + 1]), f"token {n}", "float32")


@pytest.mark.reported("pytorch-135161")
def test_two_calls_in_one_graph(backend):
    """Each with a bias of its own, the second on the first one's output: both biases get their own gradients."""
    q, k, v = drawn(Case(45, 45, 16, key_heads=2))
    biases = [mx.random.normal((2, 45, 45), key=mx.random.key(seed)) for seed in (1, 2)]

    def twice(q, first, second):
        return attention(attention(q, k, v, mask=first), k, v, mask=second)

    (out,), grads = mx.vjp(twice, [q, *biases], [mx.ones(q.shape)])
    with use_backend("reference"):
        inner = attention(q, k, v, mask=biases[0])
        (want,), (d_inner, second) = mx.vjp(lambda *x: attention(x[0], k, v, mask=x[1]), [inner, biases[1]],
                                            [mx.ones(q.shape)])  # fmt: skip
        _, (d_q, first) = mx.vjp(lambda *x: attention(x[0], k, v, mask=x[1]), [q, biases[0]], [d_inner])
    for name, got, right in zip(("O", "dQ", "dM", "dM"), (out, *grads), (want, d_q, first, second)):
        bounds.check(name, got, bounds.float64(right), "two calls", "float32")


@pytest.mark.reported("pytorch-150321")
def test_nothing_is_read_behind_a_block_mask(kernels):
    """Keys past the last listed block may be NaN, and the simulator reports what reads past the end."""
    q, k, v = drawn()
    mask = BlockMask.from_predicate(lambda i, j: (j < 32) & (i >= 0), 45, 70, block=32)
    dirty = [mx.where(mx.arange(70)[:, None] < 32, array, mx.nan) for array in (k, v)]
    assert list(map(bits, values_and_gradients(q, *dirty, mask=mask))) == list(
        map(bits, values_and_gradients(q, *(mx.where(mx.isnan(array), 0, array) for array in dirty), mask=mask))
    )


@pytest.mark.reported("pytorch-xla-8978")
def test_causal_hides_the_future(backend):
    """Causality hides the future and not the past: the first query sees the first key alone."""
    case = Case(9, 9, 16)
    q, k, v = drawn(case)
    out = np.array(attention(q, k, v, causal=True))
    assert np.array_equal(out[:, :, 0], np.array(v)[:, :, 0]) and not np.array_equal(out[:, :, 8], np.array(v)[:, :, 8])


@pytest.mark.reported("tilelang-2461")
def test_rows_past_the_end_have_no_statistics(backend):
    """L and delta are read in whole blocks in the backward pass: lengths just above a block's."""
    case = Case(33, 65, 16, group=2, key_heads=2)
    for array in backward(case, case.arrays()).values():
        assert np.isfinite(np.array(array)).all()
