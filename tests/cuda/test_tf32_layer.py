"""float32 on NVIDIA's tensor cores, on the simulator, whose matrix unit truncates sums as a GPU's does: each product as
three of TF32 is as accurate as float32, and infinity and NaN follow IEEE arithmetic."""

from dataclasses import replace

import bounds
import feature_cases
import isolation_checks
import mlx.core as mx
import numpy as np
import oracle_variants
import pytest
from arrays import bits
from cases import Case, expected
from feature_cases import Variant
from oracle_variants import Facts
from tensor_rows import FLOAT32_LAYERS, small_rows
from views import odd_start
from watched import kinds, watched

from mlx_flash import attention
from mlx_flash.simulator import mode, schedule

pytestmark = pytest.mark.simulator

ALMOST_ALL = ("causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "dropout", "lse")


@pytest.fixture(params=FLOAT32_LAYERS, ids="-".join)
def layer(request):
    """The backend that runs one layer's kernels, and nothing the simulator's checks find passes."""
    with mode("check"), small_rows(*request.param) as backend:
        yield backend


def of(head_dim: int, *features: str, value_dim=None, lengths=(41, 70), axes="bhij") -> Variant:
    case = Case(*lengths, head_dim, "float32", value_dim=value_dim, group=2, key_heads=1, batch=2)
    return Variant(case, features, axes, (30, 5))


VARIANTS = {
    ("tf32", "narrow"): (of(8, *ALMOST_ALL), of(24, "bool", value_dim=32)),
    ("tf32_hopper", "wide"): (of(40, "blocks", "sinks", value_dim=24), of(16, "visible", "causal", axes="hj")),
}


@pytest.mark.all_values
@pytest.mark.parametrize(
    "layer, variant",
    [(layer, variant) for layer in FLOAT32_LAYERS for variant in VARIANTS[layer]],
    ids=str,
    indirect=["layer"],
)
def test_options(layer, variant):
    feature_cases.check(variant)


def plain(lengths, head_dim=24) -> Case:
    return Case(*lengths, head_dim, "float32", True, group=2, key_heads=2)


@pytest.mark.parametrize("lengths", [(70, 150), (33, 31), (17, 1)], ids=str)
def test_ends_within_a_block(layer, lengths):
    feature_cases.check(Variant(replace(plain(lengths), causal=False), ("causal", "lse")))


@pytest.mark.parametrize("layer", FLOAT32_LAYERS[1:], ids="-".join, indirect=True)
def test_two_panels(layer):
    feature_cases.check(Variant(plain((33, 45), 64), ()))


@pytest.mark.parametrize("layer", FLOAT32_LAYERS[:1], ids="-".join, indirect=True)
def test_four_panels(layer):
    case = Case(80, 40, 96, "float32", value_dim=8)
    arrays = case.arrays()
    expected(case, arrays).check(O=attention(*(arrays[name] for name in "qkv"), scale=case.scale))


def test_kernels_that_ran(layer):
    case = plain((33, 70))
    with watched() as ran:
        feature_cases.backward(Variant(case, ()), case.arrays(), {"causal": True})
    narrow = layer.family.name == "sm80"
    last = ["backward_key_value"] if narrow else ["backward_key", "backward_value"]
    assert kinds(ran) == ["forward", "backward_query_delta", *last]
    assert {one.plan.config.tiles for one in ran} == {"tf32" if narrow else "tf32_hopper"}


@pytest.mark.parametrize("layer", FLOAT32_LAYERS[:1], ids="-".join, indirect=True)
def test_long_sums_are_rounded(layer):
    """Terms of one sign: if the matrix unit, which truncates, added the blocks of keys, each addition would lose up to
    a unit in the last place."""
    case = Case(80, 3000, 8, "float32")
    arrays = case.arrays()
    arrays["q"], arrays["v"] = arrays["q"] / 8, 1 + abs(arrays["v"]) / 8
    with watched() as ran:
        out = attention(*(arrays[name] for name in "qkv"), scale=case.scale)
    expected(case, arrays).check(O=out)
    assert kinds(ran) == ["forward"]


def odd_rows(array: mx.array) -> mx.array:
    """Rows one element further apart than they are long: none but every fourth begins at 16 bytes."""
    return mx.contiguous(mx.concatenate([array, mx.full((*array.shape[:3], 1), mx.nan, array.dtype)], axis=3))[..., :-1]


@pytest.mark.parametrize("view", [odd_rows, odd_start], ids=lambda view: view.__name__)
def test_views_that_are_not_aligned(layer, view):
    case = plain((33, 70))
    arrays, variant = case.arrays(), Variant(case, ())
    want = feature_cases.backward(variant, arrays, {"causal": True})
    got = feature_cases.backward(variant, {name: view(array) for name, array in arrays.items()}, {"causal": True})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


@pytest.mark.parametrize("garbage", [mx.nan, mx.inf, -3e38], ids=str)
def test_garbage_in_masked_keys(layer, garbage):
    variant = of(24, "bool", value_dim=32)
    arrays, keep = variant.case.arrays(), mx.array(isolation_checks.KEEP)
    want = feature_cases.backward(variant, arrays, {"mask": keep})
    spoiled = {name: mx.where(keep[:, None], arrays[name], garbage) for name in "kv"}
    got = feature_cases.backward(variant, arrays | spoiled, {"mask": keep})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


def test_garbage_in_fully_masked_queries(layer):
    """Queries that causality puts before the first key have NaN in q and in their cotangents."""
    case = plain((33, 17))
    arrays, variant, blind = case.arrays(), Variant(case, ()), (slice(None), slice(None), slice(0, 16))
    want = feature_cases.backward(variant, arrays, {"causal": True})
    spoiled = {name: isolation_checks.spoiled(arrays[name], blind, np.nan) for name in ("q", "d_o")}
    got = feature_cases.backward(variant, arrays | spoiled, {"causal": True})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


def test_infinities_follow_ieee(layer):
    case = Case(45, 50, 24, "float32", group=2, key_heads=2, batch=2)
    places = {(*place[:2], place[2] * 2 // 3, place[3]): value for place, value in isolation_checks.INFINITE.items()}
    isolation_checks.check_infinities(Variant(case, ("causal",)), places)


def test_a_nan_reaches_the_rows_that_see_it(layer):
    case = Case(45, 50, 24, "float32", group=2, key_heads=2, batch=2)
    arrays, variant = case.arrays(), Variant(case, ())
    table = oracle_variants.seen(Facts(causal=True), (2, 4, 45, 50))
    want = feature_cases.backward(variant, arrays, {"causal": True})
    for tensor, place in (("q", (0, 0, 40)), ("k", (1, 1, 30)), ("v", (0, 1, 45)), ("d_o", (1, 0, 20))):
        spoiled = arrays | {tensor: isolation_checks.spoiled(arrays[tensor], place, np.nan)}
        got = feature_cases.backward(variant, spoiled, {"causal": True})
        for name, rows in isolation_checks.reached(table, tensor, place).items():
            assert rows.any() or not np.isnan(np.array(got[name])).any()
            assert np.array_equal(isolation_checks.rows_of_nan(got[name]), rows), f"{name}: from {tensor} {place}"
            assert np.array_equal(np.array(got[name])[~rows], np.array(want[name])[~rows]), (name, tensor)


def test_a_score_of_minus_infinity_hides_its_key(layer):
    """Every element of the key meets its infinity in float32; a product with a low part of zero would be NaN."""
    case = Case(33, 40, 24, "float32", group=2)
    arrays = case.arrays()
    arrays["q"] = arrays["q"].at[..., 3].multiply(0).at[..., 3].add(1.0)
    keep = np.arange(40) != 21
    want = attention(*(arrays[name] for name in "qkv"), scale=case.scale, mask=mx.array(keep))
    spoiled = arrays["k"].at[:, :, 21, 3].add(-mx.inf)
    got = attention(arrays["q"], spoiled, arrays["v"], scale=case.scale)
    assert bits(got) == bits(want)


def test_the_largest_numbers(layer):
    """They round to infinity in TF32. The first row sees one value, and repeats it."""
    case = plain((33, 33))
    arrays = case.arrays()
    largest = float(np.finfo(np.float32).max)
    v = arrays["v"].at[:, :, 0].multiply(0).at[:, :, 0].add(largest)
    out = np.array(attention(arrays["q"], arrays["k"], v, scale=case.scale, causal=True))
    assert (bounds.float64(out[:, :, 0]) == largest).all()
    assert np.isfinite(out).all()


def test_every_schedule_gives_the_same_bits(layer):
    case = plain((45, 70))
    arrays, variant = case.arrays(), Variant(case, ())
    want = feature_cases.backward(variant, arrays, {"causal": True})
    for order in (("reversed", 0), ("random", 1)):
        with schedule(*order):
            got = feature_cases.backward(variant, arrays, {"causal": True})
        assert [name for name in want if bits(got[name]) != bits(want[name])] == [], order
