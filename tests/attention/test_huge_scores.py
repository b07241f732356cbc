"""Plain scores of any finite size: what all keys of a row have in common cancels, however large it is.

Operands are such that every score, and every partial sum of its terms, is a float32 number exactly: a large number that
all keys share, and whole multiples of its last digit. So nothing is lost before softmax, whose result is known.
"""

import bounds
import mlx.core as mx
import numpy as np
import oracle
import pytest
from tensor_rows import small_rows

from mlx_flash import attention, merge, use_backend

HEADS, KEY_HEADS, DIM = 4, 2, 16
# Exponent of the large number, and what the scale makes of its last digit: with an eighth many keys count, from 1 on
# scores are so large that float32 has no numbers between them, and from 64 on a row's largest takes everything.
EIGHTHS, SMALL, WHOLE, LARGE, LARGEST = (17, 0.125), (-20, 0.125), (30, 1.0), (100, 64.0), (126, 0.125)
BEYOND_BASE_2 = (126, 3 * 2.0**103)  # scores of 2.6e38, which times log2(e) are no float32
FLOAT32 = (EIGHTHS, SMALL, WHOLE, LARGE, LARGEST, BEYOND_BASE_2)


def backends(*names: str) -> list:
    return [name if name == "reference" else pytest.param(name, marks=pytest.mark.simulator) for name in names]


def on(name: str):
    """The backend of a name; tensor cores with rows small enough to simulate."""
    if name in ("mma", "wgmma", "tf32"):
        return small_rows(name, "narrow")
    return use_backend("reference") if name == "reference" else use_backend("simulator", name)


def operands(exponent: int, queries: int, keys: int, dtype=mx.float32) -> list[mx.array]:
    """q, k, v and dO. Scores of every third row are around 2^exponent, of the next ones around -2^exponent, and of the
    others around 0 with the same differences."""
    random, digit = np.random.default_rng(exponent + 50), exponent - 23
    q = random.integers(-2, 3, (1, HEADS, queries, DIM)) * 2.0 ** (digit // 2)
    k = random.integers(-2, 3, (1, KEY_HEADS, keys, DIM)) * 2.0 ** (digit - digit // 2)
    q[..., -1] = np.array([1, -1, 0])[np.arange(queries) % 3] * 2.0 ** (exponent - exponent // 2)
    k[..., -1] = 2.0 ** (exponent // 2)
    v, d_o = random.normal(size=k.shape), random.normal(size=q.shape)
    return [mx.array(one.astype(np.float32)).astype(dtype) for one in (q, k, v, d_o)]


def wanted(q, k, v, d_o, scale: float, d_lse: np.ndarray) -> dict[str, np.ndarray]:
    """The result in float64, which holds every score exactly."""
    q, k, v, d_o = (bounds.float64(one) for one in (q, k, v, d_o))
    p, _ = oracle.probabilities(q, k, scale, causal=False)
    keys, values = (np.repeat(one, HEADS // KEY_HEADS, axis=1) for one in (k, v))
    scores = scale * q @ keys.swapaxes(-1, -2)
    out, largest = p @ values, scores.max(-1)
    d_s = p * (d_o @ values.swapaxes(-1, -2) - (d_o * out).sum(-1, keepdims=True) + d_lse[..., None])

    def by_key_head(one: np.ndarray) -> np.ndarray:
        return one.reshape(1, KEY_HEADS, -1, *one.shape[2:]).sum(2)

    return {
        "O": out, "largest": largest, "log_sum": np.log(np.exp(scores - largest[..., None]).sum(-1)),
        "dQ": scale * d_s @ keys, "dK": scale * by_key_head(d_s.swapaxes(-1, -2) @ q),
        "dV": by_key_head(p.swapaxes(-1, -2) @ d_o),
    }  # fmt: skip


def close(got, want: np.ndarray, name: str, dtype=mx.float32, magnitude: float = 0.0):
    """Checks that the error is that of small scores. `magnitude`: of the terms that cancel."""
    error = np.abs(bounds.float64(got) - want).max() / max(np.abs(want).max(), magnitude, bounds.SMALLEST)
    assert error < bounds.SHIFTED[dtype == mx.float32], f"{name}: {error:.1e}"


def check(name: str, exponent: int, digit: float, queries: int, keys: int, dtype):
    q, k, v, d_o = operands(exponent, queries, keys, dtype)
    scale = digit * 2.0 ** (23 - exponent)
    d_lse = np.random.default_rng(0).normal(size=(1, HEADS, queries))

    def call(q, k, v):
        out, (largest, log_sum) = attention(q, k, v, scale=scale, return_lse="split")
        return [out, largest + log_sum, largest, log_sum]

    with on(name):
        cotangents = [d_o, mx.array(d_lse.astype(np.float32)), *[mx.zeros((1, HEADS, queries))] * 2]
        (out, _, largest, log_sum), (d_q, d_k, d_v) = mx.vjp(call, [q, k, v], cotangents)
        mx.eval(out, largest, log_sum, d_q, d_k, d_v)
    want = wanted(q, k, v, d_o, scale, d_lse)
    for tensor, array in (("O", out), ("log_sum", log_sum), ("dV", d_v)):
        close(array, want[tensor], tensor, dtype)
    assert np.array_equal(np.array(largest), want["largest"].astype(np.float32))
    # The last column has factors of its own size. In dQ those are equal, and cancel but for the gradient of the LSE.
    most = scale * 2.0 ** (exponent // 2)
    close(d_q[..., :-1], want["dQ"][..., :-1], "dQ", dtype)
    close(d_q[..., -1:], want["dQ"][..., -1:], "dQ of the shared column", dtype, most)
    for columns in (slice(0, -1), slice(-1, None)):
        close(d_k[..., columns], want["dK"][..., columns], f"dK {columns}", dtype)


@pytest.mark.parametrize("size", FLOAT32, ids=str)
@pytest.mark.parametrize("queries, keys", [(3, 600), (37, 70)], ids=["decode", "forward"])
@pytest.mark.parametrize("name", backends("reference", "apple7", "apple9", "apple10", "tf32"))
def test_float32(name, queries, keys, size):
    """Output, statistics and all gradients, those of the LSE too. Decoding has several parts of keys to combine."""
    check(name, *size, queries, keys, mx.float32)


@pytest.mark.parametrize("size", [EIGHTHS, WHOLE, LARGE, LARGEST], ids=str)
@pytest.mark.parametrize("queries, keys", [(3, 600), (37, 140)], ids=["decode", "forward"])
@pytest.mark.parametrize("name", backends("reference", "apple7", "apple9", "apple10", "mma", "wgmma"))
def test_bfloat16(name, queries, keys, size):
    """The outliers of activations, whose products are far larger than any other. In two blocks of keys."""
    check(name, *size, queries, keys, mx.bfloat16)


@pytest.mark.parametrize("name", backends("reference", "apple9"))
@pytest.mark.parametrize("size", [EIGHTHS, LARGEST], ids=str)
def test_merged_parts(name, size):
    """Thirds of the keys, merged at once and one after another, are one call over all keys."""
    exponent, digit = size
    q, k, v, d_o = operands(exponent, 15, 70)
    scale = digit * 2.0 ** (23 - exponent)
    thirds = [slice(0, 20), slice(20, 45), slice(45, 70)]
    want = wanted(q, k, v, d_o, scale, np.zeros((1, HEADS, 15)))
    with on(name):
        parts = [attention(q, k[:, :, own], v[:, :, own], scale=scale, return_lse="split") for own in thirds]
        first = merge(*zip(*parts[:2]))
        for out, (largest, log_sum) in (merge(*zip(*parts)), merge(*zip(first, parts[2]))):
            close(out, want["O"], "O")
            close(log_sum, want["log_sum"], "log of the sum")
            assert np.array_equal(bounds.float64(largest), want["largest"])


@pytest.mark.parametrize("name", backends("reference", "apple7"))
def test_scores_as_far_apart_as_float32_goes(name):
    """The largest score takes everything where differences overflow, and where scores times log2(e) would."""
    q = mx.array([1.8e19, -1.8e19, 1.0]).reshape(1, 1, 3, 1) * (mx.arange(DIM) == 0)
    k = mx.array([1.8e19, -1.8e19, 0.0, 1.7e19]).reshape(1, 1, 4, 1) * (mx.arange(DIM) == 0)
    v = mx.random.normal((1, 1, 4, DIM), key=mx.random.key(0))
    with on(name):
        (out,), gradients = mx.vjp(lambda *arrays: attention(*arrays, scale=1.0), [q, k, v], [mx.ones_like(q)])
        mx.eval(out, gradients)
    assert np.array_equal(np.array(out), np.array(v)[:, :, [0, 1, 0]])
    assert np.array_equal(np.array(gradients[2])[..., 0], [[[2, 1, 0, 0]]])
    assert not np.array(gradients[0]).any() and not np.array(gradients[1]).any()
