"""Every option of attention, forward and all gradients, on small problems against float64 numpy."""

import bounds
import mlx.core as mx
import numpy as np
import pytest
from variants import VARIANTS, computed, dense, output


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
