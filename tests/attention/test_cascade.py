"""A prefix that a batch shares, and packed rows from cumulative lengths."""

import bounds
import mlx.core as mx
import numpy as np
import pools
import pytest
from arrays import bits
from cases import Case
from machines import each_simulated_family
from refusals import refused_call as refused

from mlx_flash import attention, use_backend
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup
from mlx_flash.problem.kinds import DECODE
from mlx_flash.sequences import cascade, cumulative_segments, segments
from mlx_flash.simulator import mode, profile

CASE = Case(2, 70, 16, group=2, key_heads=2, batch=3)


def operands(case: Case = CASE, prefix: int = 130):
    """q, k and v of a prefix of one entry, and of the rest."""
    arrays = case.arrays()
    first = Case(1, prefix, case.head_dim, case.dtype, key_heads=case.key_heads).arrays()
    return arrays["q"], {name: first[name] for name in "kv"}, {name: arrays[name] for name in "kv"}


def whole(q, prefix, rest, **options):
    keys = {
        name: mx.concatenate([mx.broadcast_to(prefix[name], (q.shape[0], *prefix[name].shape[1:])), rest[name]], 2)
        for name in "kv"
    }
    return attention(q, keys["k"], keys["v"], **options)


@pytest.mark.parametrize("queries", [2, 9])
def test_a_prefix_and_the_rest_are_the_whole(backend, queries):
    q, prefix, rest = operands(Case(queries, 70, 16, group=2, key_heads=2, batch=3))
    sinks = mx.array([0.5, -1.0, 2.0, 0.0])
    want = whole(q, prefix, rest, causal=True, sinks=sinks, scale=0.3, return_lse=True)
    got = cascade(q, prefix, rest | {"causal": True}, sinks=sinks, scale=0.3, return_lse=True)
    bounds.check("O", got[0], bounds.float64(want[0]), "cascade", "float32", terms=4.0)
    bounds.check("LSE", got[1], bounds.float64(want[1]), "cascade", "float32", terms=16.0)


def test_a_prefix_in_pages_and_rows_of_their_own_lengths(reference):
    q, prefix, rest = operands()
    lengths, shared = mx.array([70, 3, 0]), pools.table_of([130], 64)
    want = [whole(q[b : b + 1], prefix, {n: rest[n][b : b + 1, :, : int(lengths[b])] for n in "kv"}) for b in range(3)]
    paged = {name: pools.pool_of(prefix[name], shared, [130], 64) for name in "kv"}
    paged |= {"pages": shared, "lengths": mx.array([130])}
    got = cascade(q, paged, rest | {"lengths": lengths})
    bounds.check("O", got, bounds.float64(mx.concatenate(want)), "cascade", "float32", terms=4.0)


def test_gradients(reference):
    q, prefix, rest = operands()
    want = mx.grad(lambda q, k: whole(q, prefix | {"k": k}, rest).sum(), (0, 1))(q, prefix["k"])
    got = mx.grad(lambda q, k: cascade(q, prefix | {"k": k}, rest).sum(), (0, 1))(q, prefix["k"])
    for name, one, other in zip(("dQ", "dK"), got, want):
        bounds.check(name, one, bounds.float64(other), "cascade", "float32", terms=30.0)


@each_simulated_family
@pytest.mark.parametrize("batch", [4, 32])
def test_a_prefix_is_read_once_for_all_entries(family, batch):
    """The rows of a threadgroup share the prefix: a batch of four single queries fills half of one."""
    q, prefix, rest = operands(Case(1, 9, 16, "float16", group=2, key_heads=2, batch=batch))
    with use_backend("simulator", family), mode("check"), profile() as counted:
        mx.eval(cascade(q, prefix, rest))
    loaded = [one["buffers"]["K"]["loaded"] for one in counted.launches if "K" in one["buffers"]]
    times = -(-2 * batch // lookup(DECODE, "float16", FAMILIES[family], 16).parallel)
    assert sorted(loaded) == sorted([times * prefix["k"].nbytes, rest["k"].nbytes])


def test_bad_parts(reference):
    q, prefix, rest = operands()
    refused(lambda: cascade(q, rest, rest), ["prefix", "one batch entry", "(3, 2, 70, 16)"])
    refused(lambda: cascade(q, (1, 2), rest), ["prefix", "a dict", "k"])
    refused(lambda: cascade(q, prefix, {"v": 1}), ["rest", "a dict"])
    refused(lambda: cascade(q, prefix, rest, causal=True), ["causal", "scale, stream", "rest"])


LENGTHS = {"queries": [5, 0, 12, 1], "keys": [9, 4, 12, 0]}


@pytest.mark.parametrize("form", [mx.array, np.array, list])
def test_ids_from_cumulative_lengths(form):
    offsets = [form(np.cumsum([0, *one]).tolist()) for one in LENGTHS.values()]
    got = cumulative_segments(*offsets)
    for ids, lengths in zip(got, LENGTHS.values()):
        assert ids.dtype == mx.int32 and bits(ids) == bits(segments(lengths)[0])
    one, same = cumulative_segments(offsets[0])
    assert one is same and bits(one) == bits(got[0])
    assert cumulative_segments(offsets[0], q_length=21)[0].tolist() == got[0].tolist() + [-1] * 3


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": (4, 0)}], ids=str)
def test_packed_rows_are_sequences_alone(backend, options):
    """The layout is that of flash-attn's varlen functions: [total, heads, D], each sequence aligned to its own end."""
    offsets = [np.cumsum([0, *one]) for one in LENGTHS.values()]
    q, k, v = (
        mx.random.normal((int(ends[-1]), 2, 16), key=mx.random.key(n)) for n, ends in enumerate((*offsets, offsets[1]))
    )
    ids = cumulative_segments(*(mx.array(one) for one in offsets))
    out = attention(*(one.swapaxes(0, 1)[None] for one in (q, k, v)), segments=ids, **options)[0].swapaxes(0, 1)
    for n in range(len(LENGTHS["keys"])):
        rows, columns = (slice(int(ends[n]), int(ends[n + 1])) for ends in offsets)
        if rows.start < rows.stop:
            one = [part.swapaxes(0, 1)[None] for part in (q[rows], k[columns], v[columns])]
            want = attention(*one, **options)[0].swapaxes(0, 1)
            bounds.check("O", out[rows], bounds.float64(want), f"sequence {n}", "float32", terms=4.0)


def test_offsets_inside_compile(reference):
    offsets = mx.array([0, 5, 17])
    want = cumulative_segments(offsets)[0]
    assert bits(mx.compile(lambda one: cumulative_segments(one, q_length=17)[0])(offsets)) == bits(want)
    refused(lambda: mx.compile(lambda one: cumulative_segments(one)[0])(offsets), ["q_length", "inside mx.compile"])


def test_bad_offsets():
    good = mx.array([0, 5])
    for wrong in (mx.array([0.0, 5.0]), mx.array([0]), mx.array([[0, 5]]), 5, "05"):
        refused(lambda wrong=wrong: cumulative_segments(wrong), ["q_offsets", "integers [sequences + 1]"])
    refused(lambda: cumulative_segments(good, mx.array([0, 2, 5])), ["k_offsets", "2 numbers", "3"])
    for wrong in ([1, 3], [0, 3, 2], [-1, 5], mx.array([2, 5])):
        refused(lambda wrong=wrong: cumulative_segments(wrong), ["q_offsets", "begin with 0 and never fall"])
        refused(lambda wrong=wrong: cumulative_segments(wrong, q_length=9), ["q_offsets", "begin with 0"])
    refused(lambda: cumulative_segments(good, q_length=-1), ["q_length", "at least 0", "-1"])
