"""Every option of attention, forward and all gradients, on small problems against float64 numpy."""

import bounds
import numpy as np
import pytest
from variants import VARIANTS, computed, dense


def finite(array) -> np.ndarray:
    """L with zeros where a row sees nothing."""
    array = bounds.float64(array)
    return np.where(np.isneginf(array), 0, array)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(backend, name):
    want, got = dense(name), computed(name)
    assert list(got) == list(want)
    assert np.array_equal(np.isneginf(bounds.float64(got["L"])), np.isneginf(want["L"]))
    for tensor, array in got.items():
        exact = finite(want[tensor]) if tensor == "L" else want[tensor]
        bounds.check(tensor, finite(array) if tensor == "L" else array, exact, name, "float32")
