"""Results of tensor cores lie in memory with the heads of a row side by side, so that models join them as they are."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case, expected
from tensor_rows import FLOAT32_LAYERS, LAYERS, SHARED, forget, small_rows
from watched import kinds, watched

from mlx_flash import attention, vmap
from mlx_flash.kernels import tile_layers
from mlx_flash.kernels.source import build
from mlx_flash.simulator import mode

pytestmark = pytest.mark.simulator

ALL = LAYERS + SHARED + FLOAT32_LAYERS
RESULTS = ("O", "dQ", "dK", "dV")


@pytest.fixture(params=ALL, ids="-".join)
def layer(request):
    """(the layer, the dtype of its operands); nothing that the simulator's checks find passes."""
    with mode("check"), small_rows(*request.param):
        yield request.param[0], "float32" if request.param in FLOAT32_LAYERS else "float16"


def case_of(dtype: str) -> Case:
    """Lengths that end within blocks; 104 columns are two parts of 64 where threadgroups share an accumulator."""
    return Case(41, 73, 40, dtype, causal=True, value_dim=104, group=2, key_heads=2, batch=2)


def results(arrays: dict[str, mx.array], **options) -> dict[str, mx.array]:
    def call(q, k, v):
        return attention(q, k, v, causal=True, **options)

    (o,), gradients = mx.vjp(call, [arrays[name] for name in "qkv"], [arrays["d_o"]])
    return dict(zip(RESULTS, (o, *gradients)))


def lie_between(array: mx.array) -> bool:
    """Whether the array is a view of one that is row-contiguous as [B, L, H, D]."""
    batch, heads, rows, columns = array.shape
    size = array.dtype.size
    own = (rows * heads * columns * size, columns * size, heads * columns * size, size)
    return np.asarray(memoryview(array)).strides == own


def test_heads_lie_between_the_rows(layer):
    _, dtype = layer
    case = case_of(dtype)
    got = results(case.arrays())
    assert {name: lie_between(array) for name, array in got.items()} == dict.fromkeys(RESULTS, True)
    expected(case, case.arrays()).check(**got)


def test_the_bits_of_the_other_layout(layer, monkeypatch):
    name, dtype = layer
    arrays = case_of(dtype).arrays()
    got = results(arrays)
    monkeypatch.setitem(tile_layers.LAYERS, name, replace(tile_layers.LAYERS[name], heads_between=False))
    forget()
    build.cache_clear()
    want = results(arrays)
    build.cache_clear()
    assert not any(map(lie_between, want.values()))
    assert [name for name in RESULTS if bits(got[name]) != bits(want[name])] == []


@pytest.mark.parametrize("layer", [("mma", "narrow"), ("wgmma", "narrow")], ids="-".join, indirect=True)
@pytest.mark.parametrize("heads", [1, 2], ids=["turns", "together"])
def test_gradients_by_five_products_lie_so_too(layer, heads):
    """Where the heads take turns, their results are copied into one array, which lies as those of one launch do."""
    arrays = case_of("float16").arrays()
    kept = heads * 2 * 2 * 2 * 2 * 48 * 80  # P and dS of two batch entries and two query heads for each key head
    with watched() as ran:
        got = results(arrays, scratch=kept)
    assert kinds(ran).count("backward_query_keeping") == 2 // heads
    assert {name: lie_between(array) for name, array in got.items()} == dict.fromkeys(RESULTS, True)
    want = results(arrays, scratch=0)
    assert [name for name in RESULTS if bits(got[name]) != bits(want[name])] == []


@pytest.mark.parametrize("layer", [("wgmma", "wide"), ("tf32", "narrow")], ids="-".join, indirect=True)
def test_a_result_is_an_operand(layer):
    """Attention of attention, under checkpoint and vmap too: results and cotangents are read as they lie."""
    _, dtype = layer
    case = Case(41, 41, 40, dtype, key_heads=2, batch=2)
    q, k, v, d_o = case.arrays().values()

    def twice(between, q, k, v):
        return attention(between(attention(q, k, v, causal=True)), k, v)

    def found(function):
        (o,), gradients = mx.vjp(function, [q, k, v], [d_o])
        return [bits(one) for one in (o, *gradients)]

    want = found(lambda *qkv: twice(mx.contiguous, *qkv))
    assert found(lambda *qkv: twice(lambda o: o, *qkv)) == want
    assert found(mx.checkpoint(lambda *qkv: twice(lambda o: o, *qkv))) == want
    mapped = vmap(lambda *qkv: twice(lambda o: o, *qkv))(*(mx.stack([one, one]) for one in (q, k, v)))
    assert bits(mapped[1]) == want[0]
