"""The oracle is checked before it judges: against its own definition, element by element, and by differences."""

import itertools

import numpy as np
import oracle
import pytest

# (batch, query heads, key heads, Lq, Lk, D, Dv, causal): grouped heads, Dv != D, rows that see nothing
SHAPES = [
    (1, 1, 1, 3, 4, 2, 2, False),
    (2, 4, 2, 5, 3, 3, 2, True),
    (1, 6, 2, 3, 7, 2, 5, True),
    (1, 2, 1, 6, 2, 4, 3, True),
]


def arrays(shape, seed=0):
    batch, heads, key_heads, lq, lk, d, dv, _ = shape
    random = np.random.default_rng(seed)
    draw = random.standard_normal
    return (
        draw((batch, heads, lq, d)), draw((batch, key_heads, lk, d)), draw((batch, key_heads, lk, dv)),
        draw((batch, heads, lq, dv)),
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_array_form_equals_loops(shape):
    q, k, v, _ = arrays(shape)
    for got, want in zip(oracle.forward(q, k, v, 0.7, shape[-1]), oracle.forward_by_loops(q, k, v, 0.7, shape[-1])):
        seen = np.isfinite(want)
        assert np.array_equal(np.isneginf(got), ~seen)
        assert np.abs(got[seen] - want[seen]).max() <= 16 * np.finfo(np.float64).eps


def test_causal_is_aligned_to_the_lower_right():
    """Written out by hand, so that the oracle and the kernels cannot share a misunderstanding."""
    drawn = {
        (2, 4): ["xxx.", "xxxx"],
        (4, 2): ["..", "..", "x.", "xx"],
        (3, 3): ["x..", "xx.", "xxx"],
        (1, 3): ["xxx"],
    }
    for (lq, lk), rows in drawn.items():
        want = np.array([[mark == "x" for mark in row] for row in rows])
        assert np.array_equal(oracle.visibility(lq, lk, True), want)
        assert oracle.visibility(lq, lk, False).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_by_central_differences(shape):
    """Every element of dQ, dK and dV is compared; the third-order error of a step of 1e-4 is about 1e-9."""
    q, k, v, d_o = arrays(shape)
    scale, causal, step = 0.7, shape[-1], 1e-4

    def loss():
        return (oracle.forward(q, k, v, scale, causal)[0] * d_o).sum()

    analytic = oracle.gradients(q, k, v, d_o, scale, causal)
    for name, array in (("dQ", q), ("dK", k), ("dV", v)):
        measured = np.zeros_like(array)
        for index in itertools.product(*map(range, array.shape)):
            kept = array[index]
            array[index] = kept + step
            above = loss()
            array[index] = kept - step
            below = loss()
            array[index] = kept
            measured[index] = (above - below) / (2 * step)
        worst = np.abs(measured - analytic[name]).max() / np.abs(analytic[name]).max()
        assert worst <= 1e-7, f"{name}: analytic and measured gradients differ by {worst:.1e}"


def test_fully_masked_rows_give_zeros():
    q, k, v, d_o = arrays((1, 1, 1, 5, 2, 3, 3, True))
    out, lse = oracle.forward(q, k, v, 1.0, True)
    gradients = oracle.gradients(q, k, v, d_o, 1.0, True)
    assert not out[:, :, :3].any() and np.isneginf(lse[:, :, :3]).all()
    assert not gradients["dQ"][:, :, :3].any() and np.isfinite(gradients["dK"]).all()
