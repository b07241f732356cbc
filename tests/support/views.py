"""Views of arrays: all the ways in which operands are passed that are not a fresh, contiguous array."""

import mlx.core as mx
import numpy as np


def transposed(array: mx.array) -> mx.array:
    """[B, N, H, D] in memory, as a projection stores it."""
    return mx.contiguous(array.swapaxes(1, 2)).swapaxes(1, 2)


def cache_slice(array: mx.array) -> mx.array:
    """The front of a longer buffer whose other rows are NaN, as a KV cache returns it."""
    length = array.shape[2]
    buffer = mx.full((*array.shape[:2], length + 90, array.shape[3]), float("nan"), array.dtype)
    buffer[:, :, 7 : 7 + length] = array
    return buffer[:, :, 7 : 7 + length]


def columns_of_fused(array: mx.array) -> mx.array:
    """One third of a fused projection: the last axis is contiguous, and the stride of rows is three times as large."""
    nan = mx.full(array.shape, float("nan"), array.dtype)
    width = array.shape[3]
    return mx.contiguous(mx.concatenate([nan, array, nan], axis=3))[..., width : 2 * width]


def every_second(array: mx.array) -> mx.array:
    nan = mx.full(array.shape, float("nan"), array.dtype)
    return mx.contiguous(mx.stack([array, nan], axis=3).flatten(2, 3))[:, :, ::2]


def reversed_rows(array: mx.array) -> mx.array:
    return mx.contiguous(array[:, :, ::-1])[:, :, ::-1]


def odd_start(array: mx.array) -> mx.array:
    """A view that starts one element into its buffer, and is aligned to one element only."""
    padded = mx.concatenate([mx.zeros((1,), array.dtype), array.flatten()])
    return mx.contiguous(padded)[1:].reshape(array.shape)


def strided_columns(array: mx.array) -> mx.array:
    """A view with a strided last axis: the only kind of view that has to be copied."""
    return mx.contiguous(array.swapaxes(2, 3)).swapaxes(2, 3)


def every_second_column(array: mx.array) -> mx.array:
    """A strided last axis too, of rows that may begin at multiples of 16 bytes."""
    nan = mx.full(array.shape, float("nan"), array.dtype)
    return mx.contiguous(mx.stack([array, nan], axis=4).flatten(3, 4))[..., ::2]


IN_PLACE = [transposed, cache_slice, columns_of_fused, every_second, reversed_rows]


VIEWS = [*IN_PLACE, odd_start, strided_columns]


def spread(array: mx.array) -> mx.array:
    """Every third element of its buffer, in every axis."""
    wide = np.zeros([3 * extent for extent in array.shape], np.array(array).dtype)
    places = tuple(slice(1, None, 3) for _ in array.shape)
    wide[places] = np.array(array)
    return mx.array(wide)[places]


def odd_rows(array: mx.array) -> mx.array:
    """Rows one element further apart than they are long: none but the first begins at 16 bytes."""
    return mx.contiguous(mx.concatenate([array, mx.full((*array.shape[:3], 1), mx.nan, array.dtype)], axis=3))[..., :-1]
