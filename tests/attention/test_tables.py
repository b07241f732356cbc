"""The original's parameter rows, chosen by name: other blocks, the same results within the bounds."""

import mlx.core as mx
import pytest
from cases import Case, backward, expected
from machines import SIMULATED

from mlx_flash import attention, use_backend
from mlx_flash.backends import backend, with_table
from mlx_flash.explanations.explain import explain
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import candidates, lookup
from mlx_flash.kernels.original import ORIGINAL


@pytest.mark.simulator
@pytest.mark.parametrize("family", [family for _, family in SIMULATED])
def test_original_rows_are_right(family):
    case = Case(65, 70, 40, "float16", causal=True, group=2)
    arrays = case.arrays()
    with use_backend("simulator", family, table="original"):
        expected(case, arrays).check(**backward(case, arrays))


def test_original_rows_are_those_of_the_original():
    for (kind, precision, name), rows in ORIGINAL.items():
        family = with_table(backend("simulator", name), "original").family
        assert candidates(kind, precision, family) == rows
        assert candidates(kind, precision, FAMILIES[name]) == TABLE[kind, precision, name]
        assert lookup(kind, "float32" if precision == "float32" else "float16", family, 10**6) is rows[-1]


def test_kinds_without_original_rows_use_our_own():
    family = with_table(backend("simulator", "apple7"), "original").family
    for key, rows in TABLE.items():
        if key not in ORIGINAL and key[2] == "apple7":
            assert candidates(*key[:2], family) == rows


def test_explain_follows_the_choice():
    def blocks():
        return next(step.blocks for step in explain(head_dim=128, dtype="float16").kernels if step.name == "forward")

    with use_backend("simulator", "apple7"):
        own = blocks()
    with use_backend("simulator", "apple7", "original"):
        assert blocks() == (32, 128, 32) != own


def test_other_names_are_refused():
    with pytest.raises(ValueError, match='expected "own", "original" or None, got \'mfa\''):
        use_backend("simulator", table="mfa")
    with use_backend("reference", table="original"):
        assert attention(*[mx.ones((1, 1, 2, 8))] * 3).shape == (1, 1, 2, 8)
