"""float32 on NVIDIA's tensor cores, on the simulator, whose matrix unit truncates sums as a GPU's does: each product as
three of TF32 is as accurate as float32, and infinity and NaN follow IEEE arithmetic."""

from dataclasses import replace

import bounds
import feature_cases
import isolation_checks
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, expected
from feature_cases import Variant
from tensor_rows import FLOAT32_LAYERS, small_rows
from views import odd_rows, odd_start
from watched import kinds, watched

from mlx_flash import attention
from mlx_flash.simulator import mode

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
    ("tf32_wgmma", "narrow"): (of(40, *ALMOST_ALL), of(16, "bool", "blocks", value_dim=24)),
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


@pytest.mark.parametrize("view", [odd_rows, odd_start], ids=lambda view: view.__name__)
def test_views_that_are_not_aligned(layer, view):
    isolation_checks.check_views(plain((33, 70)), view)


@pytest.mark.parametrize("garbage", [mx.nan, mx.inf, -3e38], ids=str)
def test_garbage_in_masked_keys(layer, garbage):
    variant = of(24, "bool", value_dim=32)
    isolation_checks.check_masked_keys(variant, garbage, mx.array(isolation_checks.KEEP))


def test_garbage_in_fully_masked_queries(layer):
    """Queries that causality puts before the first key have NaN in q and in their cotangents."""
    isolation_checks.check_masked_queries(plain((33, 17)))


def test_infinities_follow_ieee(layer):
    case = Case(45, 50, 24, "float32", group=2, key_heads=2, batch=2)
    isolation_checks.check_infinities(Variant(case, ("causal",)), isolation_checks.NEARER)


def test_a_nan_reaches_the_rows_that_see_it(layer):
    isolation_checks.check_a_nan(Case(45, 50, 24, "float32", group=2, key_heads=2, batch=2))


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
    isolation_checks.check_schedules(plain((45, 70)), ("reversed", 0), ("random", 1))
