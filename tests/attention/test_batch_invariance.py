"""A sequence gets the bits that it gets alone, whatever it is batched with, and through mx.vmap too."""

import mlx.core as mx
import pytest
from arrays import bits

from mlx_flash import attention, quantized_attention, vmap

BATCH, KEYS = 16, 1600  # several parts of the keys on every family, and fewer of them if the batch had a say
CASES = {
    "decoding": (1, {}),
    "decoding, causal window": (5, {"causal": True, "window": (1400, 0)}),
    "decoding, sinks and softcap": (3, {"sinks": mx.array([0.5, -1.0, 0.0, 2.0]), "softcap": 5.0}),
    "forward": (20, {"causal": True}),
}


def arrays(queries: int, dimension: int = 32):
    draw = [mx.random.key(number) for number in range(3)]
    q = mx.random.normal((BATCH, 4, queries, dimension), key=draw[0])
    k, v = (mx.random.normal((BATCH, 1, KEYS, dimension), key=key) for key in draw[1:])
    return q, k, v


@pytest.mark.parametrize("name", CASES)
def test_a_row_keeps_its_bits(backend, name):
    queries, options = CASES[name]
    q, k, v = arrays(queries)
    together = attention(q, k, v, return_lse=True, **options)
    for entry in (0, 7, BATCH - 1):
        one = slice(entry, entry + 1)
        alone = attention(q[one], k[one], v[one], return_lse=True, **options)
        for whole, own in zip(together, alone):
            assert bits(whole[one]) == bits(own), (name, entry)
    half = attention(q[:8], k[:8], v[:8], **options)
    assert bits(together[0][:8]) == bits(half)


def test_a_mapped_row_keeps_its_bits(backend):
    q, k, v = arrays(1)
    mapped = vmap(lambda q, k, v: attention(q[None], k[None], v[None])[0])(q, k, v)
    assert bits(mapped[3]) == bits(attention(q[3:4], k[3:4], v[3:4])[0])


def test_a_quantized_row_keeps_its_bits(backend):
    q, k, v = arrays(1)
    packed = [mx.quantize(array, 32, 4) for array in (k, v)]
    together = quantized_attention(q, *packed, group_size=32)
    alone = quantized_attention(q[5:6], *(tuple(part[5:6] for part in parts) for parts in packed), group_size=32)
    assert bits(together[5:6]) == bits(alone)
