"""Empty calls give zeros of the right shape and zero gradients, and launch nothing."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from watched import watched

from mlx_flash import attention
from mlx_flash.backends import backend

# Batch, heads, queries and keys: every combination of none and one, and of none and some.
SIZES = [*itertools.product((0, 1), repeat=4), *itertools.product((0, 2), (0, 2), (0, 3), (0, 3))]
EMPTY = [sizes for sizes in dict.fromkeys(SIZES) if 0 in sizes]


@pytest.fixture
def launches():
    """Counts what reaches the backend; a launch would fail, since an empty grid is illegal."""

    def run(*_):
        raise AssertionError("an empty problem was launched")

    with watched(backend("reference"), run) as ran:
        yield ran


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", EMPTY, ids=str)
def test_zeros_without_a_launch(launches, sizes, causal):
    batch, heads, query_length, key_length = sizes
    for dtype, value_dim in ((mx.float32, 16), (mx.float16, 5)):
        q = mx.ones((batch, heads, query_length, 16), dtype)
        k = mx.ones((batch, heads, key_length, 16), dtype)
        v = mx.ones((batch, heads, key_length, value_dim), dtype)
        out, grads = mx.vjp(
            lambda *x: attention(*x, causal=causal), [q, k, v], [mx.ones((*q.shape[:3], value_dim), dtype)]
        )
        for got, want in zip((out[0], *grads), (mx.zeros((*q.shape[:3], value_dim)), q, k, v)):
            assert got.shape == want.shape and got.dtype == dtype
            assert not np.array(got.astype(mx.float32)).any()
    assert not launches


def test_the_counter_counts(launches):
    """A problem that is not empty does reach the backend, so the tests above can fail."""
    one = mx.ones((1, 1, 1, 8))
    with pytest.raises(AssertionError, match="was launched"):
        attention(one, one, one)
    assert len(launches) == 1


def test_no_launch_has_an_empty_grid(kernels):
    """The smallest problem there is: one row of each."""
    one = mx.ones((1, 1, 1, 8))
    out, grads = mx.vjp(lambda *x: attention(*x), [one, one, one], [one])
    assert np.array_equal(np.array(out[0]), np.array(one)) and len(grads) == 3
