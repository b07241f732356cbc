"""Gradients by five products on 8x8 matrices: what dQ's kernel keeps, and where the cost model says that it pays."""

from dataclasses import replace

import feature_cases
import kept_checks
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from kept_checks import GRADIENTS, MUCH, both, of
from oracle_variants import Facts
from watched import kinds, watched

from mlx_flash import BlockMask, explain, use_backend
from mlx_flash.kernels import kept
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import FULL, precision_of
from mlx_flash.kernels.cost import CHIPS, own_work, pass_cycles
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.kept import heads_at_a_time
from mlx_flash.kernels.lookup import lookup
from mlx_flash.problem.kinds import BACKWARD_KEY_KEPT, BACKWARD_KEY_VALUE, BACKWARD_QUERY, KEPT_KINDS
from mlx_flash.problem.problem import Problem, Signature
from mlx_flash.problem.variants import Variants

needs_simulator = pytest.mark.simulator


@pytest.fixture(params=["apple7", "apple9"])
def family(request):
    with use_backend("simulator", request.param):
        yield request.param


MANY = of(
    8, "bfloat16", "causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "dropout", "lse", axes="hj",
    lengths=(70, 149),
)  # fmt: skip
VARIANTS = [
    pytest.param("apple7", MANY, id="apple7-many"),
    pytest.param("apple9", MANY, id="apple9-many"),
    pytest.param("apple7", of(24, "float16", "blocks", "score"), id="apple7-blocks"),
    pytest.param("apple9", of(16, "bfloat16", "causal", "lengths"), id="apple9-lengths"),
    pytest.param("apple7", of(40, "float16", "bool", value_dim=64), id="apple7-bool"),
    pytest.param("apple9", of(136, "float16", "visible", "causal"), id="apple9-visible"),
    pytest.param("apple7", of(40, "float32", "causal", "window", "dropout"), id="apple7-float32"),
    pytest.param("apple9", of(72, "float32", "segments", value_dim=8), id="apple9-float32"),
]


def judged(variant: Variant):
    """Every gradient against the oracle, by the kernels of five products."""
    arguments, facts = feature_cases.build(variant)
    with watched() as ran:
        feature_cases.check_arguments(variant, arguments | {"scratch": MUCH}, facts, stored_output=True)
    assert set(GRADIENTS) <= set(kinds(ran)) and "backward_key_value" not in kinds(ran)


@needs_simulator
@pytest.mark.parametrize("family, variant", VARIANTS, indirect=["family"])
def test_every_gradient(family, variant):
    judged(variant)


@needs_simulator
@pytest.mark.parametrize("features", [(), ("causal",)], ids=["dense", "causal"])
@pytest.mark.parametrize("lengths", [(70, 150), (47, 31), (17, 1), (1, 40)], ids=str)
def test_lengths_that_end_within_tiles(family, lengths, features):
    """And tiles that nobody sees."""
    judged(Variant(Case(*lengths, 40, "float16", group=2, key_heads=2, batch=2), features))


ROWS = [
    pytest.param(family, row, dtypes[index % len(dtypes)], id=f"{family}-{dtypes[index % len(dtypes)]}-{row.max_head}")
    for (kind, precision, family), rows in TABLE.items()
    for dtypes in [("float32",) if precision == FULL else ("bfloat16", "float16")]
    for index, row in enumerate(rows)
    if kind is BACKWARD_KEY_KEPT
]


@needs_simulator
@pytest.mark.parametrize("family, row, dtype", ROWS, indirect=["family"])
def test_every_row(family, row, dtype):
    """One query and one key more than a block has, at the largest head dimension that the row serves."""
    judged(Variant(Case(row.traversal + 1, row.parallel + 1, row.max_head, dtype, group=1), ("causal",)))


@needs_simulator
@pytest.mark.parametrize("family", ["apple7"], indirect=True)
def test_blocks_that_are_no_multiple_of_a_read(family):
    """A visit has 56 keys: one group of fragments that are written together, and three fragments besides."""
    variant = of(40, "float16", lengths=(70, 210))
    keep = feature_cases.tiles(variant.draw("blocks"), 70, 210)
    arguments = {"mask": BlockMask.from_array(keep, block=160), "scratch": MUCH}
    with watched() as ran:
        feature_cases.check_arguments(variant, arguments, Facts(keep=keep), stored_output=True)
    assert {one.plan.config.traversal for one in ran if one.kind is KEPT_KINDS[0]} == {56}


@needs_simulator
@pytest.mark.parametrize(
    "family, dtype, same",
    [("apple7", "float16", {"dQ"}), ("apple9", "float16", {"dQ", "dV"}), ("apple9", "float32", {"dQ", "dK", "dV"})],
    indirect=["family"],
)
def test_the_bits_that_stay(family, dtype, same):
    """dQ is computed as ever. Where queries are added in the order of memory, dV is too; and dK, where dS is kept in
    the type in which it was a factor. Float32 adds blocks of queries, of which there is one here."""
    case = Case(31, 90, 40, dtype, group=2, key_heads=2, batch=2)
    want, got = both(Variant(case, ()), case.arrays(), {"causal": True})
    assert same <= {name for name in want if bits(got[name]) == bits(want[name])}


@needs_simulator
def test_nan_and_infinity_go_where_they_did(family):
    for name, want, got in kept_checks.spoiled_results():
        assert all(np.array_equal(np.isfinite(got[title]), np.isfinite(want[title])) for title in want), name


@needs_simulator
@pytest.mark.parametrize("heads, turns", [(0.9, 0), (2, 2), (3, 1)], ids=["no-head-fits", "two", "all"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("family", ["apple9"], indirect=True)
def test_heads_take_turns(family, dtype, heads, turns):
    """The bound is that of so many key heads: each has two query heads, of 48 x 80 pairs in two batch entries."""
    case = Case(41, 70, 40, dtype, group=2, key_heads=3, batch=2)
    pair = 2 * (4 if dtype == "float32" else 2)
    with watched() as ran:
        together, got = (
            feature_cases.backward(Variant(case, ()), case.arrays(), {"causal": True, "scratch": int(bound)})
            for bound in (MUCH, heads * 2 * 2 * pair * 48 * 80)
        )
    keeping = [one.problem.key_heads for one in ran if one.kind is KEPT_KINDS[0]][1:]
    assert len(keeping) == turns and sum(keeping) == (3 if turns else 0)
    assert not turns or [name for name in got if bits(got[name]) != bits(together[name])] == []


CAUSAL = Variants(causal=True)


def asked(head_dim=128, length=2048, heads=8, batch=1, dtype="bfloat16", scratch=None, variants=CAUSAL, group=1):
    signature = Signature(heads * group, heads, head_dim, head_dim, dtype, 0.1, variants, scratch)
    return Problem(signature, batch, length, length)


MIB = 2**20
RULE = {
    "five-products": (asked(), "apple7", 8),
    "on-m2-and-m3": (asked(head_dim=80), "apple8", 8),
    "turns-are-even": (asked(heads=40), "apple9", 20),
    "short-turns": (asked(length=1000, heads=160), "apple7", 0),
    "too-long": (asked(length=16384), "apple7", 0),
    "too-long-asked": (asked(length=16384, scratch=1024 * MIB), "apple7", 1),
    "too-few-pairs": (asked(length=1024), "apple7", 0),
    "few-columns": (asked(head_dim=72), "apple7", 0),
    "few-columns-asked": (asked(head_dim=16, scratch=1024 * MIB), "apple7", 8),
    "range-of-float16": (asked(dtype="float16"), "apple9", 0),
    "range-of-float16-asked": (asked(dtype="float16", scratch=64 * MIB), "apple9", 4),
    "float32": (asked(head_dim=160, dtype="float32"), "apple9", 8),
    "float32-of-few-columns": (asked(dtype="float32"), "apple9", 0),
    "float32-takes-twice-the-bytes": (asked(dtype="float32", scratch=64 * MIB), "apple9", 2),
    "asked-for-none": (asked(scratch=0), "apple9", 0),
    "beyond-the-rows": (asked(head_dim=264, scratch=1024 * MIB), "apple9", 0),
    "small-blocks": (asked(variants=replace(CAUSAL, block=8), scratch=1024 * MIB), "apple9", 0),
    "neural-accelerators": (asked(scratch=1024 * MIB), "apple10", 0),
    "m5-without-them": (asked(dtype="float32", scratch=1024 * MIB), "apple10", 8),
    "m5-by-default": (asked(head_dim=256, dtype="float32"), "apple10", 0),
}


@pytest.mark.parametrize("problem, name, heads", RULE.values(), ids=RULE)
def test_how_many_heads_at_a_time(problem, name, heads):
    assert heads_at_a_time(problem, FAMILIES[name]) == heads


def predicted(dtype: str, head_dim: int, chip: str, overlaps: bool) -> float:
    """The time of five products over that of seven, by the cost model."""
    family, (five, seven) = FAMILIES[CHIP_FAMILIES[chip]], (KEPT_KINDS, (BACKWARD_QUERY, BACKWARD_KEY_VALUE))
    found = []
    for several in (five, seven):
        rows = [(kind, lookup(kind, dtype, family, head_dim)) for kind in several]
        copied = family.uses_threadgroup_memory
        works = [(row, own_work(kind, row, precision_of(dtype), head_dim, copied)) for kind, row in rows]
        found.append(pass_cycles(works, CHIPS[chip], overlaps))
    return found[0] / found[1]


CHIP_FAMILIES = {"M1": "apple7", "M1 Max": "apple7", "M2": "apple8", "M3": "apple9", "M4": "apple9"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kept_unasked_where_the_model_says_that_it_pays(dtype):
    """On every chip, and by a twentieth of the time even if no byte is written or read during a product."""
    for head_dim in range(8, 257, 8):
        pays = all(predicted(dtype, head_dim, chip, overlaps=False) <= 0.95 for chip in CHIP_FAMILIES)
        row = next(row for row in kept.APPLE if dtype in row.dtypes and head_dim <= row.max_head)
        assert bool(row.bytes) == pays, head_dim
        if head_dim >= 64:
            assert all(predicted(dtype, head_dim, chip, overlaps=True) < 0.75 for chip in CHIP_FAMILIES)


def test_explain_names_the_kernels_and_the_memory():
    told = explain(head_dim=128, length=2048, heads=8, dtype="bfloat16", causal=True, backend="metal", family="apple7")
    keeping, *others = told.kernels[-3:]
    assert [one.name for one in told.kernels[-3:]] == GRADIENTS
    assert "8 key heads at a time" in keeping.why and keeping.extra_bytes == 2 * 2 * 8 * 2048**2
    assert [one.traversed for one in others] == [("Q", "dS"), ("dO", "P")]
