"""Every option of attention, forward and all gradients, on small problems against float64 numpy."""

import math

import bounds
import mlx.core as mx
import numpy as np
import pytest
from cases import Case
from test_determinism import bits
from test_gradients import backward
from variants import VARIANTS, computed, dense, output

CASE = Case(45, 77, 16, causal=True)


def finite(array) -> np.ndarray:
    """L with zeros where a row sees nothing."""
    array = bounds.float64(array)
    return np.where(np.isneginf(array), 0, array)


def judge(name: str, got: dict[str, mx.array], want: dict[str, np.ndarray]):
    assert np.array_equal(np.isneginf(bounds.float64(got["L"])), np.isneginf(want["L"]))
    for tensor, array in got.items():
        exact = finite(want[tensor]) if tensor == "L" else want[tensor]
        bounds.check(tensor, finite(array) if tensor == "L" else array, exact, name, "float32")


@pytest.mark.parametrize("name", VARIANTS)
def test_output(backend, name):
    judge(name, output(name), dense(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients(backend, name):
    want, got = dense(name), computed(name)
    assert list(got) == list(want)
    judge(name, got, want)


def test_what_lies_behind_a_masked_key_reaches_nothing(backend):
    """The last key and its value are NaN: queries that do not see it compute what they always do."""
    arrays = CASE.arrays()
    want = backward(CASE, arrays)
    nan = mx.full((1, 1, 1, CASE.head_dim), math.nan)
    spoilt = {name: mx.concatenate([arrays[name][:, :, :-1], nan], axis=2) for name in "kv"}
    got = backward(CASE, arrays | spoilt)
    for name in ("O", "dQ"):
        assert bits(got[name][:, :, :-1]) == bits(want[name][:, :, :-1])
        assert mx.all(mx.isnan(got[name][:, :, -1])).item()
