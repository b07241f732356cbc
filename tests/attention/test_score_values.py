"""NaN, -inf and nothing at all from users' texts; views, vmap and compilation of calls with texts."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from isolation_checks import CASE as ISOLATED
from isolation_checks import HIDDEN, KEEP, rows_of_nan, spoiled
from machines import across_backends

from mlx_flash import Score, Visible, attention, export_function, quantized_attention, vmap

CASE = Case(33, 40, 16, group=2, key_heads=2, batch=2)
KEYS = 40


def operands() -> tuple[mx.array, ...]:
    return tuple(CASE.arrays()[name] for name in "qkv")


def test_a_nan_of_a_score_reaches_the_rows_that_see_it(backend):
    """The NaN is at key 20, visible from position 20 on, and at key 39, visible to the last query only."""
    spoiled = mx.array(np.where(np.isin(np.arange(KEYS), (20,)), np.nan, 1).astype(np.float32))
    out = attention(*operands(), causal=True, score=Score("s * spoiled[k]", spoiled=spoiled))
    want = np.broadcast_to(np.arange(33) + 7 >= 20, (2, 4, 33))
    assert np.array_equal(rows_of_nan(out), want)
    hidden = attention(*operands(), window=(5, 0), score=Score("s * spoiled[k]", spoiled=spoiled))
    seen = (np.arange(33) + 7 >= 20) & (np.arange(33) + 7 - 5 <= 20)
    assert np.array_equal(rows_of_nan(hidden), np.broadcast_to(seen, (2, 4, 33)))


TEXTS = {
    "visible": {"visible": Visible("keep[k]", keep=mx.array(KEEP), block=32)},
    "score": {"score": Score("keep[k] ? s : -INFINITY", keep=mx.array(KEEP))},
}


@pytest.mark.parametrize("backend, name", across_backends(TEXTS), indirect=["backend"])
def test_garbage_in_hidden_keys(backend, name):
    """Keys that a text hides, by a predicate or by -INFINITY, change nothing, to the bit."""
    arrays, variant = ISOLATED.arrays(), Variant(ISOLATED, ())
    want = feature_cases.backward(variant, arrays, TEXTS[name])
    place = (slice(None), slice(None), HIDDEN)
    for garbage in (np.nan, -np.inf):
        bad = arrays | {one: spoiled(arrays[one], place, garbage) for one in "kv"}
        got = feature_cases.backward(variant, bad, TEXTS[name])
        for one in want:
            assert bits(got[one]) == bits(want[one]), (one, garbage)
    assert not np.array(want["dK"])[:, :, HIDDEN].any() and not np.array(want["dV"])[:, :, HIDDEN].any()


def test_beyond_an_array_is_nan(reference):
    out = attention(*operands(), causal=True, score=Score("s + t[q]", t=mx.zeros(30)))
    assert np.array_equal(rows_of_nan(out), np.broadcast_to(np.arange(33) + 7 >= 30, (2, 4, 33)))


def test_texts_that_hide_everything(backend):
    q, k, v = operands()
    for options in ({"visible": Visible("k < 0", block=32)}, {"score": "k < 0 ? s : -INFINITY"}):
        out, lse = attention(q, k, v, return_lse=True, **options)
        assert not np.array(out).any() and np.isneginf(np.array(lse)).all()
        gradient = mx.grad(lambda *x: attention(*x, **options).sum(), argnums=(0, 1, 2))(q, k, v)  # noqa: B023
        assert not any(np.array(one).any() for one in gradient)


def test_numbers_are_not_confused(reference):
    """The same text with other numbers gives other results."""
    found = [attention(*operands(), score=Score("s * n", n=n)) for n in (1.0, 2.0, 1.0)]
    assert bits(found[0]) == bits(found[2]) != bits(found[1])
    masks = [Visible("k < n || k == q", n=n, block=32) for n in (3, 30)]
    assert bits(attention(*operands(), visible=masks[0])) != bits(attention(*operands(), visible=masks[1]))


def test_the_segment_of_every_batch_entry(backend):
    """A text reads the id of its query's segment: the same as queries that are multiplied by it."""
    draw, (q, k, v) = np.random.default_rng(8), operands()
    q, k, v = (mx.concatenate([one[:1], one[:1]]) for one in (q, k, v))
    ids = tuple(mx.array(np.sort(draw.integers(0, 3, (2, one.shape[2])), -1)) for one in (q, k))
    got = attention(q, k, v, segments=ids, score=Score("s * (1 + segment)"))
    want = attention(q * (1 + ids[0][:, None, :, None]), k, v, segments=ids)
    assert mx.abs(got[0] - got[1]).max().item() > 0.1, "the entries differ in their segments alone"
    assert mx.abs(got - want).max().item() <= bounds.FLOAT32["O"] * 4


def test_arrays_of_another_content_are_another_mask(reference):
    ids = [mx.array(np.arange(KEYS, dtype=np.int32) // n) for n in (7, 20)]
    for one in ids:
        got = attention(*operands(), visible=Visible("id[q] == id[k]", id=one, block=32))
        keep = np.array(one)[7:, None] == np.array(one)
        assert mx.abs(got - attention(*operands(), mask=mx.array(keep))).max().item() <= bounds.FLOAT32["O"] * 4


@pytest.mark.parametrize("text", ["s * (1 + t[h] * b)", "s - t[h] * abs(q - k)"])
def test_vmap_of_operands_and_arrays(reference, text):
    """b counts the entries of each call, not those of a folded batch."""
    q, k, v = operands()
    queries, tables = mx.stack([q, -q, 2 * q]), mx.array(np.random.default_rng(0).standard_normal((3, 4)), mx.float32)

    def call(q, t):
        return attention(q, k, v, score=Score(text, t=t))

    for t, axis in ((tables, 0), (tables[0], None)):
        got = vmap(call, in_axes=(0, axis))(queries, t)
        for n in range(3):
            want = call(queries[n], t[n] if axis == 0 else t)
            bounds.check("O", got[n], bounds.float64(want), f"{text} {axis} {n}", "float32")


def test_compiled_and_exported(reference, tmp_path):
    """Arrays that are arguments of a compiled function have no values when it is traced: every block is visited."""
    ids = mx.array(np.arange(KEYS, dtype=np.int32) // 9)

    def call(q, k, v, ids):
        text = Visible("id[q] == id[k]", id=ids, block=32)
        return attention(q, k, v, visible=text, score="s * 1.5")

    want = call(*operands(), ids)
    assert mx.abs(mx.compile(call)(*operands(), ids) - want).max().item() <= bounds.FLOAT32["O"] * 4
    export_function(str(tmp_path / "call.mlxfn"), call, *operands(), ids)
    (loaded,) = mx.import_function(str(tmp_path / "call.mlxfn"))(*operands(), ids)
    assert mx.abs(loaded - want).max().item() <= bounds.FLOAT32["O"] * 4


def test_quantized_keys(reference):
    q, k, v = (mx.concatenate([one, one], -1) for one in operands())
    packed = [mx.quantize(one, group_size=32, bits=8) for one in (k, v)]
    plain = [mx.dequantize(*one, group_size=32, bits=8) for one in packed]
    options = {"score": Score("s - 0.1 * abs(q - k)"), "visible": "q - k < 20"}
    got = quantized_attention(q, *packed, group_size=32, bits=8, **options)
    want = attention(q, *plain, **options)
    bounds.check("O", got, bounds.float64(want), "quantized", "float32")


@pytest.mark.parametrize("backend, queries", across_backends([3, 40]), indirect=["backend"])
def test_pages_and_lengths(backend, queries):
    """Entries in a pool of pages give the same results as alone, in the decoding and in the forward kernel."""
    draw = np.random.default_rng(6)
    q, k, v = (
        mx.array(draw.standard_normal(shape).astype(np.float32))
        for shape in ((2, 4, queries, 16), (8, 2, 32, 16), (8, 2, 32, 16))
    )
    pages, lengths = np.array([[5, 1, 7], [0, 3, 2]], np.int32), (70, 90)
    texts = {
        "score": Score("s * 0.5 - slope[h] * abs(q - k)", slope=mx.array([0.1, 0.2, 0.3, 0.4])),
        "visible": Visible("(q - k) % 3 != 1 && k <= q || k < some", some=7, block=32),
    }
    got = attention(q, k, v, pages=mx.array(pages), lengths=mx.array(lengths), **texts)
    for entry, length in enumerate(lengths):
        own = [mx.concatenate([pool[n] for n in pages[entry].tolist()], 1)[None, :, :length] for pool in (k, v)]
        want = attention(q[entry : entry + 1], *own, **texts)
        bounds.check("O", got[entry], bounds.float64(want[0]), f"entry {entry}", "float32")
