"""Logits up to +-2.5e5, statistics below what float32 can exponentiate, odd scales: with masks, finite and right."""

import itertools
from dataclasses import replace

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from cases import Case
from feature_cases import Variant
from machines import across_backends
from oracle_variants import Attention, Facts

from mlx_flash import attention

CASE = Case(45, 70, 16, group=2, key_heads=2, batch=2)


def judged(backend_arrays, case: Case, arguments: dict, facts: Facts):
    """Every result is finite where the oracle's is, and within the criterion."""
    variant = Variant(case, ())
    d_lse = mx.zeros((2, 4, case.query_length))
    got = feature_cases.backward(variant, backend_arrays, arguments | {"return_lse": True}, d_lse)
    inputs = [bounds.float64(backend_arrays[name]) for name in ("q", "k", "v", "d_o")]
    judge = Attention(*inputs, case.scale, facts)
    want, terms = judge.results(), judge.term_magnitudes()
    feature_cases.check_lse(got.pop("LSE"), want["LSE"], str(case), terms["LSE"])
    for name, array in got.items():
        assert np.isfinite(np.array(array)).all(), name
        floor = bounds.score_rounding(judge.largest_score) * terms[name]
        bounds.check(name, array, want[name], str(case), "float32", terms=terms[name], floor=floor)
    return judge


def scaled_to(arrays, case: Case, largest: float):
    """q such that the largest score is `largest`; all is rounded to few bits, so that float32 knows the scores exactly:
    differences of scores that are large enough to matter are then the same in float32 and float64."""
    coarse = {name: mx.round(array * 4) / 4 for name, array in arrays.items() if name in "qk"}
    q, k = (bounds.float64(coarse[name]) for name in "qk")
    k = np.repeat(k, case.group, 1)
    top = np.abs(case.scale * q @ k.swapaxes(-1, -2)).max()
    factor = 2.0 ** np.floor(np.log2(largest / top))
    assert factor * top > largest / 2
    return arrays | coarse | {"q": coarse["q"] * factor}


MASKS = {
    "plain": lambda: ({}, Facts()),
    "causal": lambda: ({"causal": True}, Facts(causal=True)),
    "window": lambda: ({"window": (20, 3)}, Facts(window=(20, 3))),
    "bool": lambda: (lambda keep: ({"mask": mx.array(keep)}, Facts(keep=keep)))(
        np.random.default_rng(1).random((45, 70)) < 0.5
    ),
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
def test_logits_of_a_quarter_of_a_million(backend, mask):
    """Softmax is nearly one-hot: no overflow, no NaN, in forward and backward."""
    case = replace(CASE, scores="plain")
    arrays = scaled_to(case.arrays(), case, 2.5e5)
    judge = judged(arrays, case, *MASKS[mask]())
    assert judge.largest_score > 1.25e5


@pytest.mark.parametrize("feature", ["additive", "alibi"])
def test_biases_of_a_quarter_of_a_million(backend, feature):
    arrays, draw = CASE.arrays(), np.random.default_rng(2)
    if feature == "additive":
        mask = (draw.integers(-(10**5), 10**5, (45, 70)) * 2.5).astype(np.float32)
        arguments, facts = {"mask": mx.array(mask)}, Facts(mask=mask.astype(np.float64))
    else:
        slopes = np.array([0.0, 16.0, 1024.0, 4096.0])
        arguments, facts = {"alibi_slopes": mx.array(slopes.astype(np.float32))}, Facts(slopes=slopes)
    assert judged(arrays, CASE, arguments, facts).largest_score > 1e5


@pytest.mark.parametrize("level", [-100.0, -1000.0, -2.4e5])
@pytest.mark.parametrize("lengths", [(45, 70), (7, 3), (33, 65)], ids=str)
def test_statistics_below_the_exponent_of_float32(backend, lengths, level):
    """LSE < -88.7: exp of it underflows. The last tiles are partial, where padding has the score 0."""
    case = Case(*lengths, 16, group=2, key_heads=2, batch=2)
    for mask in (np.full(lengths, level), np.full((1, lengths[1]), level)):
        judge = judged(case.arrays(), case, {"mask": mx.array(mask.astype(np.float32))}, Facts(mask=mask))
        assert judge.lse.max() < -80


SCALES = itertools.product(("zero", "negative", "tiny"), ("window", "bool", "additive", "softcap", "blocks", "sinks"))


@pytest.mark.parametrize("backend, case", across_backends(SCALES), indirect=["backend"])
def test_scales(backend, case):
    scores, feature = case
    feature_cases.check(Variant(replace(CASE, scores=scores), (feature, "lse")))


def test_a_large_scale(backend):
    """Scores of 1e5, the largest of each row far above the others, known exactly."""
    arrays = scaled_to(CASE.arrays(), replace(CASE, scores="plain"), 10 * CASE.scale)
    inputs, d_o = [arrays[name] for name in "qkv"], arrays["d_o"]
    judge = Attention(*map(bounds.float64, (*inputs, d_o)), 1e4, Facts())
    assert judge.largest_score > 5e4
    outs, grads = mx.vjp(lambda *x: attention(*x, scale=1e4), inputs, [d_o])
    want, terms = judge.results(), judge.term_magnitudes()
    for name, got in zip(("O", "dQ", "dK", "dV"), (*outs, *grads)):
        floor = bounds.score_rounding(judge.largest_score) * terms[name]
        bounds.check(name, got, want[name], "scale 1e4", "float32", terms=terms[name], floor=floor)


def test_the_largest_float16(backend):
    """Entries of 65504: scores of 5e8, whose softmax is one-hot, so O is V, dV the cotangent, and dQ and dK vanish."""
    eye = 65504 * mx.eye(64)[None, None].astype(mx.float16)
    v, d_o = (mx.random.normal((1, 1, 64, 64), key=mx.random.key(seed)).astype(mx.float16) for seed in (0, 1))
    (out,), (dq, dk, dv) = mx.vjp(lambda *x: attention(*x), [eye, eye, v], [d_o])
    assert np.array_equal(np.array(out), np.array(v)) and np.array_equal(np.array(dv), np.array(d_o))
    terms = Attention(*map(bounds.float64, (eye, eye, v, d_o)), 64**-0.5, Facts()).term_magnitudes()
    for name, got in (("dQ", dq), ("dK", dk)):
        bounds.check(name, got, np.zeros(got.shape), "65504", "float32", terms=terms[name])


@pytest.mark.parametrize("softcap", [0.1, 1e6])
def test_softcaps(backend, softcap):
    """So small that most scores are +-cap, so large that there is none."""
    judged(CASE.arrays(), CASE, {"softcap": softcap}, Facts(softcap=softcap))


@pytest.mark.parametrize("sink", [-1e5, 1e5])
def test_sinks_that_vanish_or_dominate(backend, sink):
    sinks = np.full(4, sink)
    judge = judged(CASE.arrays(), CASE, {"sinks": mx.array(sinks.astype(np.float32))}, Facts(sinks=sinks))
    assert (judge.p.sum(-1).max() < 1) == (sink > 0)
