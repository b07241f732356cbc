"""The rows for neural accelerators: legal ones are proved, illegal ones are refused, and every problem has a row."""

from dataclasses import replace

import pytest
from problems import make_problem

from mlx_flash.kernels.config import MIXED, TileConfig
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.neural import BUDGET, NEURAL_TABLE, live_bytes, prove_neural_row
from mlx_flash.kernels.plan import key_value_kinds, plan_of
from mlx_flash.problem.kinds import (
    BACKWARD_KEY,
    BACKWARD_KEY_VALUE,
    BACKWARD_QUERY,
    BACKWARD_VALUE,
    FORWARD,
)

M5 = FAMILIES["apple10"]
ROW = NEURAL_TABLE[FORWARD, MIXED, "nax"][0]


def problem(head_dim: int, dtype="float16", **variants):
    return make_problem(1, 4, 2, 300, 300, head_dim, head_dim, dtype, variants=variants)


@pytest.mark.parametrize(
    "kind, row",
    [(kind, row) for (kind, *_), rows in NEURAL_TABLE.items() for row in rows],
    ids=lambda one: str(one)[:40],
)
def test_every_row_fits(kind, row):
    prove_neural_row(kind, M5, row)
    assert live_bytes(kind, row, row.max_head) <= BUDGET


BROKEN = {
    "a multiple of 16": replace(ROW, simdgroup_rows=8),
    "a multiple of 32": replace(ROW, traversal=48),
    "multiples of 8": replace(ROW, max_head=60),
    "whole simdgroups": replace(ROW, parallel=40),
    "must be cached": replace(ROW, cached=("Q",)),
    "may be cached": replace(ROW, cached=("O", "K")),
    "live bytes": replace(ROW, max_head=256),
    "threads exceed": replace(ROW, parallel=1024),
    "two simdgroups may share": replace(ROW, head_parts=3),
    "are a threadgroup": replace(ROW, head_parts=2),
    "threadgroup bytes exceed": replace(ROW, parallel=64, simdgroup_rows=64, traversal=96, head_parts=2),
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_broken_row_is_refused(complaint):
    with pytest.raises(ValueError, match=complaint):
        prove_neural_row(FORWARD, M5, BROKEN[complaint])


def test_live_bytes_are_counted_by_hand():
    """For D = 64 and 32 rows traversed: O 128, Q 64, S 64; in the backward kernel dQ 128, Q and dO 64 each, S and
    dS."""
    row = TileConfig(64, 64, 32, 64, ("Q", "O"), 16, "nax")
    assert live_bytes(FORWARD, row, 64) == 128 + 64 + 64
    assert live_bytes(BACKWARD_QUERY, replace(row, cached=("Q", "dO", "dQ")), 64) == 128 + 2 * 64 + 2 * 64
    assert live_bytes(FORWARD, replace(row, simdgroup_rows=32), 64) == 2 * (128 + 64 + 64)
    half = replace(row, parallel=16, head_parts=2)  # of D = 256: O 256, Q 128, and all of S
    assert live_bytes(FORWARD, half, 256) == 256 + 128 + 64


@pytest.mark.parametrize("head_dim", (8, 96, 104, 192, 200, 256, 264, 512))
def test_every_head_dimension_has_a_row(head_dim):
    asked = problem(head_dim)
    for kind in (FORWARD, BACKWARD_QUERY, *key_value_kinds(asked.signature, M5)):
        row = plan_of(kind, asked, M5).config
        assert row.tiles == ("nax" if head_dim <= 256 else "simdgroup")
        assert row.head_parts == (2 if 192 < head_dim <= 256 else 1)
    apart = key_value_kinds(asked.signature, M5) == (BACKWARD_KEY, BACKWARD_VALUE)
    assert apart == (96 < head_dim <= 256)


@pytest.mark.parametrize("block", (32, 64, 96, 128, 192))
def test_a_threadgroup_stays_in_one_block_of_a_mask(block):
    for head_dim in (64, 128, 192, 256):
        asked = problem(head_dim, block=block)
        for kind in (FORWARD, BACKWARD_QUERY, *key_value_kinds(asked.signature, M5)):
            row = plan_of(kind, asked, M5).config
            assert block % row.parallel == 0
            prove_neural_row(kind, M5, replace(row, max_head=head_dim))


def test_without_accelerators_the_family_is_that_of_m4():
    plain = replace(M5, tensor="")
    for kind in (FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE):
        assert plan_of(kind, problem(64), plain).kernel == plan_of(kind, problem(64), FAMILIES["apple9"]).kernel
