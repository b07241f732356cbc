"""dQ, dK and dV of every head dimension, dtype, length, grouping, mask and kind of scores, against the oracle."""

import bounds
import cases
import mlx.core as mx
import numpy as np
import oracle
import pytest
from cases import CASES, VALUE_DIMS, Case, backward, expected
from machines import across_backends

from mlx_flash.simulator import mode


def waits(index: int) -> bool:
    """Two of the three types of each head dimension run in the full run only, others than in test_forward.py."""
    return index < len(CASES) - len(VALUE_DIMS) and index % 3 != index // 3 % 3


@pytest.mark.parametrize("backend, case", across_backends(CASES, waits), indirect=["backend"])
def test_gradients(backend, case):
    arrays = case.arrays()
    expected(case, arrays).check(**backward(case, arrays))


@pytest.mark.long
@pytest.mark.parametrize("lengths", [(33, 16384), (16384, 33)], ids=str)
def test_long_sums(backend, lengths):
    """Sums over 16384 keys, and over as many queries: the error is bounded by the largest magnitude at any length."""
    case = Case(*lengths, 16)
    arrays = case.arrays()
    with mode("check"):
        expected(case, arrays).check(**backward(case, arrays))


@pytest.mark.parametrize("group", [3, 7])
def test_groups_that_are_no_power_of_two(backend, group):
    case = Case(33, 65, 64, "float32", True, group, key_heads=2)
    arrays = case.arrays()
    expected(case, arrays).check(**backward(case, arrays))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
def test_grouped_heads_are_repeated_heads_summed(backend, group):
    """dK and dV of grouped heads are the sums of what each query head alone would give its own copy."""
    case = Case(17, 35, 16, "float32", False, group, key_heads=2, batch=2)
    arrays = case.arrays()
    grouped = backward(case, arrays)
    repeated = arrays | {name: mx.repeat(arrays[name], case.group, axis=1) for name in "kv"}
    apart = backward(case, repeated)
    assert np.array_equal(np.array(grouped["O"]), np.array(apart["O"]))
    for name in ("dK", "dV"):
        alone = bounds.float64(apart[name])
        shape = (case.batch, case.key_heads, case.group, *alone.shape[2:])
        bounds.check(name, grouped[name], alone.reshape(shape).sum(2), str(case), case.dtype)


def test_gradients_along_random_directions(backend):
    """The kernels' gradients against differences of the oracle's forward: no analytic gradient in between."""
    case = Case(9, 12, 33, "float32", True, group=2)
    arrays = case.arrays()
    grads = backward(case, arrays)
    exact = {name: bounds.float64(array) for name, array in arrays.items()}
    random, step = np.random.default_rng(cases.SEED), 1e-4
    for name, grad in (("q", "dQ"), ("k", "dK"), ("v", "dV")):
        for _ in range(8):
            direction = random.standard_normal(exact[name].shape)
            sides = []
            for sign in (1, -1):
                moved = exact | {name: exact[name] + sign * step * direction}
                out, _ = oracle.forward(moved["q"], moved["k"], moved["v"], case.scale, case.causal)
                sides.append((out * exact["d_o"]).sum())
            slope = (sides[0] - sides[1]) / (2 * step)
            along = np.array((bounds.float64(grads[grad]) * direction).sum())
            bounds.check(grad, along, np.array(slope), str(case), case.dtype, terms=np.abs(direction).sum())
