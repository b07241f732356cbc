"""Packed sequences: what each gives is what it gives alone, bit for bit where its blocks lie the same."""

import re
from dataclasses import replace

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from machines import KERNELS, across_backends
from oracle_variants import Facts

from mlx_flash import attention, use_backend, vmap
from mlx_flash.sequences import cumulative_segments, segments

# Every start is a multiple of each block of the rows for D = 40 in float32 (80 is the longest), and the ends are odd.
ALIGNED = [320, 97, 223, 64]
STARTS = [0, 320, 640, 960]
TOTAL = 1024


def packed(case: Case, ids) -> dict[str, mx.array]:
    return feature_cases.backward(Variant(case, ()), case.arrays(), {"segments": ids})


@pytest.mark.long
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("choice", [*KERNELS, ("reference", None)], ids=str)
def test_packed_is_alone(choice, causal):
    """Bit for bit on kernels; the reference's blocks of 512 lie elsewhere, where the criterion judges."""
    case = Case(TOTAL, TOTAL, 16, group=2)
    arrays, ids = case.arrays(), np.full(TOTAL, -1, np.int32)
    for number, (start, length) in enumerate(zip(STARTS, ALIGNED)):
        ids[start : start + length] = number
    variant = Variant(case, ())
    with use_backend(*choice):
        arguments = {"segments": (mx.array(ids), mx.array(ids)), "causal": causal}
        together = feature_cases.backward(variant, arrays, arguments)
        for start, length in zip(STARTS, ALIGNED):
            part = slice(start, start + length)
            one = {name: array[:, :, part] for name, array in arrays.items()}
            alone = feature_cases.backward(variant, one, {"causal": causal})
            for name, array in alone.items():
                got = together[name][:, :, part]
                if choice[0] == "reference":
                    bounds.check(name, got, bounds.float64(array), str(part), "float32")
                else:
                    assert bits(got) == bits(array), (name, part)


def test_segments_in_any_order(backend):
    """Ids need not be sorted, nor runs: what has the same id sees each other."""
    case = Case(65, 70, 40, group=2, key_heads=2, batch=2)
    draw = np.random.default_rng(7)
    q_ids, k_ids = (draw.integers(-2, 3, (2, length)).astype(np.int32) for length in (65, 70))
    facts = Facts(q_ids=q_ids, k_ids=k_ids)
    feature_cases.check_arguments(Variant(case, ()), {"segments": (mx.array(q_ids), mx.array(k_ids))}, facts)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16", "int32"])
def test_ids_of_any_small_integer_type(backend, dtype):
    case = Case(65, 70, 40, group=2, key_heads=2, batch=2)
    ids = [mx.array(np.arange(length) // 20) for length in (65, 70)]
    want = packed(case, tuple(array.astype(mx.int32) for array in ids))
    got = packed(case, tuple(array.astype(getattr(mx, dtype)) for array in ids))
    shared = packed(case, tuple(mx.broadcast_to(array.astype(mx.int32), (2, array.size)) for array in ids))
    for name in want:
        assert bits(got[name]) == bits(want[name]) == bits(shared[name]), name


def test_ids_at_the_ends_of_their_range(backend):
    """The least and the largest 32-bit integer are ids like any other."""
    lowest, highest = -(2**31), 2**31 - 1
    case = Case(65, 70, 40, group=2, key_heads=2, batch=2)
    q_ids, k_ids = (np.where(np.arange(length) < 33, lowest, highest).astype(np.int32) for length in (65, 70))
    facts = Facts(q_ids=np.stack([q_ids] * 2), k_ids=np.stack([k_ids] * 2))
    feature_cases.check_arguments(Variant(case, ()), {"segments": (mx.array(q_ids), mx.array(k_ids))}, facts)


def test_ids_from_lengths():
    ids, same = segments([2, 0, 3])
    assert ids is same and ids.dtype == mx.int32 and ids.tolist() == [0, 0, 2, 2, 2]
    assert segments([2, 1], 5)[0].tolist() == [0, 0, 1, -1, -1]
    assert segments([[2, 2], [1, 3]])[0].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert segments([[2], (1, 1)], 3)[0].tolist() == [[0, 0, -1], [0, 1, -1]]
    assert segments(np.array([1, 2]))[0].tolist() == [0, 1, 1]


ROWS = [[3, 4], [2, 5]]
ANY_LENGTHS = {
    "an array": np.array(ROWS),
    "small integers, whose sum would overflow": np.array(ROWS, np.uint8),
    "a list of arrays": [np.array(row) for row in ROWS],
    "an array of mlx": mx.array(ROWS),
    "a list of arrays of mlx": [mx.array(row) for row in ROWS],
    "arrays of one number": [[mx.array(3), np.array(4)], (np.int64(2), 5)],
    "a generator": (row for row in ROWS),
}


@pytest.mark.parametrize("name", ANY_LENGTHS)
def test_lengths_as_numpy_and_mlx_have_them(name):
    for length in (None, np.int64(9), mx.array(9)):
        given = list(ANY_LENGTHS[name]) if name == "a generator" else ANY_LENGTHS[name]
        assert mx.array_equal(segments(given, length)[0], segments(ROWS, None if length is None else 9)[0])
        if name == "a generator":
            break
    assert segments(np.array([200, 100], np.uint8))[0].shape == (300,)


def test_one_array_of_offsets_for_rows_of_two_lengths():
    offsets = mx.array([0, 2, 5])
    for lengths in ((5, 8), (6, 6), (None, 7)):
        q_ids, k_ids = cumulative_segments(offsets, offsets, q_length=lengths[0], k_length=lengths[1])
        assert [q_ids.tolist(), k_ids.tolist()] == [[0, 0, 1, 1, 1] + [-1] * ((n or 5) - 5) for n in lengths]
        assert (q_ids is k_ids) == (lengths[0] == lengths[1])  # so that no shifts are computed


def test_ids_from_lengths_are_what_attention_takes(reference):
    q = mx.random.normal((1, 2, 12, 8), key=mx.random.key(0))
    out = attention(q, q, q, segments=segments([5, 4], 12), causal=True)
    alone = attention(*[q[:, :, 5:9]] * 3, causal=True)
    bounds.check("O", out[:, :, 5:9], bounds.float64(alone), "the second sequence", "float32")
    with pytest.raises(AssertionError, match="exceeds"):
        unpacked = attention(q, q, q, causal=True)[:, :, 5:9]
        bounds.check("O", out[:, :, 5:9], bounds.float64(unpacked), "not packed", "float32")


UNEVEN = {"queries": [5, 70, 1, 0, 40], "keys": [64, 70, 33, 12, 9]}  # sequences of a batch with caches of their own
POSITIONS = {
    "causal": {"causal": True},
    "window": {"window": (20, 3)},
    "causal window": {"causal": True, "window": (20, 0)},
    "alibi": {"alibi_slopes": mx.array([0.3, 0.02])},
}


@pytest.mark.parametrize("name", POSITIONS)
def test_unequal_lengths_align_to_their_own_ends(backend, name):
    """The last query of each sequence has the position of its last key, as in a call of its own; gradients too. The
    convention of flash-attn's varlen functions."""
    options = POSITIONS[name]
    case = Case(sum(UNEVEN["queries"]), sum(UNEVEN["keys"]), 16, key_heads=2)
    arrays, variant = case.arrays(), Variant(case, ())
    ids = tuple(segments(lengths)[0] for lengths in UNEVEN.values())
    together = feature_cases.backward(variant, arrays, options | {"segments": ids})
    ends = [np.cumsum([0, *lengths]) for lengths in UNEVEN.values()]
    for number, queries in enumerate(UNEVEN["queries"]):
        if not queries:
            continue
        rows, columns = (slice(end[number], end[number + 1]) for end in ends)
        one = {array: arrays[array][:, :, columns if array in "kv" else rows] for array in arrays}
        alone = feature_cases.backward(variant, one, options)
        for tensor, array in alone.items():
            got = together[tensor][:, :, columns if tensor in ("dK", "dV") else rows]
            terms = max(float(mx.abs(together[tensor]).max()), 1.0)
            bounds.check(tensor, got, bounds.float64(array), f"{name} {number}", "float32", terms=terms)


@pytest.mark.parametrize("features", [("causal",), ("window", "alibi"), ("causal", "additive", "sinks", "softcap")])
def test_unequal_segments_in_any_order(backend, features):
    """Ids need not be sorted: a segment ends at its last row, wherever its rows lie. Batch entries differ."""
    variant = Variant(Case(65, 90, 16, group=2, key_heads=2, batch=2), features)
    arguments, facts = feature_cases.build(variant)
    draw = np.random.default_rng(11)
    q_ids, k_ids = (draw.integers(-2, 3, (2, length)).astype(np.int32) for length in (65, 90))
    arguments["segments"] = (mx.array(q_ids), mx.array(k_ids))
    feature_cases.check_arguments(variant, arguments, replace(facts, q_ids=q_ids, k_ids=k_ids))


def test_every_option_at_once(backend):
    """All options together, with unequal segments: Metal gives a kernel 31 buffers, and every operand of every
    option fits."""
    others = ("causal", "window", "softcap", "alibi", "sinks", "segments", "dropout", "lse")
    for mask in ("blocks", "additive"):
        feature_cases.check(Variant(Case(40, 70, 24, group=2, key_heads=2, batch=2), (mask, *others)))


def test_few_queries_of_many_sequences(backend):
    """Decoding: one new token of each sequence in a row, over caches of unequal lengths."""
    caches = [300, 17, 260]
    case = Case(3, sum(caches), 16, group=2)
    arrays = case.arrays()
    ids = segments([1, 1, 1])[0], segments(caches)[0]
    out = attention(*(arrays[name] for name in "qkv"), causal=True, window=(40, 0), segments=ids)
    ends = np.cumsum([0, *caches])
    for number, end in enumerate(ends[1:]):
        keys = slice(int(ends[number]), int(end))
        alone = attention(
            arrays["q"][:, :, number : number + 1], arrays["k"][:, :, keys], arrays["v"][:, :, keys], causal=True,
            window=(40, 0),
        )  # fmt: skip
        bounds.check("O", out[:, :, number : number + 1], bounds.float64(alone), f"{number}", "float32")


@pytest.mark.parametrize("backend, name", across_backends(POSITIONS), indirect=["backend"])
def test_equal_ids_in_two_arrays_are_one(backend, name):
    """Equal ids in two arrays mean the same as the ids of segments(...): the rows keep their positions."""
    case = Case(96, 96, 16)
    ids, _ = segments([30, 50], 96)
    same, copied = (ids, ids), (ids, mx.array(np.array(ids)))
    options = {key: value[:1] if key == "alibi_slopes" else value for key, value in POSITIONS[name].items()}
    want, got = (
        feature_cases.backward(Variant(case, ()), case.arrays(), options | {"segments": pair})
        for pair in (same, copied)
    )
    assert [tensor for tensor, array in want.items() if bits(got[tensor]) != bits(array)] == []


def test_unequal_segments_in_transformations(reference):
    """mx.compile, mx.checkpoint, and mx.vmap over the ids, from any axis."""
    q, k = (mx.random.normal((2, 1, 2, length, 16), key=mx.random.key(length)) for length in (20, 31))
    ids = [mx.array(np.sort(np.random.default_rng(3).integers(0, 3, (2, length)), -1), mx.int32) for length in (20, 31)]

    def call(q, k, q_ids, k_ids):
        return attention(q, k, k, causal=True, segments=(q_ids, k_ids))

    want = [call(q[n], k[n], ids[0][n], ids[1][n]) for n in range(2)]
    first = (q[0], k[0], ids[0][0], ids[1][0])
    bounds.check("O", mx.compile(call)(*first), bounds.float64(want[0]), "compiled", "float32")  # may round differently
    assert bits(mx.checkpoint(call)(*first)) == bits(want[0])
    assert bits(vmap(call)(q, k, *ids)) == bits(mx.stack(want))
    last = vmap(call, in_axes=(0, 0, 1, 1))(q, k, ids[0].T, ids[1].T)
    assert bits(last) == bits(mx.stack(want))


def traced(lengths):
    return segments(lengths)[0]


traced.runs_no_kernels = True  # so that it is traced on a pretended Mac too
WRONG = {
    "negative": (lambda: segments([3, -1]), "lengths", "whole numbers of at least 0", "[3, -1]", "Pass a list"),
    "fraction": (lambda: segments([1.5]), "lengths", "whole numbers of at least 0", "[1.5]", "Pass a list"),
    "nothing": (lambda: segments([]), "lengths", "at least one", "[]", "Pass a list"),
    "too-long": (lambda: segments([4, 4], 7), "length", "at least the sum of lengths, 8", "7", "Leave sequences out"),
    "a-number": (lambda: segments(5), "lengths", "whole numbers of at least 0", "5", "Pass a list"),
    "bools": (lambda: segments([True]), "lengths", "whole numbers of at least 0", "[True]", "Pass a list"),
    "floats": (lambda: segments(np.array([2.0])), "lengths", "whole numbers of at least 0", "[2.0]", "Pass a list"),
    "too-deep": (lambda: segments(np.ones((1, 1, 1), int)), "lengths", "whole numbers", "[[1]]", "Pass a list"),
    "traced": (
        lambda: mx.compile(traced)(mx.array([1, 2])), "lengths", "whole numbers",
        "an array of shape (2,)", "Pass a list",
    ),
    "no-length": (lambda: segments([4], 4.5), "length", "a whole number of at least 0, or None", "4.5", "Pass an int"),
    "uneven": (lambda: segments([[4], [5]]), "lengths", "rows of one length", "rows of [4, 5]", "Pass length"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_lengths(name):
    call, argument, expected, got, remedy = WRONG[name]
    pattern = r"\[mlx_flash\.segments\] {}: expected .*{}.*, got .*{}.*\. .*{}".format(
        *map(re.escape, (argument, expected, got, remedy))
    )
    with pytest.raises(ValueError, match=pattern):
        call()
