"""The gradient of sinks by the same criterion as any other, without allowances: over heads enough to judge by.

A tensor of two or four numbers says little: where plain mx happens to be right to the last bit, twice its error is
none.
"""

import bounds
import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import attention

HEADS, LENGTH, DIM = 64, 40, 64


def exact(q, k, v, sinks, d_o):
    """A sink takes the part e^(sink - LSE) of each row, whose mean of dP it pulls down by as much."""
    scores = np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(DIM)
    largest = np.maximum(scores.max(-1), sinks[None, :, None])
    weights, part = np.exp(scores - largest[..., None]), np.exp(sinks[None, :, None] - largest)
    total = weights.sum(-1) + part
    means = (weights * np.einsum("bhid,bhjd->bhij", d_o, v)).sum(-1) / total
    return -(part / total * means).sum((0, 2))


def plain(q, k, v, sinks):
    """A column more for softmax, in one dtype."""
    scores = (q * mx.array(DIM**-0.5, q.dtype)) @ k.swapaxes(-1, -2)
    column = mx.broadcast_to(sinks.reshape(1, -1, 1, 1), (*scores.shape[:3], 1))
    return mx.softmax(mx.concatenate([scores, column], -1), axis=-1, precise=True)[..., : k.shape[2]] @ v


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradient_over_many_heads(backend, dtype):
    random = np.random.default_rng(5)
    drawn = [random.normal(size=(1, HEADS, LENGTH, DIM)) for _ in range(4)] + [random.uniform(-1, 2, HEADS)]
    q, k, v, d_o, sinks = (mx.array(values).astype(getattr(mx, dtype)) for values in drawn)
    want = exact(*map(bounds.float64, (q, k, v, sinks, d_o)))
    gradients = [
        mx.vjp(call, [q, k, v, sinks], [d_o])[1][3]
        for call in (lambda q, k, v, sinks: attention(q, k, v, sinks=sinks), plain)
    ]
    bounds.check("dsinks", gradients[0], want, dtype, dtype, unfused=bounds.Error.of(gradients[1], want))
