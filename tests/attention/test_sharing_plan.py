"""The plan of a sequence that machines share: its formulas against counted pairs, bytes and memory, and its errors."""

from pathlib import Path

import bounds
import mlx.core as mx
import numpy as np
import pytest
from ranks import on_ranks

from mlx_flash import distributed, explain
from mlx_flash.distributed.cost import key_heads_at_once, own_bytes, transient_bytes
from mlx_flash.distributed.layout import layout_of
from mlx_flash.distributed.plan import planned, visible_pairs
from mlx_flash.problem.problem import problem_of

SIZES = {"head_dim": 128, "heads": 32, "key_heads": 8, "dtype": "bfloat16", "causal": True, "backend": "reference"}


def problem(rows: int, heads: int = 4, key_heads: int = 2, width: int = 16, dtype=mx.float32, **options):
    q, k = mx.zeros((1, heads, rows, width), dtype), mx.zeros((1, key_heads, rows, width), dtype)
    return problem_of(q, k, k, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, (3, 0), (0, 5), (4, 7), (None, 2), (6, None), (100, 100)])
def test_visible_pairs(causal, window):
    rows = 13
    distance = np.arange(rows)[:, None] - np.arange(rows)  # of a key to the left of its query
    left, right = window or (None, None)
    seen = (distance <= (rows if left is None else left)) & (-distance <= (rows if right is None else right))
    seen &= (distance >= 0) | (not causal)
    assert visible_pairs(problem(rows, causal=causal, window=window)) == seen.sum()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_imbalance_is_the_most_work_of_a_rank(layout, ranks):
    """Zigzag: at most 1.01 of the mean in tiles of 64 x 64 at 8192 rows."""
    rows, tile = 8192, 64
    work = []
    for rank in range(ranks):
        pieces = layout_of(layout, ranks).pieces(rank, rows // ranks)
        work.append(sum(sum(-(-(row + tile) // tile) for row in range(first, first + n, tile)) for first, n in pieces))
    counted = max(work) / (sum(work) / ranks)
    plan = planned(problem(rows, causal=True), ranks, layout=layout)
    planned_most = plan.forward.computing * ranks / plan.forward.one_rank
    assert abs(planned_most - counted) <= bounds.IMBALANCE * counted


@pytest.mark.parametrize("speedup, field", [(1, "pays_from"), (0.9 * 4, "efficient_from")])
def test_lengths_from_which_it_pays(speedup, field):
    """Below that length a call is slower than promised, above it faster."""
    length = getattr(explain(length=65536, group_size=4, **SIZES).sharing, field)
    for rows, faster in ((length // 8 * 8 - 64, False), (length // 8 * 8 + 64, True)):
        training = explain(length=rows, group_size=4, **SIZES).sharing.training
        assert (training.one_rank / training.shared > speedup) is faster


def test_a_slow_link_never_pays_soon():
    fast, slow = (explain(length=65536, group_size=4, link=link, **SIZES).sharing for link in ("nvlink", 1e6))
    assert fast.pays_from < 4096 and slow.pays_from > 10**6
    assert slow.training.sending == (slow.forward_sent + slow.backward_sent) / 1e6
    windowed = explain(length=65536, group_size=4, window=(100, 0), **SIZES).sharing
    assert windowed.pays_from is None  # its work grows with the length, as what is sent does


@pytest.mark.process
@pytest.mark.parametrize("key_heads, heads", [(8, 1), (2, 1), (8, 8)])
def test_memory_is_bounded_by_the_plan(key_heads, heads):
    shape = {"batch": 1, "heads": 8, "key_heads": key_heads, "rows": 2048, "width": 64}
    local = problem(1024, heads=8, key_heads=key_heads, width=64)
    at_once = key_heads_at_once(local, 2, "exact", heads)
    most = own_bytes(local) + transient_bytes(local, 2, at_once, "exact")
    for pair in on_ranks(2, "distributed_work", "peak_memory", shape=shape, sharing={"heads": heads}):
        assert 0.6 * most <= sum(pair) <= most


@pytest.mark.process
@pytest.mark.parametrize(
    "heads, gradients, most", [(None, False, 1.0), (None, True, 1.0), (2, True, 0.7), (8, True, 1.3)], ids=str
)
def test_a_rank_of_two_needs_less_memory_than_one_machine(heads, gradients, most):
    """32 heads over 8. One machine has O, its statistics and three gradients beside its operands."""
    shape = {"batch": 1, "heads": 32, "key_heads": 8, "rows": 512, "width": 64}
    alone = 4 * shape["rows"] * 32 * (64 + 2) + gradients * 4 * shape["rows"] * (32 * (64 + 1) + 2 * 8 * 64)
    given = {"shape": shape, "sharing": {"heads": heads}, "gradients": gradients, "runs": 60, "enough": most * alone}
    for _, beyond in on_ranks(2, "distributed_work", "peak_memory", **given):
        assert 0.4 * alone < beyond <= most * alone, beyond / alone


@pytest.mark.process
def test_one_head_at_a_time_bounds_memory():
    """Four layers: from two ranks to four, with shards of the same size, the peak grows at most 1.3 times (both heads
    at once: 1.54). More heads would hide what is gathered behind how far MLX allocates ahead, by one layer or two."""
    shape = {"batch": 1, "heads": 2, "key_heads": 2, "width": 64}
    two, four = (
        max(map(sum, on_ranks(ranks, "distributed_work", "peak_memory", shape=shape | {"rows": 1024 * ranks}, **given)))
        for ranks, given in ((n, {"sharing": {"heads": 1}, "layers": 4, "waits": False, "runs": 3}) for n in (2, 4))
    )
    assert two < four <= 1.3 * two


WRONG = {
    "group_size": ({"group_size": 0}, "group_size: expected a whole number of ranks"),
    "link": ({"group_size": 2, "link": "string"}, "link: expected one of thunderbolt5, ethernet10, nvlink, or bytes"),
    "rate": ({"group_size": 2, "link": -1.0}, "link: expected a positive number, got -1.0"),
    "flops": ({"group_size": 2, "flops": float("nan")}, "flops: expected a positive number"),
    "layout": ({"group_size": 2, "layout": "striped"}, 'layout: expected "zigzag" or "contiguous"'),
    "method": ({"group_size": 2, "method": "ring"}, 'method: expected "exact", "reduce" or "auto"'),
    "length": ({"group_size": 3}, "length: expected as many keys as queries, a multiple of 6, got 4096 queries"),
    "keys": ({"group_size": 2, "key_length": 8192}, "length: expected as many keys as queries"),
    "alone": ({"link": "nvlink"}, "group_size: expected with link, got none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    arguments, text = WRONG[name]
    with pytest.raises(ValueError) as raised:
        explain(length=4096, **SIZES, **arguments)
    assert text in str(raised.value)


def test_explain_prints_it():
    text = str(explain(length=131072, group_size=4, link="ethernet10", **SIZES))
    assert "4 ranks, zigzag, exact, key heads at once: 4 forward, 2 backward" in text and "1.17 GB/s" in text
    assert "shared by" not in str(explain(length=131072, **SIZES))


def test_the_readme_has_the_plan():
    """Every cell of the folder's table, up to a million rows and 64 ranks."""
    lines = (Path(distributed.__file__).parent / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    (head,) = (row for row in rows if row[0] == "rows")
    ranks = [int(cell.removeprefix("P = ")) for cell in head[2:]]
    cells = {row[0]: row[1:] for row in rows if row[0].rstrip("kM").isdigit()}
    assert ranks == [2, 4, 8, 16, 64] and list(cells) == ["8k", "32k", "128k", "512k", "1M"]
    for name, (alone, *told) in cells.items():
        length = int(name[:-1]) * (2**20 if name.endswith("M") else 2**10)
        for count, cell in zip(ranks, told):
            plan = explain(length=length, group_size=count, **SIZES).sharing
            assert alone == f"{plan.training.one_rank:.3g} s"
            held = (plan.own_bytes + plan.transient_bytes) / 2**30
            assert cell == f"{plan.training.one_rank / plan.training.shared:.1f}x, {held:.1f}", (name, count)
