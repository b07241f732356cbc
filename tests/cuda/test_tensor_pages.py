"""Lengths, pages, shards and latent attention on the tensor-core layers, on the simulator: as of keys side by side."""

import bounds
import feature_cases
import mlx.core as mx
import pools
import pytest
import shards
from cases import Case
from feature_cases import Variant
from tensor_rows import LAYERS, small_rows

from mlx_flash import attention, use_backend
from mlx_flash.simulator import mode

pytestmark = pytest.mark.simulator

KEYS = [150, 17, 64]
DTYPES = {"mma": "float16", "wgmma": "bfloat16"}


@pytest.fixture(params=[layer for layer in LAYERS if layer[1] == "narrow"], ids="-".join)
def layer(request):
    with mode("check"), small_rows(*request.param):
        yield request.param[0]


def near(got, want, dtype: str):
    unit = bounds.ulp(float(mx.abs(want).max()), dtype)
    assert float(mx.abs(got - want).max()) <= bounds.REORDERED * unit


def test_lengths_and_gradients(layer):
    feature_cases.check(
        Variant(Case(45, 70, 24, DTYPES[layer], group=2, key_heads=2, batch=2), ("causal", "lengths", "sinks")),
        stored_output=True,
    )


@pytest.mark.parametrize("queries, page", [(2, 64), (2, 8), (40, 64), (40, 24)])
def test_pages(layer, queries, page):
    case = Case(queries, 150, 40, DTYPES[layer], group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    table = pools.table_of(KEYS, page)
    k, v = (pools.pool_of(arrays[name], table, KEYS, page, by_rows=name == "v") for name in "kv")
    options = {"lengths": mx.array(KEYS), "causal": True, "window": (90, 0)}
    got = attention(arrays["q"], k, v, pages=table, **options)
    with use_backend("reference"):
        want = attention(*(arrays[name] for name in "qkv"), **options)
    near(got, want, case.dtype)


@pytest.mark.parametrize("queries", [2, 40])
def test_columns_of_keys_are_values(layer, queries):
    arrays = Case(queries, 70, 40, DTYPES[layer], group=3, batch=2).arrays()
    got = attention(arrays["q"], arrays["k"], value_dim=24, causal=True)
    with use_backend("reference"):
        want = attention(arrays["q"], arrays["k"], value_dim=24, causal=True)
    near(got, want, DTYPES[layer])


@pytest.mark.parametrize("sizes", [(128, 256, 64), (48, 48, 0), (140, 156, 9)], ids=str)
def test_sequences_in_shards_have_the_bits_of_those_in_order(layer, sizes):
    """Pieces of whole blocks, shorter than a block, and of odd length."""
    queries, keys, first = sizes
    want, got = shards.results(queries, keys, (2, 2), DTYPES[layer], first=first, causal=True)
    assert got == want


def test_a_kernel_owns_keys_of_two_pieces(layer):
    want, got = shards.of_two_pieces(256, DTYPES[layer], alibi_slopes=mx.array([0.5, 0.1, 0.02, 0.3]))
    assert got == want


def test_an_array_mask_over_shards(layer):
    mask = mx.arange(128)[:, None] // 32 != mx.arange(256) // 64
    want, got = shards.results(128, 256, (2, 2), DTYPES[layer], mask=mask[None, None])
    assert got == want
