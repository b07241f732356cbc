"""The arrays a call brings besides q, k and v, in the shapes and dtypes that every backend reads."""

from __future__ import annotations

import mlx.core as mx

from ..problem.problem import Problem
from ..transforms import trace

# Gradients flow to these; the others are constants, whose gradient is zero.
DIFFERENTIABLE = frozenset({"attention_mask", "sinks"})


def packed(array: mx.array) -> mx.array:
    """The array, copied if it is not contiguous, by operations that mx.export_function can write: not mx.contiguous."""
    if trace.witness is not None:  # MLX maps views along their last axis wrongly
        return mx.concatenate([array[..., :0], array], axis=-1)
    return array.view(mx.uint8).view(array.dtype)


def operands(
    problem: Problem, *, mask=None, alibi_slopes=None, sinks=None, segments=None, key=None, **_
) -> dict[str, mx.array]:
    """Named arrays of the features that are on, from the checked arguments of `attention`."""
    options, arrays = problem.options, {}
    if options.mask:
        arrays["attention_mask"] = mask.reshape(options.mask_shape)
    if options.alibi:
        arrays["slopes"] = alibi_slopes.astype(mx.float32)
    if options.sinks:
        arrays["sinks"] = sinks.astype(mx.float32)
    if options.segments:
        lengths = (problem.query_length, problem.key_length)
        for name, ids, length in zip(("q_segments", "k_segments"), segments, lengths):
            # Kernels step from one batch entry to the next by the stride, so that shared ids are not repeated.
            arrays[name] = mx.broadcast_to(packed(ids.astype(mx.int32)), (problem.batch, length))
    if options.block:
        layers = (problem.batch, problem.query_heads)
        for name, array in mask.arrays.items():
            shared = name == "block_bitmaps"
            arrays[name] = array if shared else mx.broadcast_to(array, (*layers, *array.shape[2:]))
    if options.dropout:
        # An element survives if its random word is at least dropout * 2^32.
        threshold = mx.array([min(round(options.dropout * 2**32), 2**32 - 1)], mx.uint32)
        arrays["dropout_key"] = mx.concatenate([key, threshold])
    return arrays


def step_inputs(problem: Problem, arrays: dict[str, mx.array], transposed: bool) -> dict:
    """The operands of one kernel. `transposed`: it walks queries for its keys, and so the lists by column."""
    options, inputs = problem.options, dict(arrays)
    if options.mask:
        full = (problem.batch, problem.query_heads, problem.query_length, problem.key_length)
        inputs["attention_mask"] = mx.broadcast_to(inputs["attention_mask"], full)
    if options.block:
        for name in ("block_lists", "block_counts"):
            by_column = inputs.pop(f"{name}_t")
            inputs[name] = by_column if transposed else inputs[name]
    if options.window:
        inputs["window"] = options.window
    if options.softcap:
        inputs["softcap"] = options.softcap
    if options.dropout:
        inputs["survivor_scale"] = 1 / (1 - options.dropout)
    return inputs
