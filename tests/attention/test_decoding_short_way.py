"""The short way of calls that decode, from the second call of a signature on: it launches what the long way launches,
and only where the long way needs no rules for transformations."""

import mlx.core as mx
import pytest
from arrays import bits
from cases import Case, expected
from watched import watched

from mlx_flash import attention, use_backend
from mlx_flash import vmap as mapped
from mlx_flash.autodiff import call as calls
from mlx_flash.autodiff.decoding import Decoding
from mlx_flash.backends import backend as backend_of

pytestmark = pytest.mark.simulator

CASES = {  # q, k, v, options
    "one part": ((1, 4, 1, 16), (1, 2, 70, 16), (1, 2, 70, 16), {}),
    "parts": ((2, 4, 1, 16), (2, 2, 600, 16), (2, 2, 600, 16), {"scale": 0.3}),
    "drafts": ((2, 4, 3, 16), (2, 2, 80, 16), (2, 2, 80, 16), {"causal": True}),
    "padded head": ((1, 2, 1, 12), (1, 1, 40, 12), (1, 1, 40, 20), {"scale": -0.5}),
}


def drawn(*shapes):
    keys = mx.random.split(mx.random.key(3), len(shapes))
    return [mx.random.normal(shape, key=key).astype(mx.float16) for shape, key in zip(shapes, keys)]


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken."""
    found, plain = [], Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda *given: found.append(1) or plain(*given))
    calls.clear_cache()
    yield found
    calls.clear_cache()


@pytest.mark.parametrize("name", CASES)
def test_launches_are_those_of_the_long_way(taken, name):
    *shapes, options = CASES[name]
    arrays, given = drawn(*shapes), []
    simulated = backend_of("simulator", "apple9")

    def run(kind, plan, problem, inputs, stream):
        shown = [(key, bits(one) if isinstance(one, mx.array) else one) for key, one in inputs.items()]
        given.append((kind.name, plan, problem, sorted(shown), stream))
        return simulated.run(kind, plan, problem, inputs, stream)

    with watched(simulated, run):
        out = [bits(attention(*arrays, **options)) for _ in range(2)]
    half = len(given) // 2
    assert len(taken) == 1 and given[:half] == given[half:] and out[0] == out[1]
    assert [kind for kind, *_ in given[:half]] == ["decode", "combine"][: 2 if name == "parts" else 1]


def test_gradients_maps_and_compiled_calls_take_the_long_way(taken):
    """A trace begins anew with every call: after many short ones too."""
    case = Case(1, 40, 16, group=2, key_heads=2)
    arrays = case.arrays()
    q, k, v, d_o = (arrays[name] for name in ("q", "k", "v", "d_o"))
    with use_backend("simulator"):
        for _ in range(3):
            out = attention(q, k, v)
        assert len(taken) == 2
        _, (d_q, d_k, d_v) = mx.vjp(attention, [q, k, v], [d_o])
        rows = mapped(attention)(q[None], k[None], v[None])
        assert len(taken) == 2
        again = attention(q, k, v)
    assert len(taken) == 3 and bits(out) == bits(again) == bits(rows[0])
    expected(case, arrays).check(O=out, dQ=d_q, dK=d_k, dV=d_v)


@pytest.mark.parametrize(
    "options",
    [
        {"return_lse": True},
        {"window": (9, 0)},
        {"softcap": 9.0},
        {"mask": "causal"},
        {"sinks": mx.zeros(4, mx.float16)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_take_the_long_way(taken, options):
    arrays = drawn((1, 4, 1, 16), (1, 2, 40, 16), (1, 2, 40, 16))
    with use_backend("simulator"):
        for _ in range(3):
            attention(*arrays, **options)
    assert not taken


def test_values_that_are_keys_and_others(taken):
    """A kernel that loads keys once for both serves no other values."""
    case = Case(1, 40, 16, group=2, key_heads=2)
    arrays = case.arrays()
    q, k, v = (arrays[name] for name in "qkv")
    with use_backend("simulator"):
        for _ in range(2):
            attention(q, k, k)
            expected(case, arrays).check(O=attention(q, k, v))


def test_other_numbers_of_queries(taken):
    with use_backend("simulator"):
        for queries in (1, 3, 1, 3, 2):
            case = Case(queries, 40, 16, group=2, key_heads=2)
            arrays = case.arrays()
            expected(case, arrays).check(O=attention(*(arrays[name] for name in "qkv")))
    assert len(taken) == 2


@pytest.mark.parametrize("wrong", ["dtype", "heads", "width", "batch", "length", "rank", "type"])
def test_wrong_arrays_after_right_ones(taken, wrong):
    q, k, v = drawn((2, 4, 1, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    bad = {
        "dtype": (q, k.astype(mx.float32), v),
        "heads": (q, k, v[:, :1]),
        "width": (q, k[..., :8], v),
        "batch": (q, k[:1], v[:1]),
        "length": (q, k, v[:, :, :39]),
        "rank": (q[0], k[0], v[0]),
        "type": (q, k, [[0.0]]),
    }[wrong]
    with use_backend("simulator"):
        for _ in range(2):
            attention(q, k, v)
            with pytest.raises(ValueError, match="expected"):
                attention(*bad)


def test_nothing_to_attend_to(taken):
    q, k, v = drawn((1, 4, 1, 16), (1, 2, 40, 16), (1, 2, 40, 16))
    with use_backend("simulator"):
        for _ in range(3):
            attention(q, k, v)
            assert not attention(q, k[:, :, :0], v[:, :, :0]).any()
            assert attention(q[:0], k[:0], v[:0]).shape == (0, 4, 1, 16)
            assert attention(q[:, :, :0], k, v).shape == (1, 4, 0, 16)
