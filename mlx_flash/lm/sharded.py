"""Training an mlx-lm model on sequences that several ranks share: what changes in a step, and nothing else.

    group = mx.distributed.init()
    with sharded(model, group=group):
        batch = shard_batch(tokens, group=group)
        loss, gradients = nn.value_and_grad(model, sharded_loss)(model, *batch)
    loss, gradients = summed((loss, gradients), group)
    optimizer.update(model, gradients)

Every rank starts from equal weights and the same tokens, and ends with equal weights. Start the ranks with mlx.launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from .. import distributed
from ..common.errors import UnsupportedProblem, wrong
from ..common.scalars import shown
from ..distributed.collectives import group_of
from .models import check_model


class _PieceRope(nn.Module):
    """A model's rotary embedding, applied to each piece of a shard at the piece's own positions."""

    def __init__(self, rope, group, layout: str):
        super().__init__()
        self._rope, self._group, self._layout = rope, group, layout

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        """x [B, heads, rows of the shard, D]."""
        parts, place = [], 0
        for first, length in distributed.positions(x.shape[2], group=self._group, layout=self._layout):
            parts.append(self._rope(x[:, :, place : place + length], offset=offset + first))
            place += length
        return mx.concatenate(parts, axis=2)


@contextmanager
def served_by(attention: Callable) -> Iterator[None]:
    """For a block, a function takes the calls of mx.fast.scaled_dot_product_attention."""
    built_in, mx.fast.scaled_dot_product_attention = mx.fast.scaled_dot_product_attention, attention
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = built_in


@contextmanager
def sharded(model: nn.Module, *, group: mx.distributed.Group | None = None, **options) -> Iterator[None]:
    """For a block, the causal attention of an mlx-lm model spans all ranks, and its rotary embeddings count positions
    of the whole sequence.

    Args:
        model: of mlx-lm, whose attention layers hold their rotary embedding as `rope`.
        group: of mx.distributed; None: the global one.
        options: layout, method and heads of `mlx_flash.distributed.attention`.

    Raises:
        ValueError: another model or group. UnsupportedProblem: a layer asks for another mask than "causal".
    """
    check_model(model, "lm.sharded")
    group_of(group, "lm.sharded")
    layout = options.get("layout", "zigzag")
    holders = [module for module in model.modules() if isinstance(module.get("rope"), nn.Module)]
    ropes = [module.rope for module in holders]

    def attention(q, k, v, *, scale, mask=None, sinks=None, **_):
        if not (isinstance(mask, str) and mask == "causal"):
            got = "an array" if isinstance(mask, mx.array) else repr(mask)
            raise UnsupportedProblem(f"[mlx_flash.lm.sharded] mask: only causal layers can be shared, not {got}.")
        return distributed.attention(q, k, v, scale=scale, causal=True, sinks=sinks, group=group, **options)

    try:
        for module, rope in zip(holders, ropes):
            module.rope = _PieceRope(rope, group, layout)
        with served_by(attention):
            yield
    finally:
        for module, rope in zip(holders, ropes):
            module.rope = rope


def shard_batch(
    tokens: mx.array, *, group: mx.distributed.Group | None = None, layout: str = "zigzag"
) -> tuple[mx.array, mx.array, mx.array, int]:
    """(inputs, targets, weights, predictions in the whole batch) of this rank, from tokens [B, N + 1] of all.

    Targets are shifted before the sequence is cut: the last row of a piece predicts the first token of the next piece,
    which another rank holds. Rows that pad the sequence have weight 0; causal attention hides them from the others.
    """
    if not is_tokens(tokens) or tokens.ndim != 2 or tokens.shape[1] < 2:
        expected, remedy = "an array [batch, at least 2 tokens]", "Pass whole sequences."
        raise wrong("tokens", expected, shown(tokens), remedy, "lm.shard_batch")
    ranks = group_of(group, "lm.shard_batch").size()
    rows, multiple = tokens.shape[1] - 1, 2 * ranks
    padding = [(0, 0), (0, -rows % multiple)]
    weights = mx.ones((tokens.shape[0], rows), mx.float32)
    arrays = (mx.pad(array, padding) for array in (tokens[:, :-1], tokens[:, 1:], weights))
    shards = (distributed.shard(array, 1, group=group, layout=layout) for array in arrays)
    return (*shards, tokens.shape[0] * rows)


def is_tokens(value) -> bool:
    """Whether a value is an array of integers."""
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.integer)


def sharded_loss(
    model: nn.Module, inputs: mx.array, targets: mx.array, weights: mx.array, predictions: int
) -> mx.array:
    """This rank's part of the mean cross entropy: the sum over its rows by the number of predictions of all ranks."""
    losses = nn.losses.cross_entropy(model(inputs).astype(mx.float32), targets)
    return (losses * weights).sum() / predictions


def summed(tree, group: mx.distributed.Group | None = None):
    """Losses and gradients of all ranks, summed: not nn.average_gradients, which would divide by their number. The
    arrays are evaluated first, so that every rank has done with the collectives inside of them."""
    group = group_of(group, "lm.summed")
    for name, leaf in tree_flatten(tree):
        if not isinstance(leaf, mx.array):
            remedy = "Pass losses and gradients as they are computed."
            raise wrong(f"tree {name}".strip(), "arrays in lists, tuples and dicts", shown(leaf), remedy, "lm.summed")
    mx.eval(tree)
    return tree_map(lambda array: mx.distributed.all_sum(array, group=group), tree)
