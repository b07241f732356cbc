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
from mlx_flash.hadamard import Rotation

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
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


@pytest.mark.parametrize("group_size", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_four_bits_with_outliers(group_size):
    """One channel in a hundred 10 to 30 times larger: rotated, 4 bits cost at most 0.6 of the error, on the mean of
    two problems; bench/results/quantization.json has all formats."""
    form = ("affine", 4, group_size)
    means = {
        name: np.mean([quantization.error(form, rotation, seed) for seed in range(2)])
        for name, rotation in quantization.ROTATIONS.items()
    }
    assert max(means["hadamard"], means["signed"]) <= bounds.ROTATED_ERROR * means["none"], means


@pytest.mark.parametrize("dimension", [0, 3, 36, 72, 100, 16384, 64.0, True, "64"])
def test_other_dimensions_are_refused(dimension):
    with pytest.raises(ValueError, match=r"mlx_flash\.Rotation\] dimension: expected m \* 2\^k"):
        Rotation(dimension)


def test_arrays_of_another_dimension_are_refused():
    for rotate in (Rotation(64), Rotation(64).undo, Rotation(80).undo):
        with pytest.raises(ValueError, match="a last axis of"):
            rotate(mx.zeros((2, 3)))
