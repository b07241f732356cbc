"""Calls that repeat an earlier one's graph, through mx.compile: as right as those that build their own.

On the reference backend, told to replay as "cuda" does; the operations of a trace are counted where it begins.
"""

import threading

import bounds
import mlx.core as mx
import pytest
from arrays import bits
from cases import Case, expected
from watched import chosen, kinds, watched

from mlx_flash import BlockMask, UnsupportedProblem, attention, export_function, vmap
from mlx_flash.autodiff import call as calls
from mlx_flash.backends import backend, current_backend

CASE = Case(9, 13, 16, causal=True, group=2, key_heads=2, batch=2)


@pytest.fixture
def ran(monkeypatch):
    """The steps that were built, by name, on a backend that replays."""
    calls.clear_cache()
    monkeypatch.setattr(calls, "REPLAYED_AFTER", 0)
    with watched(backend("reference"), replays=True) as found:
        yield found
    calls.clear_cache()


def drawn(seed: int = 0) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(seed), 3)
    arrays = CASE.arrays()
    found = [mx.random.normal(arrays[name].shape, key=key) for name, key in zip("qkv", keys)]
    mx.eval(found)
    return found


def check(arrays):
    named = dict(zip("qkv", arrays))
    expected(CASE, CASE.arrays() | named).check(O=attention(*arrays, causal=True, scale=CASE.scale))


def close(got, want):
    """Compiling fuses elementwise operations, which may round differently."""
    bounds.check("O", got, bounds.float64(want), "replayed", "float32")


def test_one_graph_for_each_signature(ran):
    for seed in range(4):
        check(drawn(seed))
    assert kinds(ran) == ["forward"]
    attention(*drawn(), causal=True, scale=CASE.scale, return_lse=True)
    attention(*(array[:, :, :5] for array in drawn()), causal=True, scale=CASE.scale)
    assert kinds(ran) == ["forward"] * 3


def test_only_lengths_that_come_again_are_replayed(ran, monkeypatch):
    """A graph is kept for the lengths of training, none for each length of a growing cache."""
    monkeypatch.setattr(calls, "REPLAYED_AFTER", 3)
    q, k, v = drawn()
    for keys in range(1, 14):
        attention(q, k[:, :, :keys], v[:, :, :keys])
    assert kinds(ran) == ["forward"] * 13
    for _ in range(9):
        attention(q, k, v)
    assert len(ran) == 13 + 2 + 1, "twice more as it is, once traced, then replayed"


def test_a_replay_takes_the_arguments_of_its_own_call(ran):
    """Masks, sinks, slopes, segments, blocks and the key of dropout: new numbers give new results."""
    q, k, v = drawn()
    draw = [mx.random.normal((8, 4, 9, 13), key=mx.random.key(n)) for n in range(2)]
    ids = [(mx.array([0] * n + [1] * (9 - n)), mx.array([0] * n + [1] * (13 - n))) for n in (3, 5)]
    options = {
        "mask": [array[:2] > 0 for array in draw],
        "sinks": [array[0, :, 0, 0] for array in draw],
        "alibi_slopes": [array[1, :, 0, 0] for array in draw],
        "segments": ids,
        "key": [mx.random.key(n) for n in range(2)],
    }
    for name, values in options.items():
        given = [{name: value} | ({"dropout": 0.5} if name == "key" else {}) for value in values]
        first, second, again = (bits(attention(q, k, v, **given[n])) for n in (0, 1, 0))
        assert first == again != second, name
    masks = [BlockMask.from_array(array[0] > 0, block=32) for array in draw]
    first, second, again = (bits(attention(q, k, v, mask=masks[n])) for n in (0, 1, 0))
    assert first == again != second
    assert len(ran) <= 2 * len(options) + 3


def test_transformations_after_a_replay(ran):
    """mx.grad, mx.vmap, mx.compile and mx.jvp do what they do without: after a replay too."""
    q, k, v = drawn()

    def call(q):
        return attention(q, k, v, causal=True, scale=CASE.scale)

    for _ in range(2):
        call(q)
    built = len(ran)
    gradient = mx.grad(lambda q: mx.square(call(q)).sum())(q)
    assert kinds(ran[built:]) == ["forward", "delta", "backward_query", "backward_key_value"]
    compiled = mx.compile(lambda q: mx.grad(lambda q: mx.square(call(q)).sum())(q))(q)
    close(compiled, gradient)
    mapped = vmap(call)(mx.stack([q, 2 * q]))
    for one, other in zip(mapped, (q, 2 * q)):
        close(one, call(other))
    with pytest.raises(UnsupportedProblem, match="jvp"):
        mx.jvp(call, [q], [q])
    check(drawn(5))


def test_a_map_over_other_arrays(ran):
    """Inside mx.vmap a call whose arrays are not mapped is traced all the same, and replayed again afterwards."""
    q, k, v = drawn()
    want = attention(q, k, v)
    mapped = vmap(lambda x: x + attention(q, k, v))(mx.zeros((3, 1)))
    close(mapped[2], want)
    assert bits(attention(q, k, v)) == bits(attention(q, k, v))


def test_threads_and_streams_that_did_not_trace(ran):
    arrays = drawn()
    check(arrays)
    failures = []

    def elsewhere():
        with chosen(replaying):
            try:
                check(arrays)
            except Exception as error:
                failures.append(error)

    replaying = current_backend()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failures == [] and kinds(ran) == ["forward"] * 2
    with mx.stream(mx.new_stream(mx.default_device())):
        check(arrays)
    assert kinds(ran) == ["forward"] * 3
    check(arrays)
    assert kinds(ran) == ["forward"] * 3


def test_a_trace_that_failed(monkeypatch):
    """Is not replayed: the next call tries anew, and says the same until it succeeds."""
    plain, works = backend("reference"), []

    def run(kind, plan, problem, inputs, stream):
        if not works:
            raise UnsupportedProblem("not today")
        return plain.run(kind, plan, problem, inputs, stream)

    calls.clear_cache()
    monkeypatch.setattr(calls, "REPLAYED_AFTER", 0)
    with watched(plain, run, replays=True):
        for _ in range(3):
            with pytest.raises(UnsupportedProblem, match="not today"):
                attention(*drawn())
        works.append(True)
        check(drawn(3))
        check(drawn(4))
    calls.clear_cache()


def test_exports(ran, tmp_path):
    """An export after a replay holds the operations, as one without."""
    q, k, v = drawn()
    want, path = attention(q, k, v), str(tmp_path / "attention.mlxfn")
    export_function(path, lambda q: attention(q, k, v), q)
    (got,) = mx.import_function(path)(q)
    close(got, want)
