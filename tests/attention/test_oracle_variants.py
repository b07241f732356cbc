"""The oracle of masks and variants is checked before it judges: against its loops, and by central differences."""

import itertools
from dataclasses import replace

import bounds
import numpy as np
import oracle
import pytest
from oracle_variants import Attention, Facts, forward_by_loops, seen, visible
from score_facts import HandScore, hand_visible

B, HQ, HK, LQ, LK, D, DV = 2, 4, 2, 4, 5, 2, 3
SHAPE = (B, HQ, LQ, LK)
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(0, 2, (2, B, 5))
MASK = DRAW.standard_normal((HQ, LQ, 1))
HOLES = np.where(DRAW.random(SHAPE) < 0.3, -np.inf, DRAW.standard_normal(SHAPE))
FACTS = {
    "plain": Facts(),
    "causal": Facts(causal=True),
    "window": Facts(window=(1, 0)),
    "window-left": Facts(window=(2, None)),
    "keep": Facts(keep=DRAW.random((HQ, LQ, LK)) < 0.5),
    "mask": Facts(mask=MASK),
    "mask-holes": Facts(mask=HOLES),
    "slopes": Facts(slopes=DRAW.random(HQ)),
    "softcap": Facts(softcap=1.5),
    "sinks": Facts(sinks=DRAW.standard_normal(HQ)),
    "segments": Facts(q_ids=IDS[0, :, :LQ], k_ids=IDS[1]),
    "lengths": Facts(True, sinks=DRAW.standard_normal(HQ), q_lengths=np.array([3, 4]), k_lengths=np.array([5, 2])),
    "score": Facts(score=HandScore(DRAW.uniform(0.5, 1.5, HQ), DRAW.standard_normal((17, HQ)))),
    "visible": Facts(visible=hand_visible, q_ids=IDS[0, :, :LQ], k_ids=IDS[1]),
    "dropout": Facts(survives=DRAW.random(SHAPE) < 0.7, dropout=0.3),
    "all": Facts(
        True, (3, 2), DRAW.random(SHAPE) < 0.8, MASK, DRAW.random(HQ), DRAW.standard_normal(HQ), 2.0, IDS[0, :, :LQ],
        IDS[1], DRAW.random(SHAPE) < 0.7, 0.25,
    ),
}  # fmt: skip


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1).standard_normal
    return {
        "q": draw((B, HQ, LQ, D)), "k": draw((B, HK, LK, D)), "v": draw((B, HK, LK, DV)), "d_o": draw((B, HQ, LQ, DV)),
        "d_lse": draw((B, HQ, LQ)),
    }  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_array_form_equals_loops(name):
    x = arrays()
    got = Attention(**x, scale=0.7, facts=FACTS[name]).results()
    for array, want in zip((got["O"], got["LSE"]), forward_by_loops(x["q"], x["k"], x["v"], 0.7, FACTS[name])):
        finite = np.isfinite(want)
        assert np.array_equal(np.isneginf(array), ~finite)
        assert np.abs(array[finite] - want[finite]).max() <= 32 * np.finfo(np.float64).eps


@pytest.mark.parametrize("name", FACTS)
def test_visible_one_pair_at_a_time(name):
    table = seen(FACTS[name], SHAPE)
    for b, h, i, j in np.ndindex(*SHAPE):
        assert table[b, h, i, j] == visible(FACTS[name], b, h, i, j, LQ, LK)


@pytest.mark.parametrize("name", FACTS)
def test_gradients_by_central_differences(name):
    """Every element of every gradient, of O and LSE together; rows that see nothing have no LSE to differentiate."""
    x, facts, step = arrays(), FACTS[name], 1e-4

    def loss(x, facts):
        attention = Attention(**x, scale=0.7, facts=facts)
        return (attention.results()["O"] * x["d_o"]).sum() + (
            np.where(np.isfinite(attention.lse), attention.lse, 0) * x["d_lse"]
        ).sum()

    analytic = Attention(**x, scale=0.7, facts=facts).results()
    moved = {"dQ": x["q"], "dK": x["k"], "dV": x["v"], "dM": facts.mask, "dsinks": facts.sinks}
    for gradient, array in moved.items():
        if array is None:
            assert gradient not in analytic
            continue
        measured = np.zeros_like(array)
        for index in itertools.product(*map(range, array.shape)):
            sides = []
            for sign in (1, -1):
                copy = array.copy()
                copy[index] += sign * step
                field = {"dQ": "q", "dK": "k", "dV": "v"}.get(gradient)
                changed = replace(facts, mask=copy) if gradient == "dM" else replace(facts, sinks=copy)
                sides.append(loss(x | {field: copy}, facts) if field else loss(x, changed))
            measured[index] = (sides[0] - sides[1]) / (2 * step)
        worst = np.abs(measured - analytic[gradient]).max() / np.abs(analytic[gradient]).max()
        assert worst <= bounds.DIFFERENCES, f"{gradient}: analytic and measured gradients differ by {worst:.1e}"


@pytest.mark.parametrize("causal", [False, True])
def test_without_variants_it_is_the_plain_oracle(causal):
    x = arrays()
    got = Attention(**x | {"d_lse": None}, scale=0.7, facts=Facts(causal)).results()
    inputs = (x["q"], x["k"], x["v"])
    want = {"O": oracle.forward(*inputs, 0.7, causal)[0], **oracle.gradients(*inputs, x["d_o"], 0.7, causal)}
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= 32 * np.finfo(np.float64).eps, name


def test_windows_are_aligned_to_the_lower_right():
    """Written out by hand, so that the oracle and the kernels cannot share a misunderstanding."""
    drawn = {
        (3, 3, (1, 0)): ["x..", "xx.", ".xx"],
        (2, 4, (1, 1)): [".xxx", "..xx"],
        (4, 2, (0, 1)): ["..", "x.", "xx", ".x"],
        (3, 3, (None, 1)): ["xx.", "xxx", "xxx"],
    }
    for (lq, lk, window), rows in drawn.items():
        want = np.array([[mark == "x" for mark in row] for row in rows])
        assert np.array_equal(seen(Facts(window=window), (1, 1, lq, lk))[0, 0], want), (lq, lk, window)
