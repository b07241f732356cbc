"""Decoding on tensor cores, on the simulator: what test_decode.py asks of the kernels for Apple GPUs.

A layer stands for its GPU here ("wgmma" for Hopper): both decode by mma. What narrow and wide are, and with which
blocks these kernels run, tensor_rows.py says.
"""

import itertools
from dataclasses import replace
from unittest.mock import patch

import decoding_checks
import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from decoding_checks import shaped
from launches import launched
from tensor_rows import FAMILY, LAYERS, forget, small_rows
from views import columns_of_fused, every_second_column, odd_start, strided_columns

from mlx_flash import BlockMask, attention, use_backend
from mlx_flash.kernels import split_kv as decoding
from mlx_flash.kernels.config import MIXED
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup
from mlx_flash.kernels.nvidia import TENSOR_TABLE
from mlx_flash.problem.kinds import DECODE
from mlx_flash.simulator import mode, profile, schedule

pytestmark = pytest.mark.simulator

NARROW = [layer for layer in LAYERS if layer[1] == "narrow"]
DTYPES = {"mma": "float16", "wgmma": "bfloat16"}
GATHERED = [columns_of_fused, odd_start, strided_columns, every_second_column]


@pytest.fixture(params=LAYERS, ids="-".join)
def layer(request):
    """The name of a layer whose kernels run inside the test, in parts however few the keys; nothing the simulator's
    checks find passes."""
    with mode("check"), patch.object(decoding, "unsplit_keys", lambda *_: 0), small_rows(*request.param):
        yield request.param[0]


only_narrow = pytest.mark.parametrize("layer", NARROW, ids="-".join, indirect=True)


def rows_of_the_table() -> list:
    """(family, index, Case) for each row, twice: q and k as wide as it serves, and v."""
    found, turns = [], itertools.cycle([(8, 8), (12, 1), (5, 5), (2, 8)])
    for (step, _, family), rows in TENSOR_TABLE.items():
        for index, row in enumerate(rows if step is DECODE and family in FAMILIES else ()):
            for widths in ((row.max_head, 40), (24, row.max_head)):
                # Wide rows of q lie in threadgroup memory.
                group, queries = (2, 8) if widths[0] == 256 else next(turns)
                dtype = ("float16", "bfloat16")[len(found) % 2]
                case = Case(queries, 643, widths[0], dtype, len(found) % 4 < 2, group, value_dim=widths[1])
                found.append((family, index, case))
    return found


@pytest.mark.parametrize("family, index, case", rows_of_the_table(), ids=str)
def test_every_row_of_the_table(family, index, case):
    rows = TENSOR_TABLE[DECODE, MIXED, family]
    assert lookup(DECODE, case.dtype, FAMILIES[family], max(case.head_dim, case.value_dim)) is rows[index]
    in_parts = patch.object(decoding, "unsplit_keys", lambda *_: 0)
    with in_parts, mode("check"), use_backend("simulator", family):
        forget()
        decoding_checks.check(case)
    forget()


@only_narrow
def test_groups_queries_and_keys(layer):
    """Few kernels, many shapes: ends within a block, one to four simdgroups, several blocks of packed rows."""
    for case in decoding_checks.LENGTH_CASES:
        decoding_checks.check(replace(case, dtype=DTYPES[layer]))


ARRAY, BLOCKS = (decoding_checks.VARIANTS[name] for name in ("array-mask", "block-mask"))
VARIANTS = {
    ("mma", "narrow"): (ARRAY, decoding_checks.VARIANTS["bool-by-head"]),
    ("mma", "wide"): (BLOCKS,),
    ("wgmma", "narrow"): (BLOCKS,),
    ("wgmma", "wide"): (replace(ARRAY, window=(30, 0)),),
}


@pytest.mark.parametrize(
    "layer, variant", [(layer, variant) for layer in LAYERS for variant in VARIANTS[layer]], ids=str, indirect=["layer"]
)
def test_features_and_their_gradients(layer, variant):
    feature_cases.check(feature_cases.with_dtype(variant, DTYPES[layer]), stored_output=True)


@pytest.mark.parametrize("garbage", [mx.nan, mx.inf])
@only_narrow
def test_garbage_in_masked_keys(layer, garbage):
    decoding_checks.check_hidden_parts(getattr(mx, DTYPES[layer]), garbage)


@pytest.mark.parametrize("name", ["bool", "additive", "blocks", "segments", "window"])
@only_narrow
def test_fully_masked_rows(layer, name):
    decoding_checks.check_blind_rows(name, getattr(mx, DTYPES[layer]))


def counted(arrays, recorded=profile, **options) -> list[dict]:
    with recorded() as found:
        mx.eval(attention(*arrays, **options))
    return found.launches


def test_kernels_that_ran(layer):
    """One simdgroup for 16 packed rows, or two that share blocks of 64 keys, and the one that copies. float32 and wide
    heads have none that copies."""
    few = 96 if lookup(DECODE, "float16", FAMILIES[FAMILY[layer]], 16).traversal == 64 else 64
    for group, queries, threads in ((1, 1, few), (4, 4, few), (8, 3, 96), (12, 8, 96)):
        decode, combine = counted(shaped(group, queries, 600, dtype=mx.float16), launched)
        assert "_decode_" in decode["kernel"] and "_mma" in decode["kernel"] and "_combine_" in combine["kernel"]
        assert decode["threads"] == threads * decode["threadgroups"]
    for arrays in (shaped(4, 1, 300), shaped(4, 1, 300, 264, mx.float16)):
        (decode,) = counted(arrays, launched)
        assert "_decode_" in decode["kernel"] and "_mma" not in decode["kernel"]


@pytest.mark.parametrize("group, queries", [(1, 1), (4, 1), (12, 2), (12, 8)])
def test_keys_and_values_are_read_once_a_block_of_rows(layer, group, queries):
    arrays = shaped(group, queries, 600, 64, mx.float16)
    for name in "KV":
        assert counted(arrays)[0]["buffers"][name]["loaded"] == -(-group * queries // 32) * arrays[1].nbytes


@only_narrow
def test_only_keys_in_reach_are_copied(layer):
    """A window's keys; of a block mask the blocks that some head of the group sees, and not a key beyond a border."""
    arrays, row = shaped(4, 2, 600, dtype=mx.float16), 2 * 16  # bytes of a key, or value
    keep = np.zeros((8, 2, 600), bool)
    keep[1, :, 500:510], keep[6, :, 599:] = True, True
    mask = BlockMask.from_array(keep, block=32)
    calls = (
        ({"window": (100, 0)}, 2 * 102),
        ({"mask": mask}, (512 - 480) + (600 - 576)),
        ({"mask": mask, "window": (100, 0)}, (512 - 498) + (600 - 576)),
    )
    for options, keys in calls:
        buffers = counted(arrays, **options)[0]["buffers"]
        assert [buffers[name]["loaded"] for name in "KV"] == [keys * row] * 2, options


def test_parts_make_no_difference(layer):
    """Many parts, few, and one: as accurate, and launches of their own."""
    case = Case(3, 1301, 40, DTYPES[layer], True, 4, key_heads=2)
    for most, kernels in ((128, 2), (2, 2), (1, 1)):
        with patch.object(decoding, "MOST", most):
            forget()
            decoding_checks.check(case)
            launches = counted([case.arrays()[name] for name in "qkv"], launched, causal=True)
            assert len(launches) == kernels
    forget()


def test_every_schedule_gives_the_same_bits(layer):
    arrays = shaped(12, 3, 600, 40, getattr(mx, DTYPES[layer]))
    orders = (("forward", 0), ("reversed", 0), ("random", 1), ("random", 2))
    found = []
    for order in orders:
        with schedule(*order):
            found.append([bits(array) for array in attention(*arrays, causal=True, return_lse=True)])
    assert found == found[:1] * len(orders)


def test_a_cache_is_read_in_place(layer):
    """A slice of a longer buffer, whose other tokens are NaN, and rows that begin at no multiple of 16 bytes."""
    q, k, v = shaped(4, 1, 300, 40, getattr(mx, DTYPES[layer]))
    want = [bits(array) for array in attention(q, k, v, return_lse=True)]
    for columns in (40, 41):
        buffers = [mx.full((1, 2, 512, columns), mx.nan, q.dtype) for _ in range(2)]
        for buffer, array in zip(buffers, (k, v)):
            buffer[:, :, :300, :40] = array
        cache = [buffer[:, :, :300, :40] for buffer in buffers]
        assert [bits(array) for array in attention(q, *cache, return_lse=True)] == want


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("view", GATHERED, ids=lambda view: view.__name__)
def test_views_equal_their_copies(layer, view, queries):
    """Arrays of all layouts come as they are, and columns that are not neighbours are gathered."""
    arrays = shaped(4, queries, 300, 40, getattr(mx, DTYPES[layer]))
    want = bits(attention(*arrays))
    for number in range(3):
        viewed = [view(array) if place == number else array for place, array in enumerate(arrays)]
        for _ in range(2):  # the second call takes the short way
            assert bits(attention(*viewed)) == want
