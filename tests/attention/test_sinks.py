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


@pytest.mark.parametrize("queries", [3, 40], ids=["decode", "forward"])
@pytest.mark.parametrize("size", [1e2, 1e5, 1e8])
def test_sinks_beside_large_scores(backend, size, queries):
    """Scores are exact, so that only their distance from the sink counts; no scale here is a power of two, by which a
    sink could be divided exactly."""
    largest = 2**20
    scale = float(np.float32(size / largest))
    q, k = np.zeros((1, 4, queries, 16)), np.zeros((1, 4, 9, 16))
    q[..., 0], k[..., 0] = 1, largest - np.arange(9) % 2
    v, d_o = np.random.default_rng(6).normal(size=(2, 1, 4, 40, 16)).astype(np.float32)
    v, d_o = v[:, :, :9], d_o[:, :, :queries]
    sinks = (size + np.array([-3.0, -0.5, 0.25, 2.0])).astype(np.float32)
    (out,), (d_sinks,) = mx.vjp(
        lambda sinks: attention(*(mx.array(one.astype(np.float32)) for one in (q, k, v)), scale=scale, sinks=sinks),
        [mx.array(sinks)], [mx.array(d_o)],
    )  # fmt: skip
    distances = scale * (q @ k.swapaxes(-1, -2)) - np.float64(sinks)[None, :, None, None]
    top = np.maximum(distances.max(-1, keepdims=True), 0)
    weights, part = np.exp(distances - top), np.exp(-top)
    total = weights.sum(-1, keepdims=True) + part
    want = weights / total @ v
    bounds.near(out, want, bounds.SHIFTED[True])
    delta = (want * d_o).sum(-1, keepdims=True)
    bounds.near(d_sinks, -(part / total * delta).sum((0, 2, 3)), bounds.SHIFTED[True])
