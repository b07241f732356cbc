"""The tiny problem on which a Mac tries a kernel before its first use: right kernels pass, wrong ones fail."""

import itertools

import mlx.core as mx
import pytest

import mlx_flash
from mlx_flash.backends import simulator
from mlx_flash.cli.probe import trial
from mlx_flash.gallery.scores import kerple
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan, plan_of
from mlx_flash.problem.kinds import (
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    COMBINE,
    DECODE,
    DELTA,
    FORWARD,
    KEPT_KINDS,
)
from mlx_flash.problem.problem import Signature, problem_of, signature_of
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

VARIANTS = {
    "plain": {},
    "window-softcap": {"causal": True, "window": (3, 0), "softcap": 20.0},
    "mask": {"mask": mx.zeros((1, 1, 1, 1)) > -1, "sinks": mx.zeros((4,), mx.float16)},
    "bias": {"mask": mx.zeros((1, 1, 1, 1), mx.float16), "alibi_slopes": mx.zeros((4,))},
    "segments": {"causal": True, "segments": (mx.zeros((1,), mx.int32), mx.zeros((1,), mx.int32))},
    "blocks": {"mask": mlx_flash.BlockMask.causal(64, 64, block=32)},
    "dropout": {"dropout": 0.25, "key": mx.random.key(0)},
    "lengths": {"causal": True, "lengths": mx.zeros((1,), mx.int32)},
    "pages": {"pages": mx.zeros((1, 1), mx.int32), "lengths": mx.zeros((1,), mx.int32)},
    "latent": {"latent": True},
    "score": {"score": kerple(mx.ones((4,)), mx.ones((4,)))},  # whose logarithm has no value at negative numbers
}


@pytest.mark.simulator
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (place % 2)) for place, name in enumerate(VARIANTS)]
)
def test_a_probe_finds_right_kernels_right_and_wrong_ones_wrong(monkeypatch, name):
    """Every kind of kernel of a signature passes on the simulator, and fails with 2 % added to any of its results."""
    q, k = mx.zeros((1, 4, 1, 16)), mx.zeros((1, 2, 64, 16))
    signature, family = signature_of(q, k, k, **VARIANTS[name]), FAMILIES["apple7"]
    kinds = [] if signature.variants.page else [DELTA, BACKWARD_QUERY, BACKWARD_KEY_VALUE]
    kinds += [BACKWARD_MASK] * signature.variants.additive
    kinds += KEPT_KINDS * (name in ("plain", "window-softcap"))
    kinds += [FORWARD] if signature.variants.dropout else [FORWARD, DECODE, COMBINE]
    for kind in kinds:
        rows = {DECODE: 8, COMBINE: 8}.get(kind, 0)
        kernel = plan(kind, signature, family, rows).kernel
        for factor in (1, 1.02):

            def run(kind, *arguments, factor=factor):
                return [factor * output for output in simulator.run(kind, *arguments)]

            monkeypatch.setattr(trial, "run", run)
            found = trial.trial(kind.name, signature, family, rows, kernel)
            assert ("numbers are wrong" in found["reason"]) == (factor != 1), (kind, found)


@pytest.mark.parametrize("family", ("apple7", "apple9"))
@pytest.mark.parametrize("mask", ({}, {"mask": mx.zeros((1, 1, 1, 1))}), ids=("plain", "bias"))
def test_a_probe_launches_as_calls_do(family, mask):
    """Decoding's threads follow the rows: a kernel made for four simdgroups is not tried with three."""
    for group, queries in itertools.product(range(1, 34), range(1, 9)):
        q, k = mx.zeros((1, group, queries, 24)), mx.zeros((1, 1, 700, 24))
        asked = problem_of(q, k, k, **mask)
        wanted = plan_of(DECODE, asked, FAMILIES[family])
        problem = trial.tiny(DECODE, asked.signature, FAMILIES[family], wanted.rows)
        found = plan_of(DECODE, problem, FAMILIES[family])
        assert found.kernel.name == wanted.kernel.name
        assert found.launch(problem).threadgroup == wanted.launch(asked).threadgroup
        assert not mask or problem.mask_shape[2] == problem.query_length


@pytest.mark.simulator
def test_a_probe_of_a_quantized_cache(monkeypatch):
    monkeypatch.setattr(trial, "run", simulator.run)
    for mode, bits, group_size, latent in (("affine", 4, 32, False), ("mxfp8", 8, 32, True), ("nvfp4", 4, 16, False)):
        variants = Variants(causal=True, quantization=Quantization(mode, bits, group_size), latent=latent)
        signature = Signature(4, 2, group_size, group_size, "float16", 0.25, variants)
        for kind, rows in ((FORWARD, 0), (DECODE, 8)):
            kernel = plan(kind, signature, FAMILIES["apple7"], rows).kernel
            found = trial.trial(kind.name, signature, FAMILIES["apple7"], rows, kernel)
            assert found["reason"] == "", (mode, kind)
