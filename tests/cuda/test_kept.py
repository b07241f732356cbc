"""Gradients by five products: dQ's kernel keeps P and dS for those of dK and dV, in memory with a bound."""

from dataclasses import replace

import bounds
import feature_cases
import kept_checks
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from kept_checks import GRADIENTS, MUCH, both, of
from tensor_rows import small_rows
from watched import kinds, watched

from mlx_flash import attention, explain, patch, use_backend, vmap
from mlx_flash.kernels import kept
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.kept import heads_at_a_time
from mlx_flash.problem.kinds import KEPT_KINDS
from mlx_flash.problem.problem import Problem, Signature
from mlx_flash.problem.variants import Variants
from mlx_flash.simulator import mode, schedule

needs_simulator = pytest.mark.simulator


@pytest.fixture(params=["mma", "wgmma"])
def layer(request):
    with mode("check"), small_rows(request.param, "narrow") as backend:
        yield backend


MANY = ("causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "dropout", "lse")
VARIANTS = [
    pytest.param("wgmma", of(8, "bfloat16", *MANY, axes="hj", lengths=(70, 149)), id="many"),
    pytest.param("wgmma", of(24, "float16", "blocks", "score"), id="blocks"),
    pytest.param("wgmma", of(16, "bfloat16", "causal", "lengths"), id="lengths"),
    pytest.param("mma", of(40, "float16", "bool", value_dim=64), id="bool"),
    pytest.param("mma", of(16, "bfloat16", "visible", "causal"), id="visible"),
]


@needs_simulator
@pytest.mark.parametrize("layer, variant", VARIANTS, indirect=["layer"])
def test_every_gradient(layer, variant):
    arguments, facts = feature_cases.build(variant)
    with watched() as ran, schedule("random", 3):
        feature_cases.check_arguments(variant, arguments | {"scratch": MUCH}, facts, stored_output=True)
    assert set(GRADIENTS) <= set(kinds(ran)) and "backward_key_value" not in kinds(ran)


@needs_simulator
@pytest.mark.parametrize("causal", [False, True], ids=["dense", "causal"])
@pytest.mark.parametrize("lengths", [(70, 150), (47, 31), (17, 1), (1, 40)], ids=str)
def test_the_bits_of_seven_products(layer, lengths, causal):
    """Where the blocks of both begin at the same rows; shapes that end within a tile, and tiles that nobody sees."""
    case = Case(*lengths, 40, "float16", group=2, key_heads=2)
    want, got = both(Variant(case, ()), case.arrays(), {"causal": causal})
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


@needs_simulator
def test_nan_and_infinity_go_where_they_did(layer):
    for name, want, got in kept_checks.spoiled_results():
        assert all(np.array_equal(got[title], want[title], equal_nan=True) for title in want), name


@needs_simulator
@pytest.mark.parametrize(
    "heads, turns",
    [
        pytest.param(0.9, 0, id="no-head-fits"),
        pytest.param(1, 3, id="one"),
        pytest.param(2, 2, id="two"),
        pytest.param(3, 1, id="all"),
    ],
)
def test_heads_take_turns(layer, heads, turns):
    """The bound is that of so many key heads: each has two query heads, of 48 x 32 pairs in two batch entries."""
    case = Case(47, 31, 40, "float16", group=2, key_heads=3, batch=2)
    with watched() as ran:
        want, got = both(Variant(case, ()), case.arrays(), {"causal": True}, int(heads * 2 * 2 * 2 * 2 * 48 * 32))
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []
    keeping = [one for one in ran if one.kind is KEPT_KINDS[0]]
    assert len(keeping) == turns and sum(one.problem.key_heads for one in keeping) == (3 if turns else 0)


@needs_simulator
def test_a_mapped_call_recomputes(layer):
    arrays = Case(33, 70, 40, "float16", group=1, key_heads=2).arrays()
    stacked = [mx.stack([arrays[name], arrays[name][..., ::-1]]) for name in "qkv"]

    def gradients(*qkv):
        def loss(*qkv):
            return attention(*qkv, causal=True, scratch=MUCH).astype(mx.float32).sum()

        return mx.grad(loss, argnums=(0, 1, 2))(*qkv)

    for entry, mapped in enumerate(zip(*vmap(gradients)(*stacked))):
        alone = gradients(*(array[entry] for array in stacked))
        assert [bits(array) for array in mapped] == [bits(array) for array in alone]


@needs_simulator
@pytest.mark.parametrize("layer", ["wgmma"], indirect=True)
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize("heads", [1, 2], ids=["turns", "together"])
def test_second_derivatives_under_patch(layer, heads, seen, monkeypatch):
    """Whether patch() sees them or not: their rules know the gradients, but neither P nor dS. Where it sees them
    the bits are those with nothing kept; elsewhere those rules round dQ's part apart from dK's, and the built-in's own
    errors are the measure."""
    arrays = Case(33, 40, 40, "float16", key_heads=2).arrays()
    q, k, v = (arrays[name] for name in "qkv")
    grad = (lambda function: mx.grad(function)) if seen else mx.grad  # the latter is bound before patch()

    def norm(q, k=k, v=v):
        def loss(q, k):
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal").astype(mx.float32).sum()

        return sum(one.astype(mx.float32).square().sum() for one in both_of(loss, q, k))

    def both_of(loss, q, k):
        return grad(lambda qk: loss(*qk))([q, k])

    found = []
    for row in (kept.Gain(256, 0, 0), kept.Gain(256, 0, heads * 2 * 2 * 48 * 48)):
        monkeypatch.setitem(kept.TABLE, "sm90", (row,))
        monkeypatch.setattr(kept, "LEAST_QUERIES", 0)
        monkeypatch.setattr(kept, "LEAST_SHARE", 0)
        with patch(policy="always"), watched() as ran:
            found.append((norm(q), grad(norm)(q)))
            mx.eval(found[-1])
        turns = [one.problem.key_heads for one in ran if one.kind is KEPT_KINDS[0]]
        assert set(turns) == ({heads} if row.bytes else set())
    (want_first, want), (first, got) = found
    assert bits(first) == bits(want_first) and (bits(got) == bits(want) or not seen)
    with use_backend("reference"):
        exact = bounds.float64(
            grad(lambda q: norm(q, *(one.astype(mx.float32) for one in (k, v))))(q.astype(mx.float32))
        )
    bounds.no_worse("second derivative", bounds.float64(got) - exact, bounds.float64(grad(norm)(q)) - exact)


SM90 = FAMILIES["sm90"]
CAUSAL = Variants(causal=True)


def asked(head_dim=128, length=8192, heads=16, batch=1, dtype="bfloat16", scratch=None, variants=CAUSAL, group=1):
    signature = Signature(heads * group, heads, head_dim, head_dim, dtype, 0.1, variants, scratch)
    return Problem(signature, batch, length, length)


GIB = 2**30
RULE = {
    "five-products": (asked(head_dim=192, length=4096), SM90, 16),
    "linear-in-memory": (asked(length=4096), SM90, 0),
    "linear-in-memory-asked": (asked(length=4096, scratch=GIB), SM90, 16),
    "bounded": (asked(length=8192, scratch=5 * GIB // 4), SM90, 4),
    "turns-are-even": (asked(head_dim=256, length=16384, heads=7), SM90, 4),
    "groups": (asked(length=8192, heads=8, group=4, scratch=4 * GIB), SM90, 4),
    "short-turns": (asked(head_dim=256, length=4096, batch=8), SM90, 0),
    "short-turns-asked": (asked(length=4096, batch=2, scratch=GIB), SM90, 8),
    "turns-of-few-threadgroups-asked": (asked(length=16384, scratch=GIB), SM90, 1),
    "more-columns-gain-more": (asked(head_dim=256, length=16384), SM90, 4),
    "many-turns": (asked(head_dim=256, length=32768), SM90, 0),
    "many-turns-asked": (asked(head_dim=256, length=32768, scratch=4 * GIB), SM90, 1),
    "too-long": (asked(head_dim=256, length=40000), SM90, 0),
    "too-few-pairs": (asked(head_dim=256, length=2800), SM90, 0),
    "every-pair-is-visible": (asked(head_dim=256, length=2100, variants=Variants()), SM90, 16),
    "few-columns-asked": (asked(head_dim=64, scratch=GIB), SM90, 4),
    "asked-for-none": (asked(length=4096, scratch=0), SM90, 0),
    "asked-for-too-little": (asked(length=4096, scratch=1000), SM90, 0),
    "float32": (asked(dtype="float32", scratch=GIB), SM90, 0),
    "beyond-the-rows": (asked(head_dim=264, scratch=GIB), SM90, 0),
    "heads-that-differ": (asked(head_dim=256, length=16384, variants=replace(CAUSAL, alibi=True)), SM90, 0),
    "heads-that-differ-fit": (asked(head_dim=256, length=4096, variants=replace(CAUSAL, alibi=True)), SM90, 16),
    "small-blocks": (asked(length=4096, variants=replace(CAUSAL, block=8), scratch=GIB), SM90, 0),
    "beyond-32-bits": (asked(scratch=2**50)._replace(query_length=1, key_length=2**27), SM90, 0),
    "another-gpu": (asked(head_dim=256, length=4096), FAMILIES["sm80"], 0),
    "another-gpu-asked": (asked(length=4096, scratch=4 * GIB), FAMILIES["sm80"], 16),
    "no-kernels": (asked(length=4096, scratch=4 * GIB), None, 0),
}


@pytest.mark.parametrize("problem, family, heads", RULE.values(), ids=RULE)
def test_how_many_heads_at_a_time(problem, family, heads):
    assert heads_at_a_time(problem, family) == heads


@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_a_call_keeps_no_more_than_the_built_in(head_dim):
    """Beyond inputs and results, cuDNN's backward pass takes the float32 sums of dQ up to 128 columns; MLX's own
    beyond holds the scores, their exponentials and gradients in 16 bits, of all heads at once."""
    for length in (1024, 3000, 4096, 8192, 16384, 65536):
        for variants in (CAUSAL, Variants()):
            problem = asked(head_dim, length, variants=variants)
            kept_by_us = heads_at_a_time(problem, SM90) * kept.kept_bytes(problem)
            linear, scores = 4 * 16 * length * head_dim, 3 * 2 * 16 * length**2
            assert kept_by_us <= (linear if head_dim <= 128 else scores), length


@pytest.mark.parametrize("scratch", [-1, 1.5, "1 GiB", mx.array([1, 2]), [2]], ids=str)
def test_a_bound_is_a_number_of_bytes(scratch):
    q = mx.zeros((1, 1, 4, 8))
    with pytest.raises(ValueError, match=r"scratch: expected a number of bytes, 0 for none, or None"):
        attention(q, q, q, scratch=scratch)


@pytest.mark.parametrize("scratch", [None, 0, 1, np.int64(2**40), mx.array(3)], ids=str)
def test_results_do_not_depend_on_the_bound(scratch):
    q = mx.random.normal((1, 2, 9, 8), key=mx.random.key(1))
    assert bits(attention(q, q, q, scratch=scratch)) == bits(attention(q, q, q))


def test_explain_names_the_kernels_and_the_memory():
    told = explain(head_dim=256, length=16384, heads=16, dtype="bfloat16", causal=True, backend="cuda", family="sm90")
    keeping, *others = told.kernels[-3:]
    assert [one.name for one in told.kernels[-3:]] == GRADIENTS
    assert "4 key heads at a time" in keeping.why and keeping.extra_bytes == 4 * GIB
    assert [one.traversed for one in others] == [("Q", "dS"), ("dO", "P")]
