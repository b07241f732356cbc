"""The strides of arrays, as inputs of a kernel.

The strides of a lazy array are unknown until it is computed. MLX passes them only to kernels that it compiles itself,
so such a kernel, one warp, writes them into an array for ours.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx


def row_contiguous(shape: tuple[int, ...]) -> list[int]:
    """The strides, in elements, of a row-contiguous array."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return strides[::-1]


@lru_cache
def _writer(axes: tuple[int, ...]):
    """A kernel that writes the strides of its inputs, one for each entry of `axes`, which is the input's ndim."""
    lines = [f"for (int i = 0; i < {count}; i++) strides{n}[i] = array{n}_strides[i];" for n, count in enumerate(axes)]
    return mx.fast.cuda_kernel(
        name="strides_of_" + "_".join(map(str, axes)),
        input_names=[f"array{n}" for n in range(len(axes))],
        output_names=[f"strides{n}" for n in range(len(axes))],
        source="if (threadIdx.x == 0) {\n" + "\n".join(lines) + "\n}\n",
        ensure_row_contiguous=False,
    )


def learned(arrays: list[mx.array], stream=None) -> list[mx.array]:
    """The strides of each array in memory, int64 [ndim] each, as lazy arrays."""
    if not arrays:
        return []
    return _writer(tuple(array.ndim for array in arrays))(
        inputs=arrays,
        output_shapes=[(array.ndim,) for array in arrays],
        output_dtypes=[mx.int64] * len(arrays),
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        stream=stream,
    )
