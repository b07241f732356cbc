"""Every row of the parameter table runs and is right at its block edges; illegal rows are refused."""

import itertools
from dataclasses import replace

import bounds
import mlx.core as mx
import numpy as np
import pytest
from cases import Case
from feature_cases import Variant, additive
from kernel_checks import check_step, problem, row_statistics
from oracle_variants import Attention, Facts
from problems import with_variants

from mlx_flash.autodiff.launching import run_kernel
from mlx_flash.backends import backend as backend_of
from mlx_flash.kernels.apple import TABLE, prove
from mlx_flash.kernels.config import FULL, MIXED, TileConfig, precision_of
from mlx_flash.kernels.devices import FAMILIES, TABLE_PREFIX
from mlx_flash.kernels.lookup import lookup, prove_table
from mlx_flash.kernels.registers import EDGE_SPILL, max_threads, register_demand
from mlx_flash.problem.kinds import (
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    DECODING,
    DELTA,
    FORWARD,
    KEPT_KINDS,
    MASK_MAP,
    TRAINING,
)

BEYOND = 392  # a head dimension past the last row of every table

# The gradient of an array mask reads a mask, and so has a test of its own.
MASK_ROWS = [(*key[1:], index) for key, rows in TABLE.items() if key[0] is BACKWARD_MASK for index in range(len(rows))]
# Decoding has tests of its own too: its rows serve fewer queries than there are rows in a block. So has the map of a
# mask, which only tensor cores read (tests/cuda/test_mask_map.py), and what another kernel keeps (test_kept_apple.py).
ELSEWHERE = (BACKWARD_MASK, MASK_MAP, *DECODING, *KEPT_KINDS)
OURS = {key: rows for key, rows in TABLE.items() if key[0] not in ELSEWHERE}


def exercised() -> list:
    """(step, dtype, family, row, head dimension, causal): one for each row, with the largest dimension it serves.

    The 16-bit rows and the masks take turns over the two types and both kinds.
    """
    found = []
    for (step, precision, family), rows in OURS.items():
        for index, row in enumerate(rows):
            dtype = "float32" if precision == FULL else ("float16", "bfloat16")[index % 2]
            head_dim = BEYOND if row is rows[-1] else row.max_head
            found.append((step, dtype, family, index, head_dim, index % 2 == 0))
    return found


ROWS = exercised()


def named(choice) -> str:
    return "-".join(map(str, choice))


@pytest.mark.simulator
@pytest.mark.parametrize("step, dtype, family, index, head_dim, causal", ROWS, ids=map(named, ROWS))
def test_row(step, dtype, family, index, head_dim, causal):
    row = TABLE[step, precision_of(dtype), family][index]
    backend = backend_of("simulator", family)
    assert lookup(step, dtype, backend.family, head_dim) is row
    # One below and above the block of queries and of keys, whichever of them this step runs in parallel.
    rows, keys = (row.parallel, row.traversal)[:: -1 if step is BACKWARD_KEY_VALUE else 1]
    for query_length, key_length in ((rows - 1, keys + 1), (rows + 1, keys - 1), (rows, keys)):
        check_step(step, Case(query_length, key_length, head_dim, dtype, causal, group=2), backend)


@pytest.mark.simulator
@pytest.mark.parametrize("precision, family, index", MASK_ROWS)
def test_row_of_the_mask_gradient(precision, family, index):
    """At the row's largest head dimension and the edges of its blocks, for a full mask and for broadcast ones."""
    dtype = "float32" if precision == FULL else ("float16", "bfloat16")[family == "apple9"]
    row, backend = TABLE[BACKWARD_MASK, precision, family][index], backend_of("simulator", family)
    rows, keys = row.parallel, row.traversal
    axes = itertools.cycle(["bhij", "hj", "i", ""])
    for query_length, key_length in ((rows - 1, keys + 1), (rows + 1, keys - 1), (rows, keys), (3 * rows, 2 * keys)):
        case = Case(query_length, key_length, BEYOND, dtype, query_length % 2 == 1, group=2, batch=2)
        arrays = case.arrays()
        mask = additive(Variant(case, ("additive",), mask_axes=next(axes)))[0]["mask"]
        exact = [bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o")]
        facts = Facts(causal=case.causal, mask=bounds.float64(mask))
        judge = Attention(*exact, case.scale, facts)
        want, name = judge.results(), "dM"
        inputs = {"Q": arrays["q"], "K": arrays["k"], "V": arrays["v"], "dO": arrays["d_o"], "scale": case.scale}
        inputs["L"] = row_statistics(want["LSE"], scale=1.0)
        inputs["delta"] = mx.array((want["O"] * exact[3]).sum(-1).astype(np.float32))
        inputs["attention_mask"] = mx.broadcast_to(mask, (*case.shapes["q"][:3], key_length))
        inputs["extents"] = mask.shape
        asked = with_variants(problem(case), mask=dtype, mask_shape=mask.shape)
        assert lookup(BACKWARD_MASK, dtype, backend.family, BEYOND) is row
        (got,) = run_kernel(BACKWARD_MASK, asked, backend, None, inputs)
        assert got.dtype == mx.float32 and got.shape == mask.shape
        terms = judge.term_magnitudes()[name]
        bounds.check(name, got, want[name], f"{case} mask {mask.shape}", "float32", terms=terms)


def test_every_row_is_exercised():
    assert len(MASK_ROWS) == sum(len(rows) for key, rows in TABLE.items() if key[0] is BACKWARD_MASK) > 0
    assert len(ROWS) == sum(len(rows) for rows in OURS.values())
    assert {(step, precision_of(dtype), family) for step, dtype, family, *_ in ROWS} == set(OURS)
    for step in (*TRAINING, *DECODING):
        for precision in (FULL, MIXED):
            for family in FAMILIES.values():
                assert (step, precision, family.table.removeprefix(TABLE_PREFIX)) in TABLE
    assert {family.table.removeprefix(TABLE_PREFIX) for family in FAMILIES.values()} == {"apple7", "apple9"}


def test_lookup_takes_the_first_row_that_covers_the_head_dimension():
    for (step, precision, name), rows in TABLE.items():
        dtype = "float32" if precision == FULL else "bfloat16"
        lowest = 1
        for row in rows:
            for head_dim in (lowest, row.max_head):
                assert lookup(step, dtype, FAMILIES[name], head_dim) is row
            lowest = row.max_head + 1
        assert lookup(step, dtype, FAMILIES[name], 10**6) is rows[-1]


# One rule broken at a time, each from a row that is legal for M1, float32: (step, family, changes, complaint)
LEGAL = TileConfig(64, 32, 32, 16, ("O",))
ILLEGAL = [
    (FORWARD, "apple7", {"parallel": 12}, "multiples of 8"),
    (FORWARD, "apple7", {"traversal": 0}, "positive"),
    (FORWARD, "apple7", {"head": 20}, "multiples of 8"),
    (FORWARD, "apple7", {"max_head": 65}, "multiples of 8"),
    (FORWARD, "apple7", {"parallel": 24, "simdgroup_rows": 16}, "whole simdgroups"),
    (FORWARD, "apple7", {"parallel": 512}, "threads exceed"),
    (FORWARD, "apple7", {"traversal": 128, "head": 128}, "threadgroup bytes exceed"),
    (FORWARD, "apple7", {"cached": ("O", "K")}, "may be cached"),
    (BACKWARD_QUERY, "apple7", {"cached": ("O",)}, "may be cached"),
    (BACKWARD_KEY_VALUE, "apple7", {"cached": ("Q",)}, "may be cached"),
    (FORWARD, "apple7", {"cached": ("O", "O")}, "named twice"),
    (FORWARD, "apple7", {"max_head": 512}, "would spill"),
    (FORWARD, "apple9", {"max_head": 1024}, "live bytes"),
]


@pytest.mark.parametrize("step, family, changes, complaint", ILLEGAL, ids=lambda value: str(value).replace(" ", "_"))
def test_illegal_rows_are_refused(step, family, changes, complaint):
    prove(FORWARD, FULL, FAMILIES[family], LEGAL)
    with pytest.raises(ValueError, match=complaint):
        prove(step, FULL, FAMILIES[family], replace(LEGAL, **changes))


def test_table_must_increase():
    key = (FORWARD, FULL, "apple7")
    with pytest.raises(ValueError, match="max_head must increase"):
        prove_table({key: (LEGAL, LEGAL)})
    with pytest.raises(ValueError, match="multiples of 8"):
        prove_table({key: (replace(LEGAL, parallel=12),)})


def test_occupancy_is_asked_for_where_registers_are_static():
    for (step, precision, name), rows in TABLE.items():
        for family in (family for family in FAMILIES.values() if family.table == name):
            for row in rows:
                threads = max_threads(step, row, precision, family, row.max_head)
                if not family.register_tiers:
                    assert threads is None
                    continue
                allowed = dict((threads, registers) for registers, threads in family.register_tiers)[threads]
                allowed += EDGE_SPILL if threads == family.register_tiers[-1][1] else 0
                assert threads >= row.threads and register_demand(step, row, precision, row.max_head) <= allowed


def test_paged_accumulators_are_those_not_cached():
    assert TileConfig(64, 32, 32, 16).paged(FORWARD) == ("O",)
    assert TileConfig(64, 32, 32, 16, ("Q", "dQ")).paged(BACKWARD_QUERY) == ()
    assert TileConfig(64, 32, 32, 16, ("V", "dV")).paged(BACKWARD_KEY_VALUE) == ("dK",)
    assert TileConfig(8, 8, 8, 8, simdgroup_rows=1).paged(DELTA) == ()
