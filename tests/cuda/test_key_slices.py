"""Consumer warps that share each block of keys where a threadgroup decodes few rows, on the simulator."""

from dataclasses import replace
from unittest.mock import patch

import decoding_checks
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, expected
from tensor_rows import small_rows

from mlx_flash import BlockMask, attention
from mlx_flash.kernels import split_kv
from mlx_flash.simulator import mode, schedule

pytestmark = pytest.mark.simulator

NARROW, WIDE = 40, 128  # columns, in one panel and in two
FEW_ROWS = Case(2, 150, NARROW, "float16", group=4, key_heads=2)


@pytest.fixture(autouse=True)
def slices():
    """Two slices of 32 keys in each block, in parts however few the keys; the simulator's checks are on."""
    with mode("check"), patch.object(split_kv, "unsplit_keys", lambda *_: 0), small_rows("mma", "narrow"):
        yield


@pytest.mark.parametrize("columns", [NARROW, WIDE])
def test_keys_that_end_in_each_slice(columns):
    for keys in (1, 31, 32, 33, 64, 65, 97, 130, 601):
        decoding_checks.check(replace(FEW_ROWS, key_length=keys, head_dim=columns, causal=keys > 2))


@pytest.mark.parametrize("name", ["segments", "mask"])
@pytest.mark.parametrize("first", [20, 32, 33, 50, 100])
def test_keys_that_begin_in_each_slice(first, name):
    """A block is visited if any slice of it sees a key, by segments and by the map of an array mask."""
    arrays, seen = FEW_ROWS.arrays(), mx.arange(150) >= first
    options = {"segments": (mx.ones((2,), mx.int32), seen.astype(mx.int32)), "mask": seen}
    got = attention(*(arrays[operand] for operand in "qkv"), scale=FEW_ROWS.scale, **{name: options[name]})
    alone = arrays | {operand: arrays[operand][:, :, first:] for operand in "kv"}
    expected(replace(FEW_ROWS, key_length=150 - first), alone).check(O=got)


def test_visits_that_end_with_the_first_slice():
    """Blocks of a mask are as long as a slice, so that the other one has no keys."""
    q, k, v = (FEW_ROWS.arrays()[name] for name in "qkv")
    keep = np.ones((2, 150), bool)
    keep[:, 64:96], keep[0, 140:] = False, False
    got = attention(q, k, v, mask=BlockMask.from_array(keep, block=32))
    want = attention(q, k, v, mask=mx.array(keep))
    assert float(mx.abs(got - want).max()) <= 2 * 2**-11 * float(mx.abs(want).max())


@pytest.mark.parametrize("garbage", [mx.nan, mx.inf])
def test_garbage_in_the_last_columns_of_a_hidden_key(garbage):
    """Each slice searches all columns of its own keys."""
    q, k, v = decoding_checks.shaped(4, 1, 150, WIDE, mx.float16)
    for hidden in (10, 40, 140):
        keep = mx.arange(150) != hidden
        spoiled = mx.where(keep[:, None] | (mx.arange(WIDE) < 100), v, garbage).astype(v.dtype)
        assert bits(attention(q, k, spoiled, mask=keep)) == bits(attention(q, k, v, mask=keep)), hidden


def test_every_schedule_gives_the_same_bits():
    arrays, found = decoding_checks.shaped(4, 2, 600, WIDE, mx.float16), []
    for order in (("forward", 0), ("reversed", 0), ("random", 1), ("random", 2)):
        with schedule(*order):
            found.append([bits(array) for array in attention(*arrays, causal=True, return_lse=True)])
    assert found == found[:1] * 4
