"""Dropout: how many survive, that the mean stays, and that forward and backward kernels draw one pattern."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant, pattern
from machines import KERNELS
from oracle_variants import Facts

from mlx_flash import attention, use_backend

SHAPE = (2, 2, 70, 97)  # batch, heads, queries, keys


def survivors(shape=SHAPE, probability=0.3, key=5, dtype=mx.float32, **options) -> np.ndarray:
    """bool of `shape`: equal scores and V the identity, so that O shows which weights are left."""
    batch, heads, rows, columns = shape
    q, k = mx.zeros((batch, heads, rows, 8), dtype), mx.zeros((batch, heads, columns, 8), dtype)
    v = mx.broadcast_to(mx.eye(columns).astype(dtype), (batch, heads, columns, columns))
    out = attention(q, k, v, dropout=probability, key=mx.random.key(key), **options)
    return np.array(out.astype(mx.float32)) > 0


def philox(x: int, y: int, key: int) -> int:
    """Philox-2x32 with ten rounds (Salmon et al. 2011), one word, in Python's own integers."""
    for _ in range(10):
        product = x * 0xD256D193
        x, y = (product >> 32) ^ key ^ y, product & 0xFFFFFFFF
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return x


def test_the_pattern_is_philox():
    """Known answers of the generator, then the reference's pattern, one pair at a time."""
    assert philox(0, 0, 0) == 0xFF1DAE59
    assert philox(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF) == 0x2C3F628B
    got = pattern((2, 3, 5, 7))
    key0, key1 = (int(word) for word in np.array(mx.random.key(5)))
    for b, h, i, j in np.ndindex(2, 3, 5, 7):
        word = philox(i, j, philox(b * 3 + h, key1, key0))
        assert got[b, h, i, j] == (word >= round(0.3 * 2**32)), (b, h, i, j)


def test_every_backend_draws_one_pattern(kernels):
    """The pattern depends on no block size, type or other feature; a hidden key changes nothing for the others."""
    want = pattern(SHAPE)
    assert np.array_equal(survivors(), want)
    assert np.array_equal(survivors(dtype=mx.bfloat16), want)
    seen = np.tril(np.ones(SHAPE[2:], bool), SHAPE[3] - SHAPE[2])
    assert np.array_equal(survivors(causal=True), want & seen)


def test_both_backward_kernels_draw_the_pattern_of_the_forward_kernel(backend):
    """dQ, dK, dV and dM against the oracle, which is given the reference's pattern; another pattern would not do."""
    case = Case(65, 70, 40, group=2, key_heads=2, batch=2)
    draw = np.random.default_rng(9)
    mask = draw.standard_normal((2, 4, 65, 70)).astype(np.float32)
    arguments = {"mask": mx.array(mask), "dropout": 0.3, "key": feature_cases.KEY}
    survives = pattern((2, 4, 65, 70))
    facts = Facts(mask=mask.astype(np.float64), dropout=0.3, survives=survives)
    feature_cases.check_arguments(Variant(case, ()), arguments, facts)
    other = Facts(mask=facts.mask, dropout=0.3, survives=survives[:, :, ::-1])
    with pytest.raises(AssertionError, match="exceeds"):
        feature_cases.check_arguments(Variant(case, ()), arguments, other)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_keep_rate(reference, probability):
    """Within five standard deviations of a fair coin, over all, and over every row and column."""
    kept = survivors((2, 4, 128, 256), probability)
    for axes in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (2, 3)):
        count = kept.size // np.prod([extent for axis, extent in enumerate(kept.shape) if axis not in axes])
        spread = np.sqrt(probability * (1 - probability) / count)
        assert np.abs(kept.mean(axes) - (1 - probability)).max() <= 5 * spread, axes


def test_neighbours_are_independent(reference):
    """Each pair of neighbours, along every axis, agrees as often as two independent coins."""
    kept = survivors((4, 4, 128, 128), 0.5)
    for axis in range(4):
        one, other = np.take(kept, range(1, kept.shape[axis]), axis), np.take(kept, range(kept.shape[axis] - 1), axis)
        assert abs((one == other).mean() - 1 / 2) <= 5 * np.sqrt(1 / 4 / one.size), axis


def test_dropout_is_unbiased(reference):
    """The mean over keys of 256 outputs is the output without dropout, within five standard errors."""
    case = Case(9, 33, 8, key_heads=2)
    arrays = case.arrays()
    q, k, v = (arrays[name] for name in "qkv")
    draws = np.stack([np.array(attention(q, k, v, dropout=0.4, key=mx.random.key(seed))) for seed in range(256)])
    error = np.abs(draws.mean(0) - np.array(attention(q, k, v)))
    assert (error <= 5 * draws.std(0) / np.sqrt(len(draws))).all()


def test_same_key_same_bits_other_key_other_pattern(backend):
    assert np.array_equal(survivors(key=1), survivors(key=1))
    one, other = survivors(key=1), survivors(key=2)
    agreement = (one == other).mean()
    assert abs(agreement - (0.7**2 + 0.3**2)) <= 5 * np.sqrt(1 / 4 / one.size)


def test_heads_and_batch_entries_differ(backend):
    kept = survivors().reshape(4, -1)
    for one in range(4):
        for other in range(one):
            assert not np.array_equal(kept[one], kept[other])


def test_no_dropout_is_dropout_zero(backend):
    arrays = Case(65, 70, 40, group=2, key_heads=2, batch=2).arrays()
    q, k, v = (arrays[name] for name in "qkv")
    assert bits(attention(q, k, v, dropout=0.0)) == bits(attention(q, k, v))


@pytest.mark.parametrize("probability", [1e-12, 1 - 1e-12])
def test_probabilities_at_the_ends(backend, probability):
    """Nearly none and nearly all are dropped; what is kept stays finite."""
    kept = survivors(probability=probability)
    assert kept.all() if probability < 1 / 2 else not kept.any()


def test_lse_is_that_of_all_weights(backend):
    """Dropout acts on the weights after their sum is taken."""
    arrays = Case(65, 70, 40, group=2, key_heads=2, batch=2).arrays()
    q, k, v = (arrays[name] for name in "qkv")
    dropped = attention(q, k, v, dropout=0.3, key=feature_cases.KEY, return_lse=True)[1]
    assert bits(dropped) == bits(attention(q, k, v, return_lse=True)[1])


@pytest.mark.kernels
def test_families_agree():
    """Results agree within the criterion: blocks differ by family, the pattern does not."""
    arrays = Case(65, 70, 40, group=2, key_heads=2, batch=2).arrays()
    results = []
    for choice in KERNELS:
        with use_backend(*choice):
            results.append(attention(*(arrays[name] for name in "qkv"), dropout=0.3, key=feature_cases.KEY))
    for other in results[1:]:
        bounds.check("O", other, bounds.float64(results[0]), "families", "float32")
