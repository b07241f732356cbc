"""The numbers under patch() are those of mlx_flash's kernels, not the built-in's: with kernels that give -O, a served
call gives -O, and a call that is not served gives the built-in's O."""

import bounds
import mlx.core as mx
import pytest
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from watched import watched

import mlx_flash
from mlx_flash.backends import backend
from mlx_flash.problem.kinds import FORWARD

ROWS, KEYS = 12, 64
Q = mx.random.normal((2, 4, ROWS, 64), key=mx.random.key(0))
K, V = (mx.random.normal((2, 2, KEYS, 64), key=mx.random.key(seed)) for seed in (1, 2))
SEEN = mx.random.uniform(shape=(2, 1, ROWS, KEYS), key=mx.random.key(3)) < 0.7
SCALE = 0.125


def built_in(q=Q, k=K, v=V, **options):
    return mx.fast.scaled_dot_product_attention(q, k, v, **{"scale": SCALE} | options)


def of_cache(cache, queries: int, mask=None):
    """mlx-lm's attention over a cache with all keys, for the last `queries` queries."""
    keys, values = cache.update_and_fetch(K, V)
    return base.scaled_dot_product_attention(Q[:, :, :queries], keys, values, cache=cache, scale=SCALE, mask=mask)


SERVED = {
    "prefill": lambda: built_in(),
    "causal": lambda: built_in(mask="causal"),
    "bool": lambda: built_in(mask=SEEN),
    "additive": lambda: built_in(mask=mx.where(SEEN, 0.5, -mx.inf)),
    "sinks": lambda: built_in(sinks=mx.array([0.5, 1, -1, 2])),
    "one-query": lambda: built_in(Q[:, :, :1]),
    "one-query-masked": lambda: built_in(Q[:, :, :1], mask=SEEN[:, :, :1]),
    "few-queries": lambda: built_in(Q[:, :, :5], mask="causal"),
    "half": lambda: built_in(*(array.astype(mx.float16) for array in (Q, K, V))),
    "one-head": lambda: built_in(Q[:, :1], K[:, :1], V[:, :1]),
    "view-of-a-cache": lambda: built_in(k=K[:, :, 9:50], v=V[:, :, 9:50]),
    "cache": lambda: of_cache(KVCache(), ROWS, "causal"),
    "cache-one-query": lambda: of_cache(KVCache(), 1),
    "quantized-cache": lambda: of_cache(QuantizedKVCache(), ROWS),
    "quantized-cache-one-query": lambda: of_cache(QuantizedKVCache(), 1),
    "quantized-cache-causal": lambda: of_cache(QuantizedKVCache(), ROWS, "causal"),
    "stream": lambda: built_in(stream=mx.cpu),
    "integers": lambda: built_in(mask=SEEN.astype(mx.int32)),
    "mixed-types": lambda: built_in(k=K.astype(mx.float16)),
    "width-of-values": lambda: built_in(v=V[..., :40]),
    "odd-width": lambda: built_in(*(array[..., :36] for array in (Q, K, V))),
    "more-queries-than-keys": lambda: built_in(k=K[:, :, :9], v=V[:, :, :9]),
    "bfloat": lambda: built_in(*(array.astype(mx.bfloat16) for array in (Q, K, V))),
    "negative-scale": lambda: built_in(scale=-SCALE),
    "one-entry": lambda: built_in(*(array[:1] for array in (Q, K, V))),
    "mapped": lambda: mx.vmap(lambda q: built_in(q))(mx.stack([Q, 2 * Q])),
    "gradient": lambda: mx.grad(lambda q: (built_in(q, mask="causal") * V[:, :1, :ROWS]).sum())(Q),
}


def negated(plain):
    """The forward kernel's O with the other sign; every other kernel as it is."""

    def run(kind, *rest):
        outputs = plain.run(kind, *rest)
        return [-outputs[0], *outputs[1:]] if kind is FORWARD else outputs

    return run


@pytest.mark.parametrize("name", SERVED)
def test_served_calls_have_our_numbers(reference, name):
    plain = backend("reference")
    want = SERVED[name]()
    with watched(plain, negated(plain), dequantizes=True) as ran, mlx_flash.patch() as report:
        got = SERVED[name]()
    assert report.ours == 1 and report.built_in.total() == 0 and ran
    largest = mx.abs(want).max().item()
    if name == "gradient":  # of dO O that has changed its sign: no multiple of the right one
        assert mx.abs(got - want).max().item() > bounds.NEGATED * largest
    else:
        assert mx.abs(got + want).max().item() <= bounds.NEGATED * largest


def test_calls_that_are_not_served_have_the_numbers_of_the_built_in(reference):
    plain = backend("reference")
    want = SERVED["few-queries"]()
    with watched(plain, negated(plain)) as ran, mlx_flash.patch(min_queries=9) as report:
        got = SERVED["few-queries"]()
    assert mx.array_equal(got, want) and report.ours == 0 and not ran
