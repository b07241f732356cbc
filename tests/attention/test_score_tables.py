"""Gradients of the arrays that a score reads: slopes, temperatures, relative biases; and what has none says so."""

import bounds
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from machines import across_backends
from oracle_variants import Attention, Facts

from mlx_flash import Score, UnsupportedProblem, attention, gallery, use_backend, vmap
from mlx_flash.autodiff.tables import gathered, rounds

CASE = Case(40, 49, 16, group=2, key_heads=2, batch=2)
HEADS, KEYS = 4, 49
B, H = np.arange(2)[:, None, None, None], np.arange(HEADS)[:, None, None]
Q, K = np.arange(40)[:, None] + 9, np.arange(KEYS)  # positions
DRAW = np.random.default_rng(4)
SWIN = (Q // 7 - K // 7 + 6) * 13 + Q % 7 - K % 7 + 6


class Facing:
    """A score as the oracle asks it: value and slope in s, and the slope in the element that the pair reads."""

    def __init__(self, text, shape, index, value, slope, partial):
        self.text, self.array, self.index = text, DRAW.uniform(0.3, 1, shape).astype(np.float32), index
        self.of, self.by, self.partial = value, slope, partial
        self.read = bounds.float64(self.array)[np.broadcast_arrays(*index)] if index else float(self.array)

    def value(self, s, q, k):
        return self.of(s, self.read)

    def slope(self, s, q, k):
        return np.broadcast_to(self.by(s, self.read), s.shape)


def added(text, shape, index):
    return Facing(text, shape, index, lambda s, t: s + t, lambda s, t: 1.0, lambda s, t: 1.0)


FACING = {
    "slope": Facing(
        "s - t[h] * abs(q - k)", (HEADS,), (H,), lambda s, t: s - t * np.abs(Q - K), lambda s, t: 1.0,
        lambda s, t: -np.abs(Q - K),
    ),
    "temperature": Facing(
        "2 * tanh(s * t[q])", (KEYS,), (Q,), lambda s, t: 2 * np.tanh(s * t), lambda s, t: 2 * t / np.cosh(s * t) ** 2,
        lambda s, t: 2 * s / np.cosh(s * t) ** 2,
    ),
    "number": Facing("s * t", (), (), lambda s, t: s * t, lambda s, t: t, lambda s, t: s),
    "key": added("s + t[k][h]", (KEYS, HEADS), (K, H)),
    "entry": Facing("s * t[h][b]", (HEADS, 2), (H, B), lambda s, t: s * t, lambda s, t: t, lambda s, t: s),
    "offset": added("s + t[clamp(q - k, -8, 8) + 8][h]", (17, HEADS), (np.clip(Q - K, -8, 8) + 8, H)),
    "swin": added("s + t[(q / 7 - k / 7 + 6) * 13 + q % 7 - k % 7 + 6][h]", (169, HEADS), (SWIN, H)),
    "pair": added("s + t[b][h][q][k]", (2, HEADS, KEYS, KEYS), (B, H, Q, K)),
}  # fmt: skip


def gradients(score: Facing, **options) -> tuple[mx.array, ...]:
    arrays = CASE.arrays()

    def call(t, q):
        return [attention(q, arrays["k"], arrays["v"], score=Score(score.text, t=t), scale=CASE.scale, **options)]

    return mx.vjp(call, [mx.array(score.array), arrays["q"]], [arrays["d_o"]])[1]


def judged(score: Facing, **options) -> tuple[np.ndarray, float]:
    """(the gradient of the array in float64, the largest sum of magnitudes behind an element)"""
    x = {name: bounds.float64(array) for name, array in CASE.arrays().items()}
    judge = Attention(*(x[name] for name in ("q", "k", "v", "d_o")), CASE.scale, Facts(score=score, **options))
    s = CASE.scale * judge.q @ judge.k.swapaxes(-1, -2)
    terms = judge.score_gradient()[0] * score.partial(s, score.read)
    found = np.zeros((2, *score.array.shape))
    for n, part in enumerate((terms, np.abs(terms))):
        if score.index:
            np.add.at(found[n], tuple(np.broadcast_arrays(*score.index, terms)[:-1]), part)
        else:
            found[n] = part.sum()
    return found[0], float(found[1].max())


def cases() -> list:
    """Kernels of some; the others' wait for `pytest -m ""`."""
    found = across_backends(FACING)
    waits = [one.values[0][0] != "reference" and one.values[1] not in ("slope", "offset") for one in found]
    return [pytest.param(*one.values, id=one.id, marks=[pytest.mark.slow] * wait) for one, wait in zip(found, waits)]


@pytest.mark.parametrize("backend, name", cases(), indirect=["backend"])
def test_against_the_definition(backend, name):
    for options in ({}, {"causal": True}):
        got, _ = gradients(FACING[name], **options)
        want, terms = judged(FACING[name], **options)
        assert got.dtype == mx.float32 and got.shape == want.shape
        bounds.check("dM", got, want, f"{name} {options}", "float32", terms=terms)
        assert bits(got) == bits(gradients(FACING[name], **options)[0])


def test_with_everything_around_it(reference):
    """Softcap before the score, ALiBi behind it, sinks, a window; dQ is that of the same call."""
    slopes, sinks = DRAW.uniform(0.1, 0.5, HEADS), DRAW.standard_normal(HEADS)
    around = {"softcap": 3.0, "window": (30, 5)}
    ours = {"alibi_slopes": mx.array(slopes.astype(np.float32)), "sinks": mx.array(sinks.astype(np.float32))}
    facts = {"slopes": bounds.float64(ours["alibi_slopes"]), "sinks": bounds.float64(ours["sinks"])}
    got, _ = gradients(FACING["offset"], **around, **ours)
    want, terms = judged(FACING["offset"], **around, **facts)
    bounds.check("dM", got, want, "everything", "float32", terms=terms)


def test_two_arrays_and_both_their_gradients(reference):
    q, table, warm = CASE.arrays()["q"], mx.array(FACING["offset"].array), mx.array(FACING["temperature"].array)
    k, v = CASE.arrays()["k"], CASE.arrays()["v"]
    text = "s * warm[q] + t[clamp(q - k, -8, 8) + 8][h]"

    def loss(t, warm):
        return attention(q, k, v, score=Score(text, t=t, warm=warm)).square().sum()

    both = mx.grad(loss, argnums=(0, 1))(table, warm)
    apart = mx.grad(lambda t: loss(t, warm))(table), mx.grad(lambda w: loss(table, w))(warm)
    compiled = mx.compile(mx.grad(loss, argnums=(0, 1)))(table, warm)
    for one, other, third in zip(both, apart, compiled):
        assert bits(one) == bits(other) and mx.abs(one).max().item() > 0
        bounds.check("dM", third, bounds.float64(one), "compiled", "float32")


def test_under_vmap(reference):
    """Gradients of entries of their own, of mapped tables and of a shared one."""
    arrays, tables = CASE.arrays(), mx.array(DRAW.standard_normal((3, 17, HEADS)).astype(np.float32))
    text = FACING["offset"].text

    def gradient(t, q):
        return mx.grad(lambda t: attention(q, arrays["k"], arrays["v"], score=Score(text, t=t)).square().sum())(t)

    queries = mx.stack([arrays["q"], 2 * arrays["q"], -arrays["q"]])
    for tabled, axes in ((tables, (0, 0)), (tables[0], (None, 0))):
        got = vmap(gradient, in_axes=axes)(tabled, queries)
        for n in range(3):
            want = gradient(tabled[n] if axes[0] == 0 else tabled, queries[n])
            bounds.check("dM", got[n], bounds.float64(want), f"{axes} {n}", "float32")


REFUSED = {
    "several places": ("s + t[k] + t[q]", {}),
    "depends on x": ("int x = q - k; return s + t[clamp(x, 0, 3)];", {}),
    "depends on segment": ("s + t[segment]", {}),
    "unequal lengths": ("s + t[k]", {"lengths": mx.array([40, 49])}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_gradient(reference, reason):
    """The call works, and an error comes only when the gradient is asked for."""
    text, options = REFUSED[reason]
    q, k, v = (CASE.arrays()[name] for name in "qkv")

    def loss(t, q):
        return attention(q, k, v, score=Score(text, t=t), **options).sum()

    t = mx.ones(KEYS)
    assert mx.all(mx.isfinite(mx.grad(loss, argnums=1)(t, q))).item()
    with pytest.raises(UnsupportedProblem, match=rf"gradients of t of score are not available: .*{reason}"):
        mx.grad(loss)(t, q)


@pytest.mark.long
def test_sums_of_too_many_pairs():
    q = mx.zeros((1, 1, 5000, 8))
    with use_backend("reference"), pytest.raises(UnsupportedProblem, match="1x1x5000x5000 elements"):
        mx.grad(lambda t: attention(q, q, q, score=gallery.scores.offset_bias(t)).sum())(mx.zeros((17, 1)))


def test_sums_in_rounds():
    """Elements with no sum, one, and thousands of them."""
    element = DRAW.choice([-1, 0, 2, 5], 9000, p=[0.1, 0.7, 0.1999, 0.0001]).astype(np.int64)
    values = DRAW.integers(-8, 8, 9000).astype(np.float32)  # exact sums
    want = np.array([values[element == n].sum() for n in range(7)])
    levels = rounds(element, 7)
    assert np.array_equal(np.array(gathered(mx.array(values), levels)), want) and len(levels) == 3
