"""Every operand is read by its own strides and batch entries, never by those of another operand.

The operands of one call usually have one layout. Here each has a layout that no other has, and each batch entry has
masks and segments of its own.
"""

from dataclasses import replace

import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant
from machines import across_backends
from mlx.utils import tree_map

from mlx_flash import BlockMask, attention, quantized_attention

PREFILL, TOKENS = 37, 3  # queries: the forward and backward kernels, the decoding kernel
KEYS = 133
HEADS = 16  # more numbers of heads than MLX passes in the constant address space
CASE = Case(PREFILL, KEYS, 16, group=4, key_heads=4, batch=2)
OPERANDS = ("bool", "additive", "blocks", "alibi", "sinks", "segments", "causal")


def garbage(array: mx.array):
    """A number that surrounds an array in its buffer and would change every result."""
    return True if array.dtype == mx.bool_ else 3 if array.dtype in (mx.int32, mx.uint32, mx.uint8) else np.nan


def apart(array: mx.array, number: int) -> mx.array:
    """The array as a view whose strides, of every axis, no other number has; the last axis stays contiguous."""
    extents = [extent + number + 2 * axis for axis, extent in enumerate(array.shape)]
    buffer = mx.full(extents, garbage(array), array.dtype)
    place = tuple(slice(extents[axis] - extent, None) for axis, extent in enumerate(array.shape[:-1]))
    place = (*place, slice(0, array.shape[-1]))
    buffer[place] = array
    mx.eval(buffer)
    return buffer[place]


def all_apart(arrays: dict, first: int = 1) -> dict:
    return {name: apart(array, first + number) for number, (name, array) in enumerate(arrays.items())}


def leaves_apart(arguments: dict) -> dict:
    numbers = iter(range(11, 99))
    return tree_map(lambda leaf: apart(leaf, next(numbers)) if isinstance(leaf, mx.array) else leaf, arguments)


def wrong(got: dict, want: dict) -> list[str]:
    return [name for name in want if bits(got[name]) != bits(want[name])]


@pytest.mark.parametrize("backend, name", across_backends(OPERANDS), indirect=["backend"])
@pytest.mark.parametrize("queries", [PREFILL, TOKENS])
def test_every_operand_by_its_own_strides(backend, name, queries):
    """Forward and backward; q, k, v, the cotangent and the option's arrays: the bits of contiguous copies."""
    variant = Variant(replace(CASE, query_length=queries), (name,))
    arrays, (arguments, _) = variant.case.arrays(), feature_cases.build(variant)
    want = feature_cases.backward(variant, arrays, arguments)
    got = feature_cases.backward(variant, all_apart(arrays), leaves_apart(arguments))
    assert wrong(got, want) == []


SMALL_VIEWS = {
    "every-second": lambda array: mx.stack([array, mx.full(array.shape, mx.nan, array.dtype)], 1).flatten()[::2],
    "reversed": lambda array: mx.contiguous(array[::-1])[::-1],
    "tail": lambda array: mx.concatenate([mx.full((5,), mx.nan, array.dtype), array])[5:],
    "one-for-all": lambda array: mx.broadcast_to(array[3:4], array.shape),
    "column": lambda array: mx.contiguous(mx.stack([array] * 3, 1))[:, 1],
}


@pytest.mark.parametrize("backend, view", across_backends(SMALL_VIEWS), indirect=["backend"])
@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
@pytest.mark.parametrize("queries", [PREFILL, TOKENS])
def test_views_of_numbers_of_heads(backend, view, name, queries):
    """16 of them, which kernels read where they lie."""
    variant = Variant(replace(CASE, query_length=queries, batch=1), ())
    assert variant.shape[1] == HEADS
    numbers = mx.array(np.linspace(0.05, 0.8, HEADS, dtype=np.float32))
    viewed = SMALL_VIEWS[view](numbers)
    want = feature_cases.backward(variant, variant.case.arrays(), {name: mx.array(np.array(viewed))})
    got = feature_cases.backward(variant, variant.case.arrays(), {name: viewed})
    assert wrong(got, want) == []


def of_each_entry(name: str, case: Case) -> dict:
    """An option whose batch entries differ in every block of 32."""
    draw, shape = np.random.default_rng(7), (case.batch, case.group * case.key_heads, case.query_length, KEYS)
    keep = draw.random(shape) < np.array([0.2, 0.9])[:, None, None, None]
    keep[1, :, :, :64] = False
    return {
        "bool": lambda: {"mask": mx.array(keep)},
        "bool-shared-by-heads": lambda: {"mask": mx.array(keep[:, :1])},
        "bool-by-key": lambda: {"mask": mx.array(keep[:, :1, :1])},
        "additive": lambda: {"mask": mx.array(np.where(keep, draw.standard_normal(shape), -np.inf), mx.float32)},
        "blocks": lambda: {"mask": BlockMask.from_array(keep, block=32)},
        "blocks-shared-by-heads": lambda: {"mask": BlockMask.from_array(keep[:, :1], block=32)},
        "segments-and-causal": lambda: {"causal": True, "segments": tuple(
            mx.array(np.sort(draw.integers(0, 3, (2, length)), -1)) for length in (case.query_length, KEYS)
        )},
        "segments": lambda: {"segments": tuple(
            mx.array(np.sort(draw.integers(0, 3, (2, length)), -1)) for length in (case.query_length, KEYS)
        )},
        "queries-segments": lambda: {"segments": (
            mx.array(np.sort(draw.integers(0, 3, (2, case.query_length)), -1)), mx.array(np.arange(KEYS) // 100)
        )},
    }[name]()  # fmt: skip


ENTRIES = (
    "bool", "bool-shared-by-heads", "bool-by-key", "additive", "blocks", "blocks-shared-by-heads", "segments",
    "queries-segments", "segments-and-causal",
)  # fmt: skip


def entry(value, number: int):
    """One batch entry of an option's value, still with its batch axis."""
    if isinstance(value, tuple):
        return tuple(part[number : number + 1] if part.ndim == 2 else part for part in value)
    if isinstance(value, bool):
        return value
    if isinstance(value, BlockMask):
        return BlockMask((1, *value.shape[1:]), value.block, value.map[number : number + 1], value.bitmaps)
    return value[number : number + 1]


@pytest.mark.parametrize("backend, name", across_backends(ENTRIES), indirect=["backend"])
@pytest.mark.parametrize("queries", [PREFILL, TOKENS])
def test_every_batch_entry_has_its_own_option(backend, name, queries):
    """Forward and backward: an entry of the batch is the entry alone."""
    case = replace(CASE, query_length=queries, group=2, key_heads=2)
    arrays, options = case.arrays(), of_each_entry(name, case)
    together = feature_cases.backward(Variant(case, ()), arrays, options)
    for number in range(case.batch):
        own = {key: array[number : number + 1] for key, array in arrays.items()}
        alone = feature_cases.backward(
            Variant(replace(case, batch=1), ()), own, {key: entry(value, number) for key, value in options.items()}
        )
        assert wrong({key: array[number : number + 1] for key, array in together.items()}, alone) == [], number


FEW = {"bool": "j", "additive": "j", "alibi": "", "sinks": "", "segments": "", "blocks": ""}  # axes of the mask


@pytest.mark.parametrize("backend, name", across_backends(FEW), indirect=["backend"])
@pytest.mark.parametrize("lengths", [(9, 5), (7, 3), (3, 5), (1, 1)], ids=str)
def test_options_of_few_elements(backend, name, lengths):
    """MLX passes arrays of less than 8 elements in another address space than larger ones."""
    feature_cases.check(Variant(Case(*lengths, 16, group=2), (name,), FEW[name]))


@pytest.mark.parametrize("backend, queries", across_backends([PREFILL, TOKENS]), indirect=["backend"])
def test_ids_that_lie_apart(backend, queries):
    """The ids are every second number of an array: kernels know where a batch entry starts, and read its ids one by
    one."""
    variant = Variant(replace(CASE, query_length=queries), ("segments",))
    arrays, (arguments, _) = variant.case.arrays(), feature_cases.build(variant)
    want = feature_cases.backward(variant, arrays, arguments)
    viewed = tuple(
        mx.stack([ids, mx.full(ids.shape, 9, ids.dtype)], 2).flatten(1)[:, ::2] for ids in arguments["segments"]
    )
    assert wrong(feature_cases.backward(variant, arrays, {"segments": viewed}), want) == []


FORMS = {
    "affine": {"mode": "affine", "bits": 4, "group_size": 32},
    "affine-8": {"mode": "affine", "bits": 8, "group_size": 64},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
}


@pytest.mark.parametrize("backend, name", across_backends(FORMS), indirect=["backend"])
@pytest.mark.parametrize("queries", [PREFILL, TOKENS])
def test_every_part_of_a_quantized_cache_by_its_own_strides(backend, name, queries):
    """Codes, scales and biases of keys and of values, each from a cache of another length."""
    form = FORMS[name]
    case = Case(queries, KEYS, 64, "float16", True, group=2, key_heads=2, batch=2)
    arrays = case.arrays()
    parts = {key: mx.quantize(arrays[key], **form) for key in "kv"}
    want = quantized_attention(arrays["q"], parts["k"], parts["v"], causal=True, **form)
    numbers = iter(range(1, 99))
    apart_parts = {key: tuple(apart(part, next(numbers)) for part in parts[key]) for key in "kv"}
    got = quantized_attention(apart(arrays["q"], 50), apart_parts["k"], apart_parts["v"], causal=True, **form)
    assert bits(got) == bits(want)


@pytest.mark.parametrize("backend, name", across_backends(FORMS), indirect=["backend"])
def test_a_cache_of_one_key(backend, name):
    """The scales have less than the 8 bytes from which MLX passes arrays in device memory. The result is V."""
    case = Case(TOKENS, 1, 64, "float16", group=2, key_heads=1)
    arrays, form = case.arrays(), FORMS[name]
    k, v = (mx.quantize(arrays[key], **form) for key in "kv")
    assert k[1].nbytes < 8
    got = quantized_attention(arrays["q"], k, v, **form)
    exact = [part.astype(mx.float32) if part.dtype == mx.float16 else part for part in v]
    want = mx.dequantize(*exact, **form).astype(mx.float16)
    assert bits(got) == bits(mx.broadcast_to(want, got.shape))


@pytest.mark.parametrize("backend, name", across_backends(FORMS), indirect=["backend"])
def test_every_entry_of_a_quantized_batch(backend, name):
    form = FORMS[name]
    case = Case(TOKENS, KEYS, 64, "float16", group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    k, v = (mx.quantize(arrays[key], **form) for key in "kv")
    keep = mx.array(np.random.default_rng(1).random((3, 1, 1, KEYS)) < 0.5)
    together = quantized_attention(arrays["q"], k, v, mask=keep, **form)
    for number in range(3):
        own = slice(number, number + 1)
        alone = quantized_attention(
            arrays["q"][own], tuple(part[own] for part in k), tuple(part[own] for part in v), mask=keep[own], **form
        )
        assert bits(together[own]) == bits(alone)


@pytest.mark.parametrize("columns, group_size", [(96, 64), (32, 64), (160, 128), (48, 32)])
def test_columns_that_the_group_does_not_divide(columns, group_size):
    """The last group would reach past the row: refused, whatever the shape of the scales."""
    q = mx.zeros((1, 1, 2, columns))
    codes = mx.zeros((1, 1, 9, columns // 8), mx.uint32)
    for groups in {columns // group_size, -(-columns // group_size)} - {0}:
        scales = mx.zeros((1, 1, 9, groups))
        with pytest.raises(ValueError, match=f"one for every {group_size} of {columns} columns"):
            quantized_attention(q, (codes, scales, scales), (codes, scales, scales), bits=4, group_size=group_size)


def test_the_layouts_are_apart():
    """Otherwise the tests above could not fail."""
    arrays = all_apart(CASE.arrays())
    seen = {name: np.array(array, copy=False).strides for name, array in arrays.items()}
    assert len(set(seen.values())) == len(seen)
    assert all(bits(array) == bits(CASE.arrays()[name]) for name, array in arrays.items())
    assert not mx.array_equal(attention(*(arrays[name] for name in "qkv")), mx.zeros(arrays["d_o"].shape))
