"""The map of an array mask: kernels of tensor cores leave out what it hides; their bits are the same without it."""

from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from launches import launched
from tensor_rows import BLOCKS, LAYERS, OTHER_BLOCKS, small_rows

from mlx_flash import Visible, attention, use_backend
from mlx_flash.kernels import mask_map
from mlx_flash.problem.kinds import DECODE
from mlx_flash.simulator import mode, profile

pytestmark = pytest.mark.simulator

WIDTH, LENGTH = 64, 192
DTYPES = {"mma": mx.float16, "wgmma": mx.bfloat16}
narrow = pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer[1] == "narrow"], ids="-".join)


def drawn(dtype, *shapes) -> list[mx.array]:
    draw = np.random.default_rng(5)
    return [mx.array(draw.standard_normal(shape).astype(np.float32)).astype(dtype) for shape in shapes]


def as_mask(keep: np.ndarray, dtype, additive: bool) -> mx.array:
    return mx.array(np.where(keep, 0, -np.inf)).astype(dtype) if additive else mx.array(keep)


def loaded(profiled, kernel: str, operand: str) -> int:
    (found,) = [launch for launch in profiled.launches if f"_{kernel}_" in launch["kernel"]]
    return found["buffers"][operand]["loaded"]


@narrow
def test_hidden_blocks_are_not_copied(layer):
    """Blocks of 64 along the diagonal, forward and in all gradients: of each threadgroup's rows, the blocks of which
    some pair is visible."""
    dtype, (rows, columns), ids = DTYPES[layer[0]], BLOCKS[layer[0]], np.arange(LENGTH) // 64
    keep = ids[:, None] == ids
    mask = as_mask(keep, dtype, layer[0] == "mma")
    q, k, v, d_o = drawn(dtype, *[(1, 2, LENGTH, WIDTH)] * 4)
    with mode("check"), small_rows(*layer), profile() as profiled:
        mx.eval(mx.vjp(lambda q, k, v: attention(q, k, v, mask=mask), [q, k, v], [d_o]))
    visited = int(keep.reshape(LENGTH // rows, rows, LENGTH // columns, columns).any((1, 3)).sum())
    taken = 2 * visited * columns * WIDTH * 2  # by two heads, of two bytes
    assert [loaded(profiled, "forward", name) for name in "KV"] == [taken] * 2
    queries = "backward_query_delta"
    assert [loaded(profiled, queries, name) for name in "KV"] == [taken] * 2
    assert loaded(profiled, "backward_key_value", "Q") == taken


@narrow
def test_padding_on_the_left_is_not_copied(layer):
    """Decoding of a batch whose prompts have lengths of their own."""
    dtype, keys = DTYPES[layer[0]], (16, 128, 500)
    keep = np.arange(512) >= 512 - np.array(keys)[:, None]
    q, k, v = drawn(dtype, (3, 8, 1, WIDTH), *[(3, 2, 512, WIDTH)] * 2)
    with mode("check"), small_rows(*layer), profile() as profiled:
        mx.eval(attention(q, k, v, mask=mx.array(keep)[:, None, None]))
    block = OTHER_BLOCKS["mma", "narrow", DECODE][1]  # both layers decode by mma
    visited = 2 * sum(-(-number // block) * block for number in keys)  # rows of two key heads
    assert [loaded(profiled, "decode", name) for name in "KV"] == [visited * WIDTH * 2] * 2


SHAPES = [(2, 4, 70, 150), (1, 4, 1, 150), (2, 1, 70, 1), (70, 150)]


# Bool masks on one layer, masks that are added on the other: kernels are compiled for each.
@narrow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits_as_without_a_map(layer, shape):
    """Hidden, full and mixed blocks in masks of every shape, with few queries and with many."""
    dtype, additive, draw = DTYPES[layer[0]], layer[0] == "mma", np.random.default_rng(3)
    blocks = draw.choice([0.0, 0.5, 1.0], [-(-extent // 32) for extent in shape[-2:]])
    chances = blocks.repeat(32, 0).repeat(32, 1)[: shape[-2], : shape[-1]]
    mask = as_mask(draw.random(shape) < chances, dtype, additive)
    q, k, v, d_o = drawn(dtype, (2, 4, 70, WIDTH), *[(2, 2, 150, WIDTH)] * 2, (2, 4, 70, WIDTH))
    few = mask[..., :5, :] if mask.shape[-2] > 1 else mask

    def results() -> list:
        made, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, mask=mask), [q, k, v], [d_o])
        return [bits(one) for one in (*made, *gradients, attention(q[:, :, :5], k, v, mask=few))]

    with small_rows(*layer):
        with launched() as profiled:
            mapped = results()
        assert sum("mask_map" in launch["kernel"] for launch in profiled.launches) == 4
        with patch.multiple(mask_map, LEAST_PAIRS=2**40, LEAST_ELEMENTS=2**40), launched() as profiled:
            unmapped = results()
        assert not any("mask_map" in launch["kernel"] for launch in profiled.launches)
    assert mapped == unmapped


@narrow
def test_a_text_beside_a_map(layer):
    """A mask of text has blocks of its own: with few queries and many, forward and in gradients, a call has the bits of
    one whose array says the same."""
    dtype, additive, draw = DTYPES[layer[0]], layer[0] == "mma", np.random.default_rng(4)
    keep = draw.random((70, 150)) < draw.choice([0.0, 0.5, 1.0], (3, 5)).repeat(32, 0).repeat(32, 1)[:70, :150]
    text = Visible("(q - k) % 3 == 0 || k < p", p=40)
    distances = np.arange(70)[:, None] + 80 - np.arange(150)
    said = (distances % 3 == 0) | (np.arange(150) < 40)
    q, k, v, d_o = drawn(dtype, (2, 4, 70, WIDTH), *[(2, 2, 150, WIDTH)] * 2, (2, 4, 70, WIDTH))

    def results(keep: np.ndarray, **more) -> list:
        mask = as_mask(keep, dtype, additive)
        made, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, mask=mask, **more), [q, k, v], [d_o])
        few = attention(q[:, :, -5:], k, v, mask=mask[-5:], **more)
        return [bits(one) for one in (*made, *gradients, few)]

    with small_rows(*layer):
        assert results(keep, visible=text) == results(keep & said)


@pytest.mark.parametrize("family, queries", [("apple9", 40), ("sm90", 4)])
def test_kernels_without_a_map(family, queries):
    """Kernels of Apple GPUs, and those of NVIDIA's without tensor cores, as few queries in float32 take, read the mask
    themselves."""
    q, k, v = drawn(mx.float32, (1, 1, queries, 16), *[(1, 1, 40, 16)] * 2)
    maps = patch.multiple(mask_map, LEAST_PAIRS=0, LEAST_ELEMENTS=0)
    with maps, use_backend("simulator", family), launched() as profiled:
        mx.eval(attention(q, k, v, mask=mx.ones((queries, 40), mx.bool_)))
    assert ["mask_map" in launch["kernel"] for launch in profiled.launches] == [False]
