"""Context parallelism: several ranks on loopback give what one process gives, send what the formulas say, and fail
together."""

import tempfile
import time

import bounds
import distributed_work
import mlx.core as mx
import numpy as np
import pytest
from machines import SIMULATED
from ranks import RankFailed, finish, on_ranks, start

from mlx_flash import attention, distributed
from mlx_flash.distributed.collectives import DESCRIPTION_BYTES
from mlx_flash.distributed.cost import bytes_sent, chosen_method, key_heads_at_once
from mlx_flash.problem.problem import problem_of

pytestmark = pytest.mark.process

SHAPE = {"batch": 1, "heads": 4, "key_heads": 2, "rows": 256, "width": 16}
DRAW = np.random.default_rng(0)
SINKS, SLOPES = DRAW.standard_normal(4).astype(np.float32), np.array([0.5, 0.1, 0.02, 0.3], np.float32)
CASES = {  # options, how the sequence is shared
    "plain": ({}, {}),
    "causal": ({"causal": True}, {}),
    "contiguous": ({"causal": True}, {"layout": "contiguous"}),
    "one head at a time": ({"causal": True}, {"heads": 1}),
    "window": ({"window": (40, 17)}, {}),
    "causal window": ({"causal": True, "window": (100, 0)}, {"layout": "contiguous"}),
    "alibi": ({"causal": True, "alibi_slopes": SLOPES}, {"heads": 1}),
    "softcap and sinks": ({"causal": True, "softcap": 3.0, "sinks": SINKS}, {}),
    "segments": ({"causal": True, "segments": np.sort(DRAW.integers(0, 4, (1, 256))).astype(np.int32)}, {}),
    "additive mask": ({"mask": DRAW.standard_normal((1, 4, 256, 256)).astype(np.float32)}, {"heads": 1}),
    "mask of the keys": ({"mask": DRAW.standard_normal((256,)).astype(np.float32)}, {}),
    "bool mask": ({"mask": DRAW.random((256, 256)) < 0.7}, {"layout": "contiguous"}),
}
SUMMED = ("dsinks", "dmask")  # over ranks, in another order than one process has


def shared(ranks: int, name: str, function: str = "shared", **arguments) -> tuple[dict, list[dict]]:
    """(one process's results, each rank's) of a case."""
    options, sharing = CASES[name]
    given = {"shape": SHAPE, "options": options, **arguments}
    shared_only = {"sharing": sharing | given.pop("sharing", {}), "wrap": given.pop("wrap", "")}
    want = distributed_work.whole(**given)
    return want, on_ranks(ranks, "distributed_work", function, **given, **shared_only)


def check_bits(want: dict, found: list[dict], label: str):
    for rank, got in enumerate(found):
        for tensor, array in want.items():
            if tensor in SUMMED:
                title, terms = tensor.replace("dmask", "dM"), float(SHAPE["rows"])
                bounds.check(title, got[tensor], array.astype(np.float64), label, "float32", terms=terms)
            else:
                assert np.array_equal(got[tensor], array), (label, rank, tensor)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_bits_of_one_process(name):
    check_bits(*shared(2, name), name)


@pytest.mark.parametrize("name", [pytest.param("causal", marks=pytest.mark.slow), "window", "alibi"])
def test_four_ranks_have_the_bits_of_one_process(name):
    check_bits(*shared(4, name), name)


@pytest.mark.parametrize("wrap", ["compile", "checkpoint"])
def test_in_transformations(wrap):
    check_bits(*shared(2, "causal", wrap=wrap), wrap)


@pytest.mark.parametrize("wrap", ["", "compile"])
def test_waiting_on_the_host_changes_no_bit(wrap):
    check_bits(*shared(2, "one head at a time", "shared_awaited", wrap=wrap), wrap)


@pytest.mark.parametrize("backend", SIMULATED, ids=str)
@pytest.mark.parametrize("name", ["causal", "alibi"])
def test_kernels_have_the_bits_of_one_process(name, backend):
    """Pieces of 128 rows and more are multiples of every block of the tables for this head dimension."""
    layout = "contiguous" if name == "causal" else "zigzag"
    shape = SHAPE | {"rows": 512, "heads": 2, "key_heads": 1}
    options = {option: value[:2] if option == "alibi_slopes" else value for option, value in CASES[name][0].items()}
    given = {"shape": shape, "options": options, "backend": backend}
    want = distributed_work.whole(**given)
    check_bits(want, on_ranks(2, "distributed_work", "shared", limit=400, **given, sharing={"layout": layout}), name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reduce_sums_in_float32(dtype):
    """O, LSE and dQ to the bit; dK and dV are sums over ranks. In 16 bits they are rounded once, as one process's."""
    want, found = shared(2, "causal", dtype=dtype, sharing={"method": "reduce"})
    for got in found:
        for tensor in ("O", "LSE", "dq"):
            assert np.array_equal(got[tensor], want[tensor]), tensor
        for tensor in ("dk", "dv"):
            size = float(np.abs(want[tensor]).max())
            if dtype == "float32":
                bounds.check("dK", got[tensor], want[tensor].astype(np.float64), tensor, dtype, terms=10 * size)
            else:
                assert np.abs(got[tensor] - want[tensor]).max() <= bounds.ulp(size, dtype), tensor


@pytest.mark.parametrize("mutant", ["shared_without_positions", "shared_by_mlx"])
def test_mistakes_are_noticed(mutant):
    """Rows whose positions are lost, and MLX's own gradient of all_gather, change what the checks above compare."""
    want, found = shared(2, "alibi", mutant)
    wrong = {tensor for got in found for tensor in want if not np.array_equal(got[tensor], want[tensor])}
    assert wrong >= {"dk", "dv"} if mutant == "shared_by_mlx" else wrong >= {"O", "dq"}


@pytest.mark.parametrize("sharing", [{}, {"method": "reduce"}, {"heads": 1}], ids=str)
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_bytes_are_those_of_the_formulas(ranks, sharing):
    shape, dtype = {"batch": 1, "heads": 8, "key_heads": 2, "rows": 512, "width": 32}, "bfloat16"
    found = on_ranks(ranks, "distributed_work", "counted", shape=shape, sharing=sharing, dtype=dtype)
    rows = shape["rows"] // ranks
    q, k = mx.zeros((1, 8, rows, 32), mx.bfloat16), mx.zeros((1, 2, rows, 32), mx.bfloat16)
    sent = bytes_sent(problem_of(q, k, k), ranks, sharing.get("method", "exact"))
    agreement = (ranks - 1) * DESCRIPTION_BYTES  # of the arguments, once a call
    for forward, both in found:
        # A peer that is ahead may have sent its description before this rank began to count.
        assert abs(forward - agreement - sent["forward"]) <= bounds.SENT * sent["forward"] + agreement
        assert abs(both - agreement - sum(sent.values())) <= bounds.SENT * sum(sent.values()) + agreement


def test_the_rule_of_the_methods():
    """Formulas of exact and reduce cross where many query heads share a key head."""

    def sharing(group: int, heads: int = 8):
        q, k = (mx.zeros((1, count, 1024, 128), mx.bfloat16) for count in (heads * group, heads))
        return problem_of(q, k, k)

    assert [chosen_method(sharing(group), 4, "auto") for group in (1, 2, 8)] == ["exact", "exact", "reduce"]
    assert chosen_method(sharing(8), 4, "exact") == "exact"
    assert key_heads_at_once(sharing(1, 16), 2) == (4, 8) and key_heads_at_once(sharing(1), 64) == (1, 1)


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_shards(layout):
    """unshard undoes shard; the gradient of the ranks' summed losses reaches every rank whole."""
    found = on_ranks(2, "distributed_work", "moved", rows=12, layout=layout)
    for got in found:
        assert np.array_equal(got["whole"][0], np.arange(12))
        assert np.array_equal(got["gradient"][0], np.arange(1, 13) * (1 + 2))
        own = np.concatenate([np.arange(first, first + length) for first, length in got["positions"]])
        assert np.array_equal(got["own"][0], own)
    assert [got["positions"] for got in found] == (
        [[(0, 3), (9, 3)], [(3, 3), (6, 3)]] if layout == "zigzag" else [[(0, 6)], [(6, 6)]]
    )


@pytest.mark.parametrize("caches", [[20, 33], [0, 40], [300, 1]], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "sinks": SINKS, "scale": 0.7}], ids=["plain", "sinks"])
def test_decode_over_a_shared_cache(caches, options):
    found = on_ranks(2, "distributed_work", "decoded", caches=caches, options=options)
    for got, want in found:
        for name, one, other in zip(("O", "LSE"), got, want):
            bounds.check(name, one, other.astype(np.float64), str(caches), "float32")
        assert all(np.array_equal(one, same) for one, same in zip(got, found[0][0]))


DIFFERENT = {
    "rows": [{}, {"rows": 250}],
    "options": [{"causal": True}, {"window": (3, 0)}],
    "layout": [{"layout": "zigzag"}, {"layout": "contiguous"}],
    "odd rows on one rank": [{}, {"rows": 255}],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_disagree_find_out_together(name):
    found = on_ranks(2, "distributed_work", "refused", limit=30, shape=SHAPE, per_rank=DIFFERENT[name])
    for message in found:
        assert (
            "[mlx_flash.distributed.attention] arguments: expected the same shapes and options on every rank" in message
        )
        assert "rank 0: q float32[1, 4, 256, 16]" in message and "rank 1:" in message


def test_a_lost_peer_is_an_error_soon():
    with tempfile.TemporaryDirectory() as folder:
        processes = start(2, "distributed_work", "waits_for_ever", folder, shape=SHAPE)
        processes[1].join(60)
        begin = time.monotonic()
        with pytest.raises(RankFailed, match="RuntimeError: .*a peer was lost"):
            finish(processes, folder, 60)
        assert time.monotonic() - begin < 5


def test_one_rank_is_plain_attention(reference):
    q, k = (mx.random.normal((1, heads, 21, 16), key=mx.random.key(heads)) for heads in (4, 2))
    got = distributed.attention(q, k, k, causal=True, return_lse=True, layout="contiguous")
    for one, other in zip(got, attention(q, k, k, causal=True, return_lse=True)):
        assert mx.array_equal(one, other)
    assert mx.array_equal(distributed.shard(q, 2, layout="contiguous"), q) and distributed.unshard(q, 1) is q
    assert list(distributed.positions(20)) == [(0, 20)]
    for one, other in zip(distributed.decode(q, k, k), attention(q, k, k, return_lse=True)):
        assert mx.array_equal(one, other)


Q = mx.zeros((1, 2, 6, 8))
WRONG = {
    "layout": (lambda: distributed.attention(Q, Q, Q, layout="striped"), 'attention] layout: expected "zigzag" or'),
    "method": (lambda: distributed.attention(Q, Q, Q, method="ring"), 'attention] method: expected "exact", "reduce"'),
    "heads": (lambda: distributed.attention(Q, Q, Q, heads=0), "attention] heads: expected a whole number"),
    "group": (lambda: distributed.attention(Q, Q, Q, group=2), "attention] group: expected an mx.distributed.Group"),
    "length": (
        lambda: distributed.shard(mx.zeros((1, 7))),
        "shard] sequence: expected a length that is a multiple of 2",
    ),
    "axis": (lambda: distributed.shard(mx.zeros((1, 8)), 2), "shard] axis: expected an axis of shape (1, 8)"),
    "positions": (lambda: distributed.positions(7), "positions] rows: expected a multiple of 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(reference, name):
    call, text = WRONG[name]
    with pytest.raises(ValueError) as raised:
        call()
    assert f"[mlx_flash.distributed.{text}" in str(raised.value)
