"""A query that sees no key, by whatever route: O = 0, LSE = -inf, dQ = 0 and nothing in dK, dV and dM, to the bit."""

import itertools

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import oracle_variants
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from machines import across_backends
from oracle_variants import Facts

from mlx_flash import BlockMask, attention

CASE = Case(65, 70, 16, group=2, key_heads=2, batch=2)
TALL = Case(70, 33, 16, group=2, key_heads=2, batch=2)
BLIND = np.r_[0:8, 17:18, 32:50, 64:65]  # whole fragments, single rows and the last one
KEEP = ~np.isin(np.arange(65), BLIND)[:, None] & np.ones((65, 70), bool)
BIAS = np.random.default_rng(4).standard_normal((65, 70)).astype(np.float32)
IDS = np.where(KEEP[:, 0], 0, 7).astype(np.int32)
ADDITIVE = np.where(KEEP, BIAS, -np.inf).astype(np.float32)

# name: (case, arguments, the oracle's facts)
ROUTES = {
    "bool": (CASE, lambda: {"mask": mx.array(KEEP)}, Facts(keep=KEEP)),
    "bool-column": (CASE, lambda: {"mask": mx.array(KEEP[:, :1])}, Facts(keep=KEEP[:, :1])),
    "additive": (CASE, lambda: {"mask": mx.array(ADDITIVE)}, Facts(mask=ADDITIVE)),
    "causal": (TALL, lambda: {"causal": True}, Facts(causal=True)),
    "window": (TALL, lambda: {"window": (3, 2)}, Facts(window=(3, 2))),
    "window-right": (
        CASE, lambda: {"window": (0, 0), "mask": mx.array(KEEP)}, Facts(window=(0, 0), keep=KEEP),
    ),
    "segments": (
        CASE, lambda: {"segments": (mx.array(IDS), mx.zeros((70,), mx.int32))},
        Facts(q_ids=np.stack([IDS, IDS]), k_ids=np.zeros((2, 70), np.int32)),
    ),
    "blocks": (CASE, lambda: {"mask": BlockMask.from_array(KEEP, block=32)}, Facts(keep=KEEP)),
    "empty-block-rows": (
        CASE, lambda: {"mask": BlockMask.from_predicate(lambda i, j: (i >= 32) & (j >= 0), 65, 70, block=32)},
        Facts(keep=np.arange(65)[:, None] >= 32),
    ),
}  # fmt: skip
EXTRAS = {
    "alone": {},
    "softcap+alibi+dropout": {
        "softcap": 2.5, "alibi_slopes": mx.array([0.1, 0.2, 0.3, 0.4]), "dropout": 0.3, "key": mx.random.key(1),
    },
}  # fmt: skip


def waits(index: int) -> bool:
    """Each route with one of the extras, by turns."""
    extra, route = divmod(index, len(ROUTES))
    return route % 2 != extra


@pytest.mark.parametrize(
    "backend, chosen", across_backends(itertools.product(EXTRAS, ROUTES), waits), indirect=["backend"]
)
def test_fully_masked_rows(backend, chosen):
    extra, route = chosen
    case, arguments, facts = ROUTES[route]
    table = oracle_variants.seen(facts, (2, 4, case.query_length, case.key_length))
    blind = ~table.any(-1)
    assert blind.any() and not blind.all()
    arrays, variant = case.arrays(), Variant(case, ())
    d_lse = mx.array(np.random.default_rng(6).standard_normal(blind.shape).astype(np.float32))
    arguments = arguments() | EXTRAS[extra] | {"return_lse": True}
    got = feature_cases.backward(variant, arrays, arguments, d_lse)
    assert np.array_equal(np.isneginf(np.array(got["LSE"])), blind)
    for name in ("O", "dQ"):
        assert not np.array(got[name])[blind].any(), f"{name} of a row that sees nothing"
    assert all(np.isfinite(np.array(array)).all() for name, array in got.items() if name != "LSE")
    # Nothing of such a row reaches a key: other numbers in it and in its cotangents change no bit.
    changed = {name: mx.where(mx.array(blind)[..., None], 7 * array, array) for name, array in arrays.items() if
               name in ("q", "d_o")}  # fmt: skip
    again = feature_cases.backward(variant, arrays | changed, arguments, mx.where(mx.array(blind), 9.0, d_lse))
    for name, array in got.items():
        assert bits(again[name]) == bits(array), name


@pytest.mark.parametrize("name", ["bool", "additive", "blocks"])
def test_everything_masked(backend, name):
    hidden = np.zeros((65, 70), bool)
    masks = {
        "bool": lambda: mx.array(hidden), "additive": lambda: mx.full((65, 70), -np.inf),
        "blocks": lambda: BlockMask.from_array(hidden, block=32),
    }  # fmt: skip
    arguments = {"mask": masks[name](), "return_lse": True}
    got = feature_cases.backward(Variant(CASE, ()), CASE.arrays(), arguments, mx.ones((2, 4, 65)))
    assert np.isneginf(np.array(got.pop("LSE"))).all()
    for tensor, array in got.items():
        assert not np.array(array).any(), tensor


def test_a_row_with_only_a_sink(backend):
    """A row that sees no key but has a sink: O = 0, the LSE is the sink, and the sink takes its whole gradient."""
    sinks = mx.array([-1.0, 0.0, 2.0, 30.0])
    arguments = {"mask": mx.array(KEEP), "sinks": sinks, "return_lse": True}
    d_lse = np.where(KEEP[:, 0], 0, 1).astype(np.float32)
    arrays = CASE.arrays() | {"d_o": mx.zeros((2, 4, 65, 16))}
    got = feature_cases.backward(Variant(CASE, ()), arrays, arguments, mx.broadcast_to(mx.array(d_lse), (2, 4, 65)))
    assert not np.array(got["O"])[:, :, BLIND].any()
    want = np.broadcast_to(np.array(sinks)[:, None], (2, 4, len(BLIND)))
    feature_cases.check_lse(got["LSE"][:, :, mx.array(BLIND)], want.astype(np.float64), "sink alone", 30.0)
    bounds.check("dsinks", got["dsinks"], np.full(4, 2.0 * len(BLIND)), "sink alone", "float32")


def test_sinks_of_minus_infinity_change_nothing(backend):
    arrays, arguments = CASE.arrays(), {"mask": mx.array(KEEP), "return_lse": True}
    without = feature_cases.backward(Variant(CASE, ()), arrays, arguments, mx.ones((2, 4, 65)))
    sinks = {"sinks": mx.full((4,), -np.inf)}
    got = feature_cases.backward(Variant(CASE, ()), arrays, arguments | sinks, mx.ones((2, 4, 65)))
    assert not np.array(got.pop("dsinks")).any()
    for name in without:
        assert bits(got[name]) == bits(without[name]), name


@pytest.mark.parametrize("sinks", [None, [-1.0, 0.5, 2.0, 3.0]], ids=["plain", "sinks"])
def test_no_keys_at_all(backend, sinks):
    q, k = mx.ones((2, 4, 3, 16)), mx.ones((2, 2, 0, 16))
    named = {} if sinks is None else {"sinks": mx.array(sinks)}
    (out, lse), grads = mx.vjp(
        lambda *x: attention(*x, return_lse=True, **named), [q, k, k], [mx.ones((2, 4, 3, 16)), mx.ones((2, 4, 3))]
    )
    want = np.full(4, -np.inf) if sinks is None else np.array(sinks)
    assert not np.array(out).any() and (np.array(lse) == want[:, None]).all() and lse.shape == (2, 4, 3)
    for grad, array in zip(grads, (q, k, k)):
        assert grad.shape == array.shape and not np.array(grad).any()
