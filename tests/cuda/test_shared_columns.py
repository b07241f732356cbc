"""Threadgroups that own the same rows share the columns of an accumulator that registers do not hold: on the simulator,
in parts of 64 columns in place of 256."""

import feature_cases
import isolation_checks
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from oracle_variants import Facts
from problems import make_problem
from tensor_rows import SHARED, small_rows
from views import odd_rows, odd_start
from watched import kinds, watched

from mlx_flash import BlockMask, explain, use_backend
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import key_value_kinds, plan_of
from mlx_flash.kernels.tile_layers import column_shares
from mlx_flash.problem.kinds import BACKWARD_KEY, BACKWARD_QUERY, BACKWARD_VALUE, FORWARD
from mlx_flash.simulator import mode, profile, schedule


@pytest.fixture(params=SHARED, ids=lambda layer: layer[0])
def layer(request):
    with mode("check"), small_rows(*request.param) as backend:
        yield backend


def of(head_dim: int, dtype: str, *features: str, value_dim=None, lengths=(41, 70)) -> Variant:
    case = Case(*lengths, head_dim, dtype, value_dim=value_dim, group=2, key_heads=1, batch=2)
    return Variant(case, features, "bhij", (30, 5))


def plain(head_dim=72, value_dim=104, lengths=(41, 70)) -> Case:
    return Case(*lengths, head_dim, "float16", value_dim=value_dim, group=2, key_heads=1)


# Whole parts, last parts of 8 and 40 columns, and dimensions of which only one is shared
VARIANTS = [
    of(72, "float16", "causal", "lse", "sinks"),
    of(128, "bfloat16", "causal", "window", "dropout"),
    of(64, "float16", "bool", value_dim=104),
    of(104, "bfloat16", "softcap", "segments", value_dim=40),
]


@pytest.mark.simulator
@pytest.mark.all_values
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_options(layer, variant):
    feature_cases.check(variant, stored_output=True)


@pytest.mark.simulator
def test_kernels_that_ran(layer):
    """Where only one of the dimensions exceeds a part, only the kernels whose accumulator has it share columns."""
    for (head_dim, value_dim), sharing in {
        (72, 104): {"forward", "backward_query_delta", "backward_key", "backward_value"},
        (72, 40): {"backward_query_delta", "backward_key"},
        (40, 72): {"forward", "backward_value"},
    }.items():
        case = plain(head_dim, value_dim, (33, 40))
        with watched() as ran:
            feature_cases.backward(Variant(case, ()), case.arrays(), {"causal": True})
        assert kinds(ran) == ["forward", "backward_query_delta", "backward_key", "backward_value"]
        assert {one.kind.name for one in ran if "_columns64_" in one.plan.kernel.name} == sharing


@pytest.mark.simulator
def test_every_element_has_one_writer(layer):
    """The bytes that a kernel stores are those of its outputs: no part repeats the statistics of another."""
    case = plain()
    with profile() as counted, watched() as ran:
        feature_cases.backward(Variant(case, ()), case.arrays(), {"causal": True})
    assert len(counted.launches) == len(ran) == 4
    for launch, one in zip(counted.launches, ran):
        stored = [buffer["stored"] for buffer in launch["buffers"].values() if buffer["stored"]]
        assert sum(stored) == one.plan.launch(one.problem).output_bytes, (launch["kernel"], stored)


@pytest.mark.simulator
@pytest.mark.parametrize("view", [odd_rows, odd_start], ids=lambda view: view.__name__)
def test_views_that_are_not_aligned(layer, view):
    case = plain()
    arrays, variant = case.arrays(), Variant(case, ())
    want = feature_cases.backward(variant, arrays, {"causal": True})
    got = feature_cases.backward(variant, {name: view(array) for name, array in arrays.items()}, {"causal": True})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


@pytest.mark.simulator
def test_every_schedule_gives_the_same_bits(layer):
    case = plain()
    arrays, variant = case.arrays(), Variant(case, ())
    want = feature_cases.backward(variant, arrays, {"causal": True})
    with schedule("random", 1):
        got = feature_cases.backward(variant, arrays, {"causal": True})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


@pytest.mark.simulator
@pytest.mark.parametrize("garbage", [mx.nan, mx.inf], ids=str)
def test_garbage_in_masked_keys(layer, garbage):
    variant = of(72, "float16", "bool", value_dim=104)
    arrays, keep = variant.case.arrays(), mx.array(isolation_checks.KEEP)
    want = feature_cases.backward(variant, arrays, {"mask": keep})
    spoiled = {name: mx.where(keep[:, None], arrays[name], garbage).astype(arrays[name].dtype) for name in "kv"}
    got = feature_cases.backward(variant, arrays | spoiled, {"mask": keep})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


@pytest.mark.simulator
def test_blocks_of_a_mask(layer):
    variant = of(72, "float16", lengths=(70, 150))
    rows, columns = np.arange(70)[:, None] // 64, np.arange(150) // 64
    keep = (rows >= columns - 1) & (variant.draw("blocks").random((70, 150)) < 0.7)
    arguments, facts = {"mask": BlockMask.from_array(keep, block=64)}, Facts(keep=keep)
    feature_cases.check_arguments(variant, arguments, facts, stored_output=True)


WANTED = {  # (head dimension, value dimension): parts and columns of O, dQ, dK, dV
    (256, 256): (1, 256), (264, 264): (2, 192), (384, 384): (2, 192), (392, 392): (2, 256), (512, 512): (2, 256),
}  # fmt: skip


@pytest.mark.parametrize("dims, wanted", WANTED.items(), ids=str)
def test_parts_cover_the_columns(dims, wanted):
    """Parts are whole panels of 64 columns, as few as registers allow."""
    family = FAMILIES["sm90"]
    asked = make_problem(1, 4, 2, 300, 300, *dims, "bfloat16")
    for kind in (FORWARD, BACKWARD_QUERY, *key_value_kinds(asked.signature, family)):
        chosen = plan_of(kind, asked, family)
        parts, columns = column_shares(kind, chosen.config, *dims)
        assert (parts, columns) == wanted and parts * columns >= dims[0] > (parts - 1) * columns
        assert chosen.config.tiles == "wgmma"
        assert chosen.launch(asked).grid[0] == -(-300 // chosen.config.parallel) * parts * chosen.config.threads


def test_dimensions_that_differ():
    family = FAMILIES["sm90"]
    asked = make_problem(1, 4, 2, 300, 300, 512, 128, "bfloat16")
    parts = {kind: column_shares(kind, plan_of(kind, asked, family).config, 512, 128).parts
             for kind in (FORWARD, BACKWARD_QUERY, BACKWARD_KEY, BACKWARD_VALUE)}  # fmt: skip
    assert parts == {FORWARD: 1, BACKWARD_QUERY: 2, BACKWARD_KEY: 2, BACKWARD_VALUE: 1}


@pytest.mark.parametrize("family", ["sm80", "sm90"])
def test_explain_says_so(family):
    with use_backend("simulator", family):
        said = str(explain(head_dim=384, dtype="float16"))
        assert said.count("2 threadgroups share the columns of") == 4, said
        assert "share the columns" not in str(explain(head_dim=256, dtype="float16"))
