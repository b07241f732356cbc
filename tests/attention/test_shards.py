"""Kernels that walk along a sequence in the shards of several ranks, where they lie: the bits of one in order."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import shards
from machines import each_simulated_family

from mlx_flash import use_backend
from mlx_flash.backends import simulator
from mlx_flash.cli.probe import trial
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, FORWARD
from mlx_flash.problem.problem import problem_of
from mlx_flash.simulator import mode

TWO = {"pieces": (2, 2)}
CASES = {  # texts are the same where pieces and options are
    "pieces of whole blocks": {"queries": 128, "keys": 256, "first": 64, "causal": True, **TWO},
    "pieces shorter than a block": {"queries": 48, "keys": 48, "causal": True, **TWO},
    "pieces of odd length": {"queries": 140, "keys": 156, "first": 9, "causal": True, **TWO},
    "one piece a rank, a window": {"queries": 120, "keys": 180, "first": 33, "pieces": (3, 1), "window": (37, 11)},
    "four ranks": {"queries": 96, "keys": 136, "pieces": (4, 2), "causal": True},
}
SLOW = ("four ranks",)


def checked(name: str, dtype: str, **more):
    want, got = shards.results(**CASES[name], dtype=dtype, **more)
    assert got == want
    return got


@each_simulated_family
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_shards_have_the_bits_of_the_sequence(name, family):
    with use_backend("simulator", family), mode("check"):
        checked(name, "float16")


@each_simulated_family
@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[:4])
def test_in_float32(name, family):
    with use_backend("simulator", family), mode("check"):
        checked(name, "float32")


@pytest.mark.simulator
@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[:4])
def test_on_neural_accelerators(name):
    with use_backend("simulator", "apple10"), mode("check"):
        checked(name, "float16")


SLOPES = mx.array([0.5, 0.1, 0.02, 0.3])


@each_simulated_family
@pytest.mark.parametrize("options", [{}, {"alibi_slopes": SLOPES}], ids=["causal", "alibi"])
def test_a_kernel_owns_keys_of_two_pieces(options, family):
    with use_backend("simulator", family), mode("check"):
        want, got = shards.of_two_pieces(256, "float16", **options)
    assert got == want


def test_the_reference_owns_keys_of_two_pieces():
    with use_backend("reference"):
        want, got = shards.of_two_pieces(64, "float32", alibi_slopes=SLOPES)
    assert got == want


@each_simulated_family
def test_an_additive_mask(family):
    mask = mx.array(np.random.default_rng(0).standard_normal((2, 4, 140, 156)).astype(np.float32))
    with use_backend("simulator", family), mode("check"):
        got = checked("pieces of odd length", "float32", mask=mask, alibi_slopes=mx.array([0.5, 0.1, 0.02, 0.3]))
    assert any(name == "backward_mask" for name, _ in got)


@pytest.mark.simulator
@pytest.mark.parametrize("kind", [FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE], ids=str)
def test_a_mac_can_try_the_kernels(monkeypatch, kind):
    """The probe before a kernel's first use: right kernels pass, and 2 % more is noticed."""
    q, k = mx.zeros((1, 4, 64, 24), mx.float16), mx.zeros((1, 2, 64, 24), mx.float16)
    signature, family = problem_of(q, k, k, causal=True).signature, FAMILIES["apple7"]
    signature = replace(signature, variants=replace(signature.variants, shifts=True, pieces=(2, 2)))
    kernel = plan(kind, signature, family).kernel
    for factor in (1, 1.02):
        monkeypatch.setattr(trial, "run", lambda *given, by=factor: [by * one for one in simulator.run(*given)])
        assert ("numbers are wrong" in trial.trial(kind.name, signature, family, 0, kernel)["reason"]) == (factor != 1)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_puts_them_in_order(name):
    with use_backend("reference"):
        checked(name, "float32")
