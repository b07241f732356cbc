"""Batch entries with lengths of their own: each is what it is alone, and what lies behind its end reaches nothing."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from refusals import refused_call as refused

from mlx_flash import attention, quantized_attention, vmap

CASE = Case(40, 150, 16, group=2, key_heads=2, batch=3)
QUERIES, KEYS = [40, 9, 25], [150, 17, 64]
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window, alibi, sinks": {
        "causal": True, "window": (30, 0), "alibi_slopes": mx.array([0.3, 0.02, 0.1, 0.5]),
        "sinks": mx.array([0.5, -1.0, 0.0, 2.0]),
    },
}  # fmt: skip


def garbage(array: mx.array, lengths: list[int]) -> mx.array:
    """NaN behind every entry's end."""
    behind = mx.arange(array.shape[2]) >= mx.array(lengths)[:, None]
    return mx.where(behind[:, None, :, None], mx.nan, array)


def spoiled(case: Case, queries, keys) -> dict[str, mx.array]:
    return {name: garbage(array, keys if name in "kv" else queries) for name, array in case.arrays().items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_entries_are_as_alone_whatever_lies_behind_them(backend, name):
    """Forward and backward; gradients of what lies behind an end are 0."""
    options, variant = OPTIONS[name], Variant(CASE, ())
    ends = (mx.array(QUERIES), mx.array(KEYS))
    together = feature_cases.backward(variant, spoiled(CASE, QUERIES, KEYS), options | {"lengths": ends})
    sinks = mx.zeros(4)
    for b, lengths in enumerate(zip(QUERIES, KEYS)):
        rows, columns = map(slice, lengths)
        one = {name: a[b : b + 1, :, columns if name in "kv" else rows] for name, a in CASE.arrays().items()}
        alone = feature_cases.backward(variant, one, options)
        sinks += alone.pop("dsinks", 0)
        for tensor, want in alone.items():
            got, end = together[tensor][b : b + 1], lengths[tensor in ("dK", "dV")]
            terms = max(float(mx.abs(want).max()), 1.0)
            bounds.check(tensor, got[:, :, :end], bounds.float64(want), f"{name} {b}", "float32", terms=terms)
            assert not np.array(got[:, :, end:]).any(), (tensor, b)
    if "dsinks" in together:
        bounds.check("dsinks", together["dsinks"], bounds.float64(sinks), name, "float32", terms=30.0)


def test_no_query_behind_an_end_sees_a_sink(backend):
    """One segment changes nothing: queries behind an end do not see sinks either, in both forms of the LSE."""
    ends, ids = (mx.array(QUERIES), mx.array(KEYS)), (mx.zeros((40,), mx.int32), mx.zeros((150,), mx.int32))
    options = OPTIONS["window, alibi, sinks"] | {"lengths": ends}
    inputs, variant = spoiled(CASE, QUERIES, KEYS), Variant(CASE, ("lse",))
    d_lse = mx.random.normal((3, 4, 40), key=mx.random.key(2))
    alone = feature_cases.backward(variant, inputs, options | {"return_lse": True}, d_lse)
    both = feature_cases.backward(variant, inputs, options | {"segments": ids, "return_lse": True}, d_lse)
    q, k, v = (inputs[name] for name in "qkv")
    split = attention(q, k, v, **options, segments=ids, return_lse="split")[1]
    behind = mx.isneginf(alone["LSE"])
    assert all(mx.array_equal(mx.isneginf(lse), behind).item() for lse in (both["LSE"], split[0]))
    assert not mx.where(behind, split[1], 0).any().item()
    for tensor, want in alone.items():
        for got in (both[tensor], split.sum(0)) if tensor == "LSE" else (both[tensor],):
            if tensor == "LSE":
                got, want = (mx.where(behind, 0, one) for one in (got, want))
            terms = max(float(mx.abs(want).max()), 1.0) * (30 if tensor in ("dsinks", "LSE") else 1)
            bounds.check(tensor, got, bounds.float64(want), tensor, "float32", terms=terms)


def test_a_mask_keeps_its_gradient_to_itself(backend):
    """NaN behind ends reaches no element of an added mask's gradient."""
    mask, variant = mx.random.normal((3, 4, 40, 150), key=mx.random.key(1)), Variant(CASE, ())
    arguments = {"mask": mask, "lengths": (mx.array(QUERIES), mx.array(KEYS))}
    want = feature_cases.backward(variant, CASE.arrays(), arguments)
    got = feature_cases.backward(variant, spoiled(CASE, QUERIES, KEYS), arguments)
    assert [name for name in want if bits(got[name]) != bits(want[name])] == []


@pytest.mark.parametrize("queries", [1, 5])
def test_decoding(backend, queries):
    """Keys in several parts; entries of few keys and of none."""
    case = Case(queries, 700, 16, group=4, key_heads=2, batch=3)
    keys, own = [700, 33, 0], [queries, 1, queries]
    arrays = spoiled(case, own, keys)
    options = {"causal": True, "sinks": mx.linspace(-1, 1, 8)}
    inputs = [arrays[name] for name in "qkv"]
    out, lse = attention(*inputs, lengths=(mx.array(own), mx.array(keys)), return_lse=True, **options)
    for b, (rows, columns) in enumerate(zip(own, keys)):
        one = [case.arrays()[name][b : b + 1, :, : rows if name == "q" else columns] for name in "qkv"]
        alone, own_lse = attention(*one, return_lse=True, **options)
        terms = max(float(mx.abs(alone).max()), 1.0)
        bounds.check("O", out[b : b + 1, :, :rows], bounds.float64(alone), f"entry {b}", "float32", terms=terms)
        bounds.check("LSE", lse[b : b + 1, :, :rows], bounds.float64(own_lse), f"{b}", "float32", terms=16.0)
        assert not np.array(out[b, :, rows:]).any() and np.isneginf(np.array(lse[b, :, rows:])).all()


def test_quantized_keys(backend):
    q, k, v = (CASE.arrays()[name] for name in "qkv")
    form = {"mode": "nvfp4", "bits": 4, "group_size": 16}
    packed = [mx.quantize(array, **form) for array in (k, v)]
    exact = [mx.dequantize(*parts, **form, dtype=mx.float32) for parts in packed]
    lengths = (mx.array(QUERIES), mx.array(KEYS))
    spoiled_parts = [
        (p[0], mx.where(mx.arange(150)[:, None] < mx.array(KEYS)[:, None, None, None], p[1], 127)) for p in packed
    ]
    got = quantized_attention(q, *spoiled_parts, lengths=lengths, causal=True, **form)
    assert bits(got) == bits(attention(q, *exact, lengths=lengths, causal=True))


def test_forms_of_lengths(backend):
    q, k, v = (CASE.arrays()[name] for name in "qkv")
    full = mx.full((3,), 40, mx.int32)
    want = attention(q, k, v, causal=True, lengths=(full, mx.array(KEYS)))
    for lengths in (
        mx.array(KEYS), np.array(KEYS), mx.array(KEYS, mx.int16), (None, mx.array(KEYS)), [full, np.array(KEYS)],
        (full + 1000, mx.array(KEYS) + mx.array([1000, 0, 0])), mx.stack([mx.array(KEYS), full])[0],
    ):  # fmt: skip
        assert bits(attention(q, k, v, causal=True, lengths=lengths)) == bits(want), lengths
    nothing = attention(q, k, v, lengths=(mx.array([-1, 0, 40]), mx.array([9, 9, -7])))
    assert not np.array(nothing).any()


def test_transformations(reference):
    arrays = [mx.stack([CASE.arrays()[name]] * 2) for name in "qkv"]
    lengths = mx.array([KEYS, [3, 4, 5]], mx.int32)

    def call(q, k, v, lengths):
        return attention(q, k, v, causal=True, lengths=lengths)

    want = [call(*(array[n] for array in (*arrays, lengths))) for n in range(2)]
    assert bits(vmap(call)(*arrays, lengths)) == bits(mx.stack(want))
    assert bits(vmap(call, in_axes=(0, 0, 0, 1))(*arrays, lengths.T)) == bits(mx.stack(want))
    one = [array[0] for array in (*arrays, lengths)]
    bounds.check("O", mx.compile(call)(*one), bounds.float64(want[0]), "compiled", "float32")


@pytest.mark.parametrize("causal", [False, True])
def test_beside_segments(backend, causal):
    """Sequences packed into entries whose ends lie within them: positions count within the part that exists."""
    ids = tuple(mx.array(np.repeat([7, -3, 9], parts).astype(np.int32)) for parts in ((12, 8, 20), (50, 30, 70)))
    ends, variant = (mx.array(QUERIES), mx.array(KEYS)), Variant(CASE, ())
    options = {"causal": causal, "segments": ids, "lengths": ends}
    together = feature_cases.backward(variant, spoiled(CASE, QUERIES, KEYS), options)
    for b, lengths in enumerate(zip(QUERIES, KEYS)):
        rows, columns = map(slice, lengths)
        one = {name: a[b : b + 1, :, columns if name in "kv" else rows] for name, a in CASE.arrays().items()}
        own = tuple(part[:end] for part, end in zip(ids, lengths))
        alone = feature_cases.backward(variant, one, {"causal": causal, "segments": own})
        for tensor, want in alone.items():
            got, end = together[tensor][b : b + 1], lengths[tensor in ("dK", "dV")]
            terms = max(float(mx.abs(want).max()), 1.0)
            bounds.check(tensor, got[:, :, :end], bounds.float64(want), f"{causal} {b}", "float32", terms=terms)
            assert not np.array(got[:, :, end:]).any(), (tensor, b)


def test_bad_lengths(reference):
    q, k, v = (CASE.arrays()[name] for name in "qkv")
    ids = (mx.zeros((40,), mx.int32), mx.zeros((150,), mx.int32))
    right = mx.array(KEYS)
    refused(lambda: attention(q, k, v, lengths=[1, 2, 3]), ["lengths", "(of queries, of keys)", "3 values"])
    refused(lambda: attention(q, k, v, lengths=[1, 2]), ["lengths", "an integer array", "int", "mx.array"])
    refused(lambda: attention(q, k, v, lengths=5), ["lengths", "an integer array", "int"])
    refused(lambda: attention(q, k, v, lengths=mx.array([1.0] * 3)), ["lengths", "integer", "float32"])
    refused(lambda: attention(q, k, v, lengths=(right, None)), ["lengths k_lengths", "integer", "NoneType"])
    refused(lambda: attention(q, k, v, lengths=right[:2]), ["lengths k_lengths", "[B] = [3]", "(2,)"])
    refused(lambda: attention(q, k, v, lengths=(right[:, None], right)), ["lengths q_lengths", "(3, 1)"])
    refused(lambda: attention(q, k, v, lengths=right[:2], segments=ids), ["lengths k_lengths", "[B] = [3]", "(2,)"])
    refused(lambda: attention(q, k, v, lengths=[1, 2, 3], segments=ids), ["lengths", "(of queries, of keys)"])
    refused(lambda: attention(q, k, v, lengths=right, segments=ids[0]), ["segments", "(q_ids, k_ids)"])
