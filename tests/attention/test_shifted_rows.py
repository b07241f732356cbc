"""Scores that are shifted far away, row by row: softmax does not see a shift, and every result must be that without it.

A row's statistics carry its largest score and the logarithm of its sum apart; in one float32 number the logarithm would
be lost beside a large score. The oracle is float64 of the same float32 scores, which lose digits to the shift alike.
"""

import math

import bounds
import mlx.core as mx
import numpy as np
import pytest
from tensor_rows import small_rows

from mlx_flash import attention, merge, use_backend

SHIFTS = (0.0, 1e4, -1e9, -1e20, -3e38)


def backends(*names: str) -> list:
    """Names of backends as parameters: all but the reference are simulated."""
    return [name if name == "reference" else pytest.param(name, marks=pytest.mark.simulator) for name in names]


BATCH, HEADS, KEY_HEADS, KEYS, DIM = 1, 4, 2, 70, 16


def on(name: str):
    """The backend of a name; "mma" and "wgmma" multiply 16-bit operands only."""
    if name in ("mma", "wgmma", "tf32"):
        return small_rows(name, "narrow")
    return use_backend("reference") if name == "reference" else use_backend("simulator", name)


def operands(queries: int, dtype=mx.float32) -> list[mx.array]:
    keys = [mx.random.key(n) for n in range(4)]
    shapes = ((HEADS, queries), (KEY_HEADS, KEYS), (KEY_HEADS, KEYS), (HEADS, queries))
    return [mx.random.normal((BATCH, *shape, DIM), key=key).astype(dtype) for shape, key in zip(shapes, keys)]


def mixed(queries: int, dtype=mx.float32) -> mx.array:
    """A mask whose rows carry all shifts in turn; every fifth row differs from key to key besides."""
    shifts = np.array([SHIFTS[i % len(SHIFTS)] for i in range(queries)])
    mask = np.broadcast_to(shifts[:, None], (queries, KEYS)).copy()
    mask[::5] += np.random.default_rng(0).normal(size=(len(mask[::5]), KEYS))
    return mx.array(mask.astype(np.float32)).astype(dtype)[None, None]


def wanted(q, k, v, d_o, bias: mx.array, sinks=None, d_lse=0.0) -> dict[str, np.ndarray]:
    """O, its gradients and the LSE relative to the row's largest score, in float64 of float32 scores."""
    group = HEADS // KEY_HEADS
    wide = [mx.repeat(one, group, axis=1).astype(mx.float32) for one in (k, v)]
    s = (q.astype(mx.float32) @ wide[0].swapaxes(-1, -2)) / math.sqrt(DIM) + bias.astype(mx.float32)
    s, keys, values = (bounds.float64(one) for one in (s, *wide))
    q, d_o = bounds.float64(q), bounds.float64(d_o)
    top = s.max(-1, keepdims=True)
    sink = -math.inf if sinks is None else bounds.float64(sinks)[None, :, None, None]
    top = np.maximum(top, sink)
    weights = np.exp(s - top)
    total = weights.sum(-1, keepdims=True) + np.exp(sink - top)
    p = weights / total
    out = p @ values
    d_s = p * (d_o @ values.swapaxes(-1, -2) - (d_o * out).sum(-1, keepdims=True) + d_lse)
    delta = (d_o * out).sum(-1, keepdims=True) - d_lse
    by_key_head = lambda one: one.reshape(BATCH, KEY_HEADS, group, KEYS, DIM).sum(2)  # noqa: E731
    return {
        "O": out, "dQ": d_s @ keys / math.sqrt(DIM), "dK": by_key_head(d_s.swapaxes(-1, -2) @ q) / math.sqrt(DIM),
        "dV": by_key_head(p.swapaxes(-1, -2) @ d_o), "dM": d_s, "log_sum": np.log(total)[..., 0],
        "dsinks": -(np.exp(sink - top) / total * delta).sum((0, 2, 3)), "largest": top[..., 0],
    }  # fmt: skip


def close(got, want, name: str, dtype=mx.float32):
    """Float32 operands as exactly as without shifts; 16-bit ones as their rounding of P and of the results allows."""
    most = bounds.SHIFTED[dtype == mx.float32]
    error = np.abs(bounds.float64(got) - want).max() / max(np.abs(want).max(), bounds.SMALLEST)
    assert error < most, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", backends("reference", "apple7", "apple9", "mma", "wgmma", "tf32"))
@pytest.mark.parametrize("queries", [3, 37], ids=["decode", "forward"])
def test_output_and_gradients(name, queries):
    """Gradients of q, k, v, the mask, the sinks and the LSE, with rows of every shift in one call."""
    dtype = mx.float16 if name in ("mma", "wgmma") else mx.float32
    q, k, v, d_o = operands(queries, dtype)
    mask, sinks = mixed(queries), mx.array([0.5, -3e38, 1.0, 1e4])
    d_lse = mx.random.normal((BATCH, HEADS, queries), key=mx.random.key(9))

    def call(q, k, v, mask, sinks):
        out, (largest, log_sum) = attention(q, k, v, mask=mask, sinks=sinks, return_lse="split")
        return [out, largest + log_sum]

    if dtype == mx.float16:
        mask, sinks = mx.maximum(mask, -6e4).astype(dtype), mx.maximum(sinks, -6e4).astype(dtype)
    with on(name):
        (out, _), gradients = mx.vjp(call, [q, k, v, mask, sinks], [d_o, d_lse])
        largest, log_sum = attention(q, k, v, mask=mask, sinks=sinks, return_lse="split")[1]
        mx.eval(out, gradients, largest, log_sum)
    want = wanted(q, k, v, d_o, mask, sinks, bounds.float64(d_lse)[..., None])
    want["dM"] = want["dM"].sum((0, 1), keepdims=True)
    found = dict(zip(("dQ", "dK", "dV", "dM", "dsinks"), gradients)) | {"O": out, "log_sum": log_sum}
    for tensor, array in found.items():
        close(array, want[tensor], tensor, dtype)
    bounds.near(largest, want["largest"], bounds.STATISTIC[dtype == mx.float32])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", backends("reference", "apple9"))
def test_every_key_of_every_row_shifted(name, shift, dtype):
    """The case of dropped conditioning: q, k and v have the gradients of the same call without a mask, up to the digits
    of the scores that float32 loses to the shift."""
    q, k, v, d_o = operands(11, dtype)
    mask = mx.full((11, KEYS), shift).astype(dtype)
    with on(name):
        (out,), gradients = mx.vjp(lambda *arrays: attention(*arrays, mask=mask), [q, k, v], [d_o])
        mx.eval(out, gradients)
    want = wanted(q, k, v, d_o, mask[None, None])
    for tensor, array in zip(("O", "dQ", "dK", "dV"), (out, *gradients)):
        close(array, want[tensor], tensor, dtype)


@pytest.mark.parametrize("name", backends("reference", "apple9"))
def test_sinks_and_slopes_of_any_size(name):
    """A sink beyond all scores takes everything, one far below nothing; a steep slope leaves the nearest key."""
    q, k, v, _ = operands(9)
    with on(name):
        plain = attention(q, k, v)
        for sink, share in ((3e38, 0), (2.5e38, 0), (-3e38, 1), (-1e20, 1)):
            out, lse = attention(q, k, v, sinks=mx.full((HEADS,), sink), return_lse=True)
            close(out, bounds.float64(plain) * share, f"sink {sink}")
            assert mx.isfinite(lse).all() and (share or bounds.is_near(lse, sink, bounds.STATISTIC[True]))
        for slope in (3e38, 1e20):
            out = attention(q, k, v, alibi_slopes=mx.full((HEADS,), slope))
            close(out, bounds.float64(mx.repeat(v[:, :, -9:], HEADS // KEY_HEADS, axis=1)), f"slope {slope}")


@pytest.mark.parametrize("name", backends("reference", "apple7"))
def test_masks_of_any_finite_value(name):
    """The largest float32 picks its key; the least hides one beside others, and is a shift like any if all have it."""
    q, k, v, _ = operands(9)
    most, place = float(mx.finfo(mx.float32).max), mx.arange(KEYS) == 3
    picked = bounds.float64(mx.repeat(v[:, :, 3:4], HEADS // KEY_HEADS, axis=1))
    with on(name):
        for high, low in ((most, 0.0), (most, -most), (3e38, 2.5e38), (0.0, -most)):
            close(
                attention(q, k, v, mask=mx.where(place, high, low)), np.broadcast_to(picked, q.shape), f"{high} {low}"
            )
        mean = bounds.float64(mx.repeat(v.mean(2, keepdims=True), HEADS // KEY_HEADS, axis=1))
        close(attention(q, k, v, mask=mx.full((1, KEYS), -most)), np.broadcast_to(mean, q.shape), "least everywhere")


@pytest.mark.parametrize("name", backends("reference", "apple9"))
@pytest.mark.parametrize("softcap", [3e38, 1e300, 1e30, 1e6])
def test_a_large_softcap_caps_nothing(name, softcap):
    arrays = operands(9)
    with on(name):
        results = [
            mx.vjp(lambda *args, options=options: attention(*args, **options), arrays[:3], arrays[3:])
            for options in ({}, {"softcap": softcap})
        ]
        (plain, *want), (capped, *got) = ([*out, *gradients] for out, gradients in results)
    for n, (one, other) in enumerate(zip([capped, *got], [plain, *want])):
        close(one, bounds.float64(other), str(n))


@pytest.mark.parametrize("name", backends("reference", "apple9"))
def test_a_tiny_softcap_levels_all_scores(name):
    q, k, v, _ = operands(9)
    mean = bounds.float64(mx.repeat(v.mean(2, keepdims=True), HEADS // KEY_HEADS, axis=1))
    with on(name):
        for softcap in (1e-30, 1e-40):
            close(attention(q, k, v, softcap=softcap), np.broadcast_to(mean, q.shape), str(softcap))


@pytest.mark.parametrize("name", backends("reference", "apple9"))
def test_merged_parts_keep_every_digit(name):
    """Two halves of the keys, each shifted as much: split statistics merge as one call, and so do merges of merges."""
    q, k, v, _ = operands(15)
    mask = mixed(15)
    with on(name):
        whole, lse = attention(q, k, v, mask=mask, return_lse="split")
        thirds = [slice(0, 20), slice(20, 45), slice(45, KEYS)]
        parts = [
            attention(q, k[:, :, part], v[:, :, part], mask=mask[..., part], return_lse="split") for part in thirds
        ]
        first = merge(*zip(*parts[:2]))
        for out, (largest, log_sum) in (merge(*zip(*parts)), merge(*zip(first, parts[2]))):
            close(out, bounds.float64(whole), "O")
            close(log_sum, bounds.float64(lse[1]), "log of the sum")
            assert np.array_equal(np.array(largest), np.array(lse[0]))


def test_merge_takes_both_forms():
    """Plain sums and split ones together; a row that no part sees stays empty; gradients flow as through one call."""
    q, k, v, d_o = operands(7)
    seen = mx.arange(7)[:, None] > 1
    visible = mx.broadcast_to(seen, (7, KEYS))
    halves = [slice(0, 30), slice(30, KEYS)]

    def merged(forms, q, k, v):
        parts = [
            attention(
                q,
                k[:, :, part],
                v[:, :, part],
                mask=mx.broadcast_to(seen, (7, part.stop - part.start)),
                return_lse=form,
            )
            for part, form in zip(halves, forms)
        ]
        return merge(*zip(*parts))

    arrays = [q, k, v]
    whole = lambda *args: attention(*args, mask=visible, return_lse=True)  # noqa: E731
    d_lse = mx.where(seen[:, 0], 1.0, 0.0) * mx.ones((BATCH, HEADS, 7))
    (want, lse), gradients = mx.vjp(whole, arrays, [d_o, d_lse])
    for forms in ((True, True), ("split", True), ("split", "split")):
        split = "split" in forms

        def both(*args, forms=forms, split=split):
            out, found = merged(forms, *args)
            return [out, found[0] + found[1] if split else found]

        (out, found), got = mx.vjp(both, arrays, [d_o, d_lse])
        close(out, bounds.float64(want), "O")
        assert np.array_equal(np.isneginf(np.array(found)), np.isneginf(np.array(lse)))
        for one, other in zip(got, gradients):
            close(one, bounds.float64(other), f"gradients of {forms}")
        assert merged(forms, *arrays)[1].shape == ((2, BATCH, HEADS, 7) if split else (BATCH, HEADS, 7))


def test_forms_of_the_lse():
    q, k, v, _ = operands(5)
    (out, lse), (same, split) = (attention(q, k, v, return_lse=form) for form in (True, "split"))
    assert split.shape == (2, *lse.shape) and split.dtype == lse.dtype == mx.float32
    assert np.array_equal(np.array(out), np.array(same)) and np.array_equal(np.array(split.sum(0)), np.array(lse))
    empty = attention(q, k[:, :, :0], v[:, :, :0], return_lse="split")[1]
    assert np.isneginf(np.array(empty[0])).all() and not np.array(empty[1]).any()
    with pytest.raises(ValueError, match="return_lse.*\"split\".*'apart'"):
        attention(q, k, v, return_lse="apart")


@pytest.mark.parametrize("options", ["plain", "causal", "bool", "sinks", "additive", "softcap"])
@pytest.mark.parametrize("queries", [1, 40], ids=["decode", "forward"])
@pytest.mark.parametrize("name", backends("reference", "apple9"))
def test_a_row_of_one_key_gives_it_everything(name, queries, options):
    """Exactly, however large its score: P is 1, whatever the units of the exponents round."""
    q = mx.random.normal((1, 2, queries, DIM), key=mx.random.key(0)) * 1e3
    k, v = (mx.random.normal((1, 2, 1, DIM), key=mx.random.key(n)) * size for n, size in ((1, 1e2), (2, 1.0)))
    arguments = {
        "plain": {}, "causal": {"causal": True}, "bool": {"mask": mx.ones((queries, 1), mx.bool_)},
        "sinks": {"sinks": mx.full((2,), -1e6)}, "additive": {"mask": mx.full((queries, 1), -7e3)},
        "softcap": {"softcap": 1e6},
    }[options]  # fmt: skip
    d_o = (mx.arange(queries) == queries - 1)[:, None] * mx.ones(q.shape)  # the last query sees the key in any case
    assert float(mx.abs(q @ k.swapaxes(-1, -2)).max()) > 1e5
    with on(name):
        (out,), gradients = mx.vjp(lambda *arrays: attention(*arrays, **arguments), [q, k, v], [d_o])
    assert np.array_equal(np.array(out[:, :, -1:]), np.array(v))
    assert np.array_equal(np.array(gradients[2]), np.array(d_o[:, :, -1:]))
