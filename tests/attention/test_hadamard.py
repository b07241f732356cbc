"""The Hadamard rotation changes no score, can be undone, and saves a quantized cache from its outliers."""

import math
import sys
from pathlib import Path

import bounds
import mlx.core as mx
import numpy as np
import pytest
from cases import Case, expected

from mlx_flash import attention
from mlx_flash.rotations import SPREAD, Balance, Rotation

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import quantization  # noqa: E402

DIMENSIONS = (1, 8, 12, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def matrix(dimension: int, key=None) -> np.ndarray:
    return np.array(Rotation(dimension, key)(mx.eye(dimension))).astype(np.float64)


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_it_is_orthogonal_and_undone(dimension, signs):
    key = mx.random.key(dimension) if signs else None
    rotation, rows = Rotation(dimension, key), matrix(dimension, key)
    identity = np.eye(dimension)
    bounds.check("O", (rows @ rows.T).astype(np.float32), identity, f"{dimension}", "float32", terms=1.0)
    x = mx.random.normal((3, 2, 5, dimension), key=mx.random.key(1))
    back = rotation.undo(rotation(x))
    bounds.check("O", back, bounds.float64(x), f"{dimension}", "float32", terms=math.sqrt(dimension))
    spread = np.abs(matrix(dimension, key)) * math.sqrt(dimension)  # every entry is 1 or -1, over the root
    bounds.check("O", spread.astype(np.float32), np.ones_like(spread), f"{dimension}", "float32")


def test_signs_come_from_the_key():
    plain, one, again, other = (matrix(64, key) for key in (None, *map(mx.random.key, (1, 1, 2))))
    assert np.array_equal(one, again) and not np.array_equal(one, other) and not np.array_equal(one, plain)
    assert np.array_equal(np.abs(one), np.abs(plain))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_attention_is_what_it_was(reference, dtype):
    case = Case(33, 65, 80, dtype, True, group=2)
    arrays, rotation = case.arrays(), Rotation(80, mx.random.key(3))
    q, k, v = (rotation(arrays[name]) for name in "qkv")
    assert q.dtype == arrays["q"].dtype
    out = rotation.undo(attention(q, k, v, scale=case.scale, causal=True))
    if dtype == "float32":
        expected(case, arrays).check(O=out)
    else:  # q, k, v and the output are rounded once more each: what one rounding of them does is the unit
        want = attention(*(arrays[name].astype(mx.float32) for name in "qkv"), scale=case.scale, causal=True)
        error = bounds.Error.of(out, bounds.float64(want))
        assert error.rms <= bounds.ROTATED * bounds.ulp(float(mx.abs(want).max()), dtype)


def uneven(heads: int, length: int, dimension: int, key: int, dtype=mx.float32) -> mx.array:
    """Channels of sizes from 1 to 30, others in each head."""
    keys = mx.random.split(mx.random.key(key))
    sizes = 1 + 29 * mx.random.uniform(shape=(1, heads, 1, dimension), key=keys[0]) ** 8
    return (mx.random.normal((2, heads, length, dimension), key=keys[1]) * sizes).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_balanced_attention_is_what_it_was(reference, dtype):
    """Heads are grouped, tokens follow after the sample, and values have another width."""
    arrays = {"k": uneven(2, 65, 64, 1), "v": uneven(2, 65, 80, 2), "q": mx.random.normal((2, 6, 33, 64)) / 10}
    q, k, v = (arrays[name].astype(getattr(mx, dtype)) for name in "qkv")
    keys, values = (Balance(array[:, :, :20], mx.random.key(3)) for array in (k, v))
    mapped = keys.queries(q), keys(k), values(v)
    assert [array.dtype for array in mapped] == [q.dtype] * 3
    out = values.undo(attention(*mapped, causal=True))
    want = attention(*(array.astype(mx.float32) for array in (q, k, v)), causal=True)
    if dtype == "float32":
        bounds.check("O", out, bounds.float64(want), dtype, dtype, terms=math.sqrt(64) * mx.abs(want).max().item())
    else:
        error = bounds.Error.of(out, bounds.float64(want))
        assert out.dtype == q.dtype and error.rms <= bounds.ROTATED * bounds.ulp(float(mx.abs(want).max()), dtype)


def test_balanced_channels_are_alike():
    """Each is divided by the root of its size, so that the ratio of the largest to the smallest is that root's."""
    sample = uneven(3, 500, 64, 4)
    divided = sample / Balance(sample).scales
    sizes, left = (np.sqrt(np.mean(bounds.float64(array) ** 2, (0, 2))) for array in (sample, divided))
    bounds.check("O", left.astype(np.float32), np.sqrt(sizes), "sizes", "float32")


def test_a_silent_channel_may_speak_later(reference):
    sample = mx.where(mx.arange(64) == 5, 0, uneven(2, 9, 64, 5))
    scales = Balance(sample).scales
    bounds.check("O", scales.max(-1) / scales.min(-1), np.full((1, 2, 1), SPREAD), "spread", "float32")
    assert mx.array_equal(Balance(mx.zeros((1, 2, 3, 64))).scales, mx.ones((1, 2, 1, 64)))


FOUR_BITS = [form for form in quantization.FORMATS if form[1] == 4]
AT_ONCE = FOUR_BITS[:2]  # the others wait for `pytest -m ""`
KINDS = [
    pytest.param(form, kind, marks=() if form in AT_ONCE and kind == "scaled" else pytest.mark.slow)
    for form in FOUR_BITS
    for kind in ("scaled", "shifted")
]


@pytest.mark.long
@pytest.mark.parametrize("form, kind", KINDS)
def test_four_bits_with_outliers(form, kind):
    """Some channels 10 to 30 times larger: balanced, 4 bits cost at most 0.6 of the error, in every format; rotated
    alone they do for scaled channels in affine groups of 64 and 128. bench/results/quantization.json has the table."""
    errors = {method: quantization.error(kind, form, method, seed=0) for method in quantization.METHODS}
    assert errors["balanced"] <= bounds.ROTATED_ERROR * errors["none"], errors
    if form[0] == "affine" and form[2] > 32 and kind == "scaled":
        assert max(errors["rotated"], errors["signed"]) <= bounds.ROTATED_ERROR * errors["none"], errors


@pytest.mark.parametrize("sample", [mx.zeros((2, 3, 64)), mx.zeros((1, 2, 0, 64)), [1.0]], ids=("axes", "none", "list"))
def test_other_samples_are_refused(sample):
    with pytest.raises(ValueError, match=r"mlx_flash\.Balance\] sample: expected keys or values"):
        Balance(sample)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads a multiple of the sample's 2"):
        Balance(mx.ones((1, 2, 3, 64))).queries(mx.ones((1, 3, 3, 64)))


@pytest.mark.parametrize("dimension", [0, 3, 36, 72, 100, 16384, 64.0, True, "64"])
def test_other_dimensions_are_refused(dimension):
    with pytest.raises(ValueError, match=r"mlx_flash\.Rotation\] dimension: expected m \* 2\^k"):
        Rotation(dimension)


@pytest.mark.parametrize("key", [3, np.array([0, 1], np.uint32), mx.zeros((2,))], ids=str)
def test_other_keys_are_refused(key):
    for make in (lambda: Rotation(64, key), lambda: Balance(mx.ones((1, 2, 3, 64)), key)):
        with pytest.raises(ValueError, match=r"mlx_flash\.Rotation\] key: expected an mx\.random key"):
            make()


def test_arrays_of_another_dimension_are_refused():
    for rotate in (Rotation(64), Rotation(64).undo, Rotation(80).undo):
        with pytest.raises(ValueError, match="a last axis of"):
            rotate(mx.zeros((2, 3)))
