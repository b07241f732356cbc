"""A hidden key changes nothing in a query's results, to the bit; a NaN reaches the rows that see it, and only those."""

import itertools

import feature_cases
import mlx.core as mx
import numpy as np
import oracle_variants
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from isolation_checks import CASE, HIDDEN, INFINITE, KEEP, check_infinities, reached, rows_of_nan, spoiled
from machines import across_backends
from oracle_variants import Facts

from mlx_flash import BlockMask

NOTHING = Variant(CASE, ())
GARBAGE = [np.nan, -np.inf, 3e38]
BIAS = np.random.default_rng(3).standard_normal((65, 70)).astype(np.float32)


def ids(*numbers) -> tuple[mx.array, mx.array]:
    """Queries of segment 0; hidden keys of segments that no query has."""
    return mx.zeros((65,), mx.int32), mx.array(np.where(KEEP, 0, 1 + np.arange(70) % 2).astype(np.int32))


ROUTES = {
    "bool": lambda: {"mask": mx.array(KEEP)},
    "bool-full": lambda: {"mask": mx.array(np.broadcast_to(KEEP, (2, 4, 65, 70)))},
    "additive": lambda: {"mask": mx.array(np.where(KEEP, BIAS, -np.inf))},
    "segments": lambda: {"segments": ids()},
    "blocks": lambda: {"mask": BlockMask.from_predicate(lambda i, j: KEEP[j] & (i >= 0), 65, 70, block=32)},
}
EXTRAS = {
    "alone": lambda: {},
    "with": lambda: {
        "softcap": 2.5, "alibi_slopes": mx.array([0.1, 0.2, 0.3, 0.4]), "sinks": mx.zeros(4), "return_lse": True,
    },
}  # fmt: skip


def backward(arrays, arguments) -> dict[str, mx.array]:
    d_lse = mx.ones((2, 4, 65)) if arguments.get("return_lse") else None
    return feature_cases.backward(NOTHING, arrays, arguments, d_lse)


def waits(index: int) -> bool:
    """Each route with one of the extras, by turns; bool, the first, with both."""
    extra, route = divmod(index, len(ROUTES))
    return route > 0 and route % 2 != extra


@pytest.mark.parametrize(
    "backend, case", across_backends(itertools.product(EXTRAS, ROUTES), waits), indirect=["backend"]
)
def test_garbage_in_masked_keys(backend, case):
    extra, route = case
    arguments, arrays = ROUTES[route]() | EXTRAS[extra](), CASE.arrays()
    want = backward(arrays, arguments)
    assert not np.array(want["dK"])[:, :, HIDDEN].any() and not np.array(want["dV"])[:, :, HIDDEN].any()
    place = (slice(None), slice(None), HIDDEN)
    for garbage in GARBAGE if extra == "alone" else GARBAGE[:1]:
        got = backward(arrays | {name: spoiled(arrays[name], place, garbage) for name in "kv"}, arguments)
        for name in want:
            assert bits(got[name]) == bits(want[name]), (name, garbage)


def test_garbage_in_fully_masked_queries(backend):
    """The garbage is in q and in the cotangents of these rows: with causality, and with a window as well."""
    case = Case(70, 33, 16, group=2, key_heads=2, batch=2)
    arrays, blind, variant = case.arrays(), slice(0, 37), Variant(case, ())
    for arguments in ({"causal": True}, {"window": (5, 0)}):
        want = feature_cases.backward(variant, arrays, arguments)
        place = (slice(None), slice(None), blind)
        bad = arrays | {name: spoiled(arrays[name], place, np.nan) for name in ("q", "d_o")}
        got = feature_cases.backward(variant, bad, arguments)
        for name in want:
            assert bits(got[name]) == bits(want[name]), (name, arguments)


@pytest.mark.parametrize("feature", ["bool", "additive", "window"])
def test_slices_of_buffers_full_of_nan(backend, feature):
    """q, k, v, the cotangent and the mask are parts of larger buffers; what surrounds them is NaN."""
    arrays, (arguments, _) = CASE.arrays(), feature_cases.build(Variant(CASE, (feature,)))
    want = backward(arrays, arguments)

    def part(array: mx.array) -> mx.array:
        outside = True if array.dtype == mx.bool_ else np.nan
        padded = np.full([extent + 9 for extent in array.shape], outside, np.array(array).dtype)
        padded[tuple(slice(4, 4 + extent) for extent in array.shape)] = np.array(array)
        return mx.array(padded)[tuple(slice(4, 4 + extent) for extent in array.shape)]

    inside = {name: part(argument) if name == "mask" else argument for name, argument in arguments.items()}
    got = backward({name: part(array) for name, array in arrays.items()}, inside)
    for name in want:
        assert bits(got[name]) == bits(want[name]), name


LIMITS = ("causal", "window", "bool", "additive", "segments", "blocks")


@pytest.mark.parametrize("backend, case", across_backends(itertools.product("qkvo", LIMITS)), indirect=["backend"])
def test_a_nan_reaches_the_rows_that_see_it(backend, case):
    """o: the cotangent of O."""
    tensor, feature = case[0].replace("o", "d_o"), case[1]
    arrays, (arguments, facts) = CASE.arrays(), feature_cases.build(Variant(CASE, (feature,)))
    table = oracle_variants.seen(facts, (2, 4, 65, 70))
    want = backward(arrays, arguments)
    for place in ((0, 0, 64), (1, 1, 40)):
        got = backward(arrays | {tensor: spoiled(arrays[tensor], place, np.nan)}, arguments)
        for name, rows in reached(table, tensor, place).items():
            assert np.array_equal(rows_of_nan(got[name]), rows), f"{name}: NaN in the wrong rows, from {tensor} {place}"
            assert np.array_equal(np.array(got[name])[~rows], np.array(want[name])[~rows]), (name, tensor, place)


@pytest.mark.parametrize("backend, limit", across_backends([None, *LIMITS]), indirect=["backend"])
def test_infinities_follow_ieee(backend, limit):
    """Infinities in blocks that are visible as a whole and in blocks that are visible in part."""
    check_infinities(Variant(CASE, (limit,) if limit else ()), INFINITE)


def test_the_rows_expected_are_some_and_not_all():
    """Otherwise the test above could not fail."""
    table = oracle_variants.seen(Facts(causal=True), (2, 4, 65, 70))
    for tensor in ("q", "k", "v", "d_o"):
        for name, rows in reached(table, tensor, (1, 1, 40)).items():
            assert not rows.all() and (rows.any() or (tensor, name) in {("v", "dV"), ("d_o", "O")})
