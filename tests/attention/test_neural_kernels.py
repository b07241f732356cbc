"""The kernels for neural accelerators, simulated: options, edges of blocks, views, NaN, schedules, errors, counts.

Narrow head dimensions have one kernel for dK and dV, wide ones have two. What has no such kernel uses those of M4, to
the bit.
"""

from dataclasses import replace
from unittest.mock import patch

import bounds
import feature_cases
import isolation_checks
import mlx.core as mx
import numpy as np
import pytest
from cases import Case, backward, expected
from feature_cases import FEATURES, Variant
from problems import make_problem
from tensor_rows import forget
from views import odd_start
from watched import kinds, watched

from mlx_flash import attention, use_backend
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.neural import NEURAL_TABLE
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY, DECODE, FORWARD
from mlx_flash.simulator import mode, profile, schedule, tensor_unit

pytestmark = pytest.mark.simulator
NARROW, WIDE = 40, 104  # odd multiples of 8, so that the last 16 columns are half empty
ALMOST_ALL = ("causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "dropout", "lse")


@pytest.fixture
def accelerated():
    with mode("check"), use_backend("simulator", family="apple10") as backend:
        yield backend


def of(head_dim: int, dtype: str, *features: str, value_dim=None, lengths=(41, 70), axes="bhij") -> Variant:
    case = Case(*lengths, head_dim, dtype, value_dim=value_dim, group=2, key_heads=1, batch=2)
    return Variant(case, features, axes, (30, 5))


OPTIONS = (
    of(NARROW, "float16", *ALMOST_ALL), of(WIDE, "bfloat16", "causal", "bool", "lse", value_dim=72),
    of(64, "bfloat16", "blocks", "sinks", value_dim=16), of(16, "float16", "lse", value_dim=128, lengths=(33, 90)),
)  # fmt: skip
EACH = tuple(of(24, dtype, name) for name in FEATURES if name != "lse" for dtype in ("float16", "bfloat16"))


@pytest.mark.parametrize(
    "variant", [OPTIONS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in (*OPTIONS[1:], *EACH))], ids=str
)
def test_options(accelerated, variant):
    feature_cases.check(variant, stored_output=True)


@pytest.mark.parametrize(
    "variant", [OPTIONS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in OPTIONS[1:])], ids=str
)
def test_a_unit_that_truncates(accelerated, variant):
    """dS meets the unit as float32, of which it takes 10 bits of mantissa: within the same bounds, rounded or not."""
    with tensor_unit(rounding="truncated"):
        feature_cases.check(variant, stored_output=True)


def plain(lengths, head_dim=NARROW, dtype="float16", causal=True) -> Case:
    return Case(*lengths, head_dim, dtype, causal, group=2, key_heads=2)


@pytest.mark.parametrize("lengths", [(70, 150), (33, 31), (17, 1), (64, 128)], ids=str)
def test_ends_within_a_block(accelerated, lengths):
    feature_cases.check(Variant(plain(lengths, causal=False), ("causal", "lse")), stored_output=True)


@pytest.mark.parametrize("head_dim", [8, *(pytest.param(one, marks=pytest.mark.slow) for one in (192, 200, 256))])
def test_the_smallest_and_the_largest_head_dimension(accelerated, head_dim):
    feature_cases.check(Variant(plain((33, 45), head_dim), ("lse",)), stored_output=True)


def odd_rows(array: mx.array) -> mx.array:
    """Rows one element further apart than they are long: none but the first begins at 16 bytes."""
    return mx.contiguous(mx.concatenate([array, mx.full((*array.shape[:3], 1), mx.nan, array.dtype)], axis=3))[..., :-1]


@pytest.mark.parametrize("view", [odd_rows, odd_start], ids=lambda view: view.__name__)
def test_views_that_are_not_aligned(accelerated, view):
    isolation_checks.check_views(plain((33, 70)), view)


@pytest.mark.parametrize("head_dim", [NARROW, pytest.param(WIDE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("garbage", [mx.nan, mx.inf])
def test_garbage_in_masked_keys(accelerated, head_dim, garbage):
    variant = of(head_dim, "float16", "bool")
    isolation_checks.check_masked_keys(variant, garbage, mx.array(isolation_checks.KEEP))


def test_garbage_in_fully_masked_queries(accelerated):
    """Queries that causality puts before the first key have NaN in q and in their cotangents."""
    isolation_checks.check_masked_queries(plain((33, 17)))


def test_infinities_follow_ieee(accelerated):
    case = Case(45, 50, NARROW, "float16", group=2, key_heads=2, batch=2)
    isolation_checks.check_infinities(Variant(case, ("causal",)), isolation_checks.NEARER)


def test_infinite_gradients_of_scores(accelerated):
    """dS of a key whose value and the output have opposite signs, in the column of an infinite cotangent: infinite, and
    so are rows of dK, as those of 8x8 matrices."""
    case = Case(45, 50, NARROW, "float16", group=2, key_heads=2, batch=2)
    arrays, variant = case.arrays(), Variant(case, ())
    arrays["d_o"] = isolation_checks.spoiled(arrays["d_o"], (0, 1, 40, 2), np.inf)
    got = np.array(feature_cases.backward(variant, arrays, {"causal": True})["dK"])
    with use_backend("simulator", family="apple9"):
        want = np.array(feature_cases.backward(variant, arrays, {"causal": True})["dK"])
    off = ~np.isfinite(want)
    assert np.array_equal(got[off], want[off], equal_nan=True) and np.isfinite(got[~off]).all()
    assert np.isposinf(want).any() and np.isneginf(want).any() and np.isnan(want).any()


def test_a_nan_reaches_the_rows_that_see_it(accelerated):
    isolation_checks.check_a_nan(Case(45, 50, NARROW, "float16", group=2, key_heads=2, batch=2))


@pytest.mark.parametrize("head_dim", [NARROW, pytest.param(WIDE, marks=pytest.mark.slow)])
def test_every_schedule_and_repeat_gives_the_same_bits(accelerated, head_dim):
    isolation_checks.check_schedules(plain((45, 70), head_dim), ("forward", 0), ("reversed", 0), ("random", 1))


@pytest.mark.parametrize("page", (64, 16, pytest.param(96, marks=pytest.mark.slow)))
def test_keys_in_pages(accelerated, page):
    """Pages that hold no whole block of keys are read by kernels of 8x8 matrices."""
    case = Case(40, 192, 24, "float16")
    arrays = case.arrays()
    q, lengths = arrays["q"], mx.array([150])
    want = attention(*(arrays[name] for name in "qkv"), lengths=lengths)
    pools = [arrays[name][0, :, : 192 // page * page].reshape(1, -1, page, 24).swapaxes(0, 1)[::-1] for name in "kv"]
    pages = mx.arange(192 // page, dtype=mx.int32)[::-1][None]
    with watched() as ran:
        got = attention(q, *pools, pages=pages, lengths=lengths)
    assert {one.plan.config.tiles for one in ran} == {"simdgroup" if page == 16 else "nax"}
    bounds.near(bounds.float64(got), bounds.float64(want), 4 * bounds.rounding("float16"))


# Options of a row. Of 32 rows a simdgroup uses each fragment that is read twice. Of two that share the columns of the
# head dimension, the second has 8 of 40 here, and none of 16.
WITH = {"32 rows": dict(simdgroup_rows=32), "halves": dict(parallel=16, traversal=32, head_parts=2)}


@pytest.mark.parametrize("option", WITH)
@pytest.mark.parametrize(
    "kind",
    (FORWARD, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (BACKWARD_QUERY, BACKWARD_KEY_VALUE))),
    ids=lambda kind: kind.name,
)
def test_options_of_a_row(accelerated, kind, option):
    key = next(key for key in NEURAL_TABLE if key[0] is kind)
    row = replace(NEURAL_TABLE[key][0], max_head=NARROW, **WITH[option])
    case = Case(70, 45, NARROW, "float16", value_dim=16, group=2, key_heads=2)
    try:
        with patch.dict(NEURAL_TABLE, {key: (row, *NEURAL_TABLE[key])}):
            forget()
            with watched() as ran, profile() as counted:
                feature_cases.check(Variant(case, ("lse",)), stored_output=True)
            assert {one.plan.table_row for one in ran if one.kind.table is kind} == {row}
            launches = (one for one in counted.launches if one["kernel"].startswith(f"flash_{kind}_"))
            written = sum(buffer["stored"] for one in launches for buffer in one["buffers"].values())
            assert written == sum(
                array.nbytes for one in ran if one.kind.table is kind for array in one.outputs
            )  # once each
    finally:
        forget()


SHARED = (
    of(256, "float16", *ALMOST_ALL, lengths=(33, 70)), of(200, "bfloat16", "causal", "bool", "lse", value_dim=72),
    of(216, "float16", "blocks", "sinks", value_dim=256), of(16, "bfloat16", "lse", value_dim=248, lengths=(33, 90)),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", SHARED, ids=str)
@pytest.mark.parametrize("order", ("forward", "reversed", "random"))
def test_options_of_simdgroups_that_share_the_head_dimension(accelerated, variant, order):
    with schedule(order, 1), watched() as ran:
        feature_cases.check(variant, stored_output=True)
    assert {one.plan.config.head_parts for one in ran if one.plan.config.tiles == "nax"} == {2}


@pytest.mark.parametrize(
    "head_dim, last", ((NARROW, ("backward_key_value",)), (WIDE, ("backward_key", "backward_value")))
)
def test_kernels_that_ran(accelerated, head_dim, last):
    case = plain((33, 70), head_dim)
    with watched() as ran:
        feature_cases.backward(Variant(case, ()), case.arrays(), {"causal": True})
    assert kinds(ran) == ["forward", "backward_query_delta", *last]
    assert {one.plan.config.tiles for one in ran} == {"nax"}


ELSEWHERE = {
    "float32": (FORWARD, dict(dtype="float32")),
    "float32 gradients": (BACKWARD_QUERY, dict(dtype="float32")),
    "wide": (FORWARD, dict(head_dim=264, value_dim=264)),
    "wide gradients": (BACKWARD_KEY_VALUE, dict(head_dim=264, value_dim=264)),
    "decoding": (DECODE, dict(query_length=1)),
    "a mask's gradient": (BACKWARD_MASK, dict(variants={"mask": "float16"}, mask_shape=(1, 2, 40, 70))),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_kernels_of_m4_serve_the_rest_to_the_bit(name):
    """The text and its name are those of M4."""
    kind, facts = ELSEWHERE[name]
    problem = make_problem(**dict(query_heads=2, query_length=40, key_length=70, dtype="float16") | facts)
    m5, m4 = (plan_of(kind, problem, FAMILIES[family]).kernel for family in ("apple10", "apple9"))
    assert m5 == m4


def errors(family: str, cases: list[Case]) -> dict[str, np.ndarray]:
    """The errors of each tensor's elements against float64, of all cases together."""
    found = {name: [] for name in ("O", "dQ", "dK", "dV")}
    for case in cases:
        arrays = case.arrays()
        with use_backend("simulator", family=family):
            got = backward(case, arrays)
        want = expected(case, arrays).want
        for name, parts in found.items():
            parts.append((bounds.float64(got[name]) - want[name]).ravel())
    return {name: np.concatenate(parts) for name, parts in found.items()}


SERVED = [(8 * n, dtype) for n in range(1, 33) for dtype in ("float16", "bfloat16")]


@pytest.mark.parametrize(
    "head_dim, dtype",
    [pytest.param(*one, marks=[] if one == (NARROW, "float16") else pytest.mark.slow) for one in SERVED],
)
def test_errors_beside_those_of_8x8_matrices(head_dim, dtype):
    """The largest at most twice as large, though the unit takes 10 bits of mantissa of dS: in float16 what it leaves
    is multiplied too. Without that the root of mean squares would be 1.4 times as large, the largest up to 2.9."""
    with mode("check"):
        draws = [plain((96 + n, 130 + n), head_dim, dtype) for n in range(3)]
        mine, others = (errors(family, draws) for family in ("apple10", "apple9"))
    for name in mine:
        bounds.no_worse(name, mine[name], others[name])


# 16x16x16 parts of products of 16 rows and 16 traversed rows, in units of the steps of 16 columns
PRODUCTS = {"forward": 2, "backward_query_delta": 3, "backward_key_value": 4, "backward_key": 3, "backward_value": 2}
EXACT = {"backward_query_delta", "backward_key_value", "backward_key"}  # which multiply dS in two parts in float16
COUNTED = [(NARROW, "float16"), (64, "bfloat16"), (WIDE, "float16")]
WIDEST = [(104, "bfloat16"), (128, "float16"), (192, "float16"), (200, "float16"), (256, "bfloat16")]


@pytest.mark.parametrize("head_dim, dtype", [*COUNTED, *(pytest.param(*one, marks=pytest.mark.slow) for one in WIDEST)])
def test_products_are_those_of_the_closed_form(accelerated, head_dim, dtype):
    case = Case(64, 128, head_dim, dtype, group=2)
    with profile() as counted:
        feature_cases.backward(Variant(case, ()), case.arrays(), {})
    unit = 16 if head_dim <= 192 else 32  # of columns: two simdgroups have as many each
    steps, pairs = -(-head_dim // unit) * (unit // 16), 64 // 16 * (128 // 16) * 2
    found = {
        launch["kernel"].split(f"_{dtype}")[0].removeprefix("flash_"): launch["tensor_matmuls"]
        for launch in counted.launches
    }
    times = {kind: PRODUCTS[kind] + (kind in EXACT and dtype == "float16") for kind in found}
    assert found == {kind: times[kind] * steps * pairs for kind in found} and len(found) >= 3
    assert counted.matmuls == 0
