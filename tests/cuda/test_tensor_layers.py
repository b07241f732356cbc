"""The tile layers for tensor cores, on the simulator: every option, edges of blocks, views, NaN, and all schedules.

mma is what NVIDIA GPUs from Ampere on run, wgmma Hopper; tensor_rows.py says what narrow and wide are.
"""

from dataclasses import replace

import feature_cases
import isolation_checks
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, expected
from feature_cases import Variant
from kernel_checks import check_step, problem
from oracle_variants import Facts
from tensor_rows import FAMILY, LAYERS, forget, small_rows
from views import odd_rows, odd_start
from watched import kinds, watched

from mlx_flash import BlockMask, attention, vmap
from mlx_flash.kernels.config import MIXED
from mlx_flash.kernels.nvidia import TENSOR_TABLE
from mlx_flash.kernels.plan import key_value_kinds
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, FORWARD
from mlx_flash.simulator import mode, schedule

pytestmark = pytest.mark.simulator

ALMOST_ALL = ("causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "dropout", "lse")


NARROW, WIDE = ([layer for layer in LAYERS if layer[1] == width] for width in ("narrow", "wide"))


@pytest.fixture(params=LAYERS, ids="-".join)
def layer(request):
    """The backend that runs one layer's kernels, and nothing the simulator's checks find passes."""
    with mode("check"), small_rows(*request.param) as backend:
        yield backend


def of(head_dim: int, dtype: str, *features: str, value_dim=None, lengths=(41, 70), axes="bhij") -> Variant:
    case = Case(*lengths, head_dim, dtype, value_dim=value_dim, group=2, key_heads=1, batch=2)
    return Variant(case, features, axes, (30, 5))


# Each option once for each layer, in either width: every one of them is three or four kernels to compile.
VARIANTS = {
    ("mma", "narrow"): (of(8, "float16", *ALMOST_ALL), of(40, "float16", "bool", value_dim=64)),
    ("mma", "wide"): (of(8, "bfloat16", "blocks", "sinks", value_dim=40),),
    ("wgmma", "narrow"): (of(8, "bfloat16", *ALMOST_ALL, axes="hj"), of(64, "bfloat16", "bool", value_dim=40)),
    ("wgmma", "wide"): (of(16, "float16", "visible", "causal"),),
}  # fmt: skip


@pytest.mark.all_values
@pytest.mark.parametrize(
    "layer, variant", [(layer, variant) for layer in LAYERS for variant in VARIANTS[layer]], ids=str, indirect=["layer"]
)
def test_options(layer, variant):
    feature_cases.check(variant, stored_output=True)


@pytest.mark.parametrize("layer", [("wgmma", "wide")], ids="-".join, indirect=True)
def test_blocks_of_a_mask_bound_a_threadgroup(layer):
    """Its table row has 128 queries, the block 64; the first 64 queries see none of what the others see."""
    variant = of(64, "float16", value_dim=40, lengths=(70, 150))
    rows, columns = np.arange(70)[:, None] // 64, np.arange(150) // 64
    keep = (rows == columns) & (variant.draw("blocks").random((70, 150)) < 0.7)
    arguments, facts = {"mask": BlockMask.from_array(keep, block=64)}, Facts(keep=keep)
    feature_cases.check_arguments(variant, arguments, facts, stored_output=True)


def plain(lengths, dtype="float16", causal=True) -> Case:
    return Case(*lengths, 40, dtype, causal, group=2, key_heads=2)


@pytest.mark.parametrize("lengths", [(70, 150), (33, 31), (17, 1)], ids=str)
def test_ends_within_a_block(layer, lengths):
    feature_cases.check(Variant(plain(lengths, "float16", False), ("causal", "lse")), stored_output=True)


def aligned(dtype: str) -> Case:
    """Rows of 128 bytes, which are copied by the shortest way."""
    return Case(70, 150, 64, dtype, group=2)


@pytest.mark.parametrize("layer", NARROW, ids="-".join, indirect=True)
def test_whole_panels(layer):
    dtype = "bfloat16" if layer.family.name == FAMILY["mma"] else "float16"
    feature_cases.check(Variant(aligned(dtype), ("lse",)), stored_output=True)


def test_one_query(layer):
    """The forward kernel too, in whose place another one decodes."""
    case = replace(plain((1, 33)), batch=2)
    for step in (FORWARD, BACKWARD_QUERY, *key_value_kinds(problem(case).signature, layer.family)):
        check_step(step, case, layer)


@pytest.mark.parametrize("layer", NARROW, ids="-".join, indirect=True)
def test_two_panels(layer):
    case = Case(33, 45, 128, "float16", value_dim=64)
    arrays = case.arrays()
    expected(case, arrays).check(O=attention(*(arrays[name] for name in "qkv"), scale=case.scale))


RUNS, TURNS = np.arange(192) // 128, np.arange(192) // 32 % 2  # the latter changes with each block


@pytest.mark.parametrize("layer", WIDE, ids="-".join, indirect=True)
@pytest.mark.parametrize("q_ids, k_ids", [(RUNS, TURNS), (TURNS, RUNS)], ids=["keys-skipped", "queries-skipped"])
def test_every_other_block_is_skipped(layer, q_ids, k_ids):
    """Producers skip the blocks that consumers skip."""
    q_ids, k_ids = (ids.astype(np.int32)[None] for ids in (q_ids, k_ids))
    case = Case(192, 192, 40, "float16", group=2)
    arguments = {"segments": (mx.array(q_ids), mx.array(k_ids))}
    with schedule("random", 3):
        variant = Variant(case, ("window", "dropout"), window=(500, 500))
        others, facts = feature_cases.build(variant)
        facts = replace(facts, q_ids=q_ids, k_ids=k_ids)
        feature_cases.check_arguments(variant, others | arguments, facts, stored_output=True)


@pytest.mark.parametrize("view", [odd_rows, odd_start], ids=lambda view: view.__name__)
def test_views_that_are_not_aligned(layer, view):
    isolation_checks.check_views(plain((33, 70)), view)


@pytest.mark.parametrize("layer", NARROW, ids="-".join, indirect=True)
@pytest.mark.parametrize(
    "garbage, added",
    [
        pytest.param(mx.nan, False, id="nan"),
        pytest.param(mx.inf, False, id="inf"),
        pytest.param(mx.nan, True, id="added"),
    ],
)
def test_garbage_in_masked_keys(layer, garbage, added):
    """`added`: a mask of 0 and -inf hides them."""
    variant = VARIANTS["mma" if layer.family.name == FAMILY["mma"] else "wgmma", "narrow"][1]
    keep = mx.array(isolation_checks.KEEP)
    mask = mx.where(keep, 0.0, -mx.inf).astype(getattr(mx, variant.case.dtype)) if added else keep
    isolation_checks.check_masked_keys(variant, garbage, mask)


def test_garbage_in_fully_masked_queries(layer):
    """Queries that causality puts before the first key have NaN in q and in their cotangents."""
    isolation_checks.check_masked_queries(plain((33, 17)))


def test_infinities_follow_ieee(layer):
    case = Case(45, 50, 40, "float16", group=2, key_heads=2, batch=2)
    isolation_checks.check_infinities(Variant(case, ("causal",)), isolation_checks.NEARER)


def test_a_nan_reaches_the_rows_that_see_it(layer):
    isolation_checks.check_a_nan(Case(45, 50, 40, "float16", group=2, key_heads=2, batch=2))


def test_every_schedule_gives_the_same_bits(layer):
    isolation_checks.check_schedules(plain((45, 70)), ("reversed", 0), ("random", 1))


@pytest.mark.parametrize("layer", WIDE, ids="-".join, indirect=True)
def test_separate_dk_and_dv_kernels_under_vmap(layer):
    """The rule of mx.vmap passes each kernel its own inputs."""
    arrays = plain((33, 70)).arrays()
    both = [mx.stack([arrays[name], arrays[name][..., ::-1]]) for name in "qkv"]
    gradients = mx.grad(lambda *qkv: attention(*qkv, causal=True).astype(mx.float32).sum(), argnums=(0, 1, 2))
    mapped = vmap(gradients)(*both)
    for entry in range(2):
        alone = gradients(*(array[entry] for array in both))
        assert [bits(array[entry]) for array in mapped] == [bits(array) for array in alone]


@pytest.mark.parametrize("layer, width", LAYERS, ids=str)
def test_kernels_that_ran(layer, width):
    case = plain((33, 70))
    with small_rows(layer, width), watched() as ran:
        feature_cases.backward(Variant(case, ()), case.arrays(), {"causal": True})
    last = ["backward_key", "backward_value"] if width == "wide" else ["backward_key_value"]
    assert kinds(ran) == ["forward", "backward_query_delta", *last]
    assert {one.plan.config.tiles for one in ran} == {layer}


OVERLAPPED = [
    Variant(plain((70, 150)), ()),
    of(24, "float16", "bool", "alibi"),
    of(24, "float16", "softcap", "segments"),
]


@pytest.mark.parametrize("layer", [("wgmma", "narrow")], ids="-".join, indirect=True)
@pytest.mark.parametrize("garbage", [False, True], ids=["finite", "infinity"])
@pytest.mark.parametrize("variant", OVERLAPPED, ids=str)
def test_products_that_overlap_give_the_same_bits(layer, monkeypatch, variant, garbage):
    """Rows may issue products before earlier ones are done: P V stays in flight until the next block's scores are
    there, and the kernel of dK and dV has all four of a block in flight. An infinity in dO takes the other of its two
    paths."""
    arrays, (arguments, _) = variant.case.arrays(), feature_cases.build(variant)
    if garbage:
        arrays["d_o"] = isolation_checks.spoiled(arrays["d_o"], (0, 0, 20), np.inf)
    results = {}
    for overlaps in (False, True):
        for kind in (FORWARD, BACKWARD_KEY_VALUE):
            rows = TENSOR_TABLE[kind, MIXED, "sm90"]
            monkeypatch.setitem(
                TENSOR_TABLE, (kind, MIXED, "sm90"), tuple(replace(row, overlaps=overlaps) for row in rows)
            )
        forget()
        with watched() as ran:
            results[overlaps] = feature_cases.backward(variant, arrays, arguments)
        names = [one.plan.kernel.name for one in ran if one.kind in (FORWARD, BACKWARD_KEY_VALUE)]
        assert len(names) == 2 and all(("_overlap_" in name) == overlaps for name in names)
    want, got = results[False], results[True]
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []
