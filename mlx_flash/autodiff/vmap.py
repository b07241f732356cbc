"""A kernel of attention under mx.vmap: the mapped axis joins the batch axis, or becomes a loop where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ..kernels.launch import output_shape
from ..problem.kinds import BACKWARD_MASK, KernelKind
from ..problem.problem import Problem, Signature
from .operands import SUM, contiguous, problem_of_arrays

# Operands without a batch axis, which all entries of a launch share.
SHARED = frozenset({"slopes", "sinks", "dropout_key", "block_bitmaps"})


def stand_in(kind: KernelKind, problem: Problem) -> list[mx.array]:
    """Outputs that depend on no input. They are NaN, so that one which is not replaced cannot pass for a result."""
    return [mx.full(output_shape(name, problem), mx.nan, output_dtype(name, problem)) for name in kind.outputs]


def output_dtype(name: str, problem: Problem) -> mx.Dtype:
    """The dtype of an output as attention returns it; a kernel that pages an accumulator writes float32."""
    return getattr(mx, problem.dtype) if name in ("O", "dQ", "dK", "dV", "P", "dS") else mx.float32


def mapped(
    call: Callable, kind: KernelKind, signature: Signature, size: int, names: tuple[str, ...], arrays: list[mx.array],
    axes: list[int | None],
) -> list[mx.array]:  # fmt: skip
    """The kernel's outputs with the mapped axis, of length `size`, in front.

    `call(*arrays)` runs the kernel; `names`: the arrays' names; `axes`: the mapped axis of each, or None.
    """
    if all(axis is None for axis in axes):
        return [mx.broadcast_to(one, (size, *one.shape)) for one in call(*arrays)]
    arrays = [array if axis is None else mx.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes)]
    held = {name: (array, axis is not None) for name, array, axis in zip(names, arrays, axes)}
    # Never evaluated: the shapes of one entry.
    entry = {name: mx.zeros(array.shape[moves:], array.dtype) for name, (array, moves) in held.items()}
    problem = problem_of_arrays(signature, entry)
    # A pool of pages has no batch axis either.
    shared = SHARED | {name for name in names if problem.variants.page and name[0] in "KV"}
    if size == 0:
        return [mx.zeros((0, *one.shape), one.dtype) for one in stand_in(kind, problem)]
    # Entries of one launch share these. Dropout and texts may depend on the number of the batch entry. In both cases
    # every mapped entry takes a separate call.
    shared |= {name for text in problem.variants.texts for one in text.operands for name in (one, SUM + one)}
    counts = problem.variants.dropout or any("b" in text.names for text in problem.variants.texts)
    counts = counts or problem.variants.seed  # such a kernel sums over the batch of one entry
    if counts or any(name in shared and moves for name, (_, moves) in held.items()):
        entries = [call(*(array[n] if moves else array for array, moves in held.values())) for n in range(size)]
        return [mx.stack(outputs) for outputs in zip(*entries)]
    spread = kind is BACKWARD_MASK  # each entry's mask has a gradient of its own
    folded = {
        name: array if name in shared else _folded(name, array, moves, size, problem, spread)
        for name, (array, moves) in held.items()
    }
    outputs = call(*folded.values())
    return [_unfolded(name, array, size, problem) for name, array in zip(kind.outputs, outputs)]


def _folded(name: str, array: mx.array, moves: bool, size: int, problem: Problem, spread: bool) -> mx.array:
    """The array with the mapped axis in the batch axis, [size * B, ...]."""
    if name == "attention_mask":
        if array.shape[0] == 1 and not moves and not spread:
            return array
        array = mx.broadcast_to(array, (*array.shape[:-4], problem.batch, *array.shape[-3:]))
    array = (array if moves else mx.broadcast_to(array, (size, *array.shape))).flatten(0, 1)
    # Kernels use only the batch stride of these, and the mapped axis may have been the last one.
    return contiguous(array) if name in ("q_segments", "k_segments", "shifts", "pages") else array


def _unfolded(name: str, array: mx.array, size: int, problem: Problem) -> mx.array:
    array = array.reshape(size, problem.batch, *array.shape[1:])
    if name == "dM" and problem.mask_shape[0] == 1:
        return array.sum(1, keepdims=True)
    return array
