"""The simulator gives an Apple GPU's numbers: random problems over all options, forward and backward, on both.

A difference is a bug of the simulator, which gets a test of its own. The pretended Mac's GPU is the simulator, so that
there the comparison itself is all that is tried.
"""

import bounds
import numpy as np
import pytest
from machines import METAL

from mlx_flash import use_backend
from mlx_flash.backends import backend
from mlx_flash.cli.accuracy import fuzz

CASES, CHUNK = 200, 25


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference in units in the last place of the largest magnitude; infinite where one is NaN."""
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return np.inf
    difference = np.abs(got[finite] - want[finite]).max(initial=0.0)
    return difference / bounds.ulp(np.abs(want[finite]).max(initial=0.0), "float32") if difference < np.inf else np.inf


@pytest.mark.metal
@pytest.mark.simulator
@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_a_gpu_and_the_simulator_agree(first):
    family, worst = backend("metal").family.name, {}
    for number in range(first, first + CHUNK):
        drawn, found = fuzz.draw(number, True), []
        for choice in (*METAL, ("simulator", family)):
            with use_backend(*choice):
                found.append(fuzz.results(drawn))
        for name, want in found[1].items():
            worst[number, name] = ulps(found[0][name], want)
    assert {where: found for where, found in worst.items() if not found <= bounds.AGREEMENT} == {}


def test_differences_are_noticed():
    want = np.array([1.0, 2.0, -np.inf], np.float32)
    assert ulps(want, want) == 0
    assert ulps(np.nextafter(want, np.float32(9)), want) == np.inf  # a number in the place of -inf
    assert ulps(np.array([1.0, np.nan, -np.inf]), want) == np.inf
    assert ulps(np.array([1.0, 2.0 + 2**-21, -np.inf]), want) == 2
