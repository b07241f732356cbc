"""A byte-level transformer that takes its attention function as an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


@dataclass(frozen=True)
class Shape:
    """The sizes of the model and of a batch."""

    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    head_dim: int = 64
    width: int = 128
    hidden: int = 256
    context: int = 128
    batch: int = 4
    symbols: int = 256


class Attention(nn.Module):
    """Grouped heads with rotary positions; `attend(q, k, v)` is causal attention on [B, heads, L, head_dim]."""

    def __init__(self, shape: Shape, attend: Callable, dtype: mx.Dtype):
        super().__init__()
        self._attend, self._dtype = attend, dtype
        self._heads = (shape.heads, shape.key_heads, shape.key_heads)
        self.to_q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.to_k = nn.Linear(shape.width, shape.key_heads * shape.head_dim, bias=False)
        self.to_v = nn.Linear(shape.width, shape.key_heads * shape.head_dim, bias=False)
        self.to_out = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        self.rope = nn.RoPE(shape.head_dim)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        projected = (self.to_q(x), self.to_k(x), self.to_v(x))
        q, k, v = (
            array.reshape(batch, length, heads, -1).swapaxes(1, 2) for array, heads in zip(projected, self._heads)
        )
        q, k, v = (array.astype(self._dtype) for array in (self.rope(q), self.rope(k), v))
        o = self._attend(q, k, v).astype(x.dtype)
        return self.to_out(o.swapaxes(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each on normalised inputs and added to the residual stream."""

    def __init__(self, shape: Shape, attend: Callable, dtype: mx.Dtype):
        super().__init__()
        self.attention = Attention(shape, attend, dtype)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)
        self.norms = [nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)]

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nn.relu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Bytes [B, L] to logits [B, L, symbols], in float32; only q, k and v are cast to `dtype`."""

    def __init__(self, shape: Shape, attend: Callable, dtype: mx.Dtype):
        super().__init__()
        self.embedding = nn.Embedding(shape.symbols, shape.width)
        self.blocks = [Block(shape, attend, dtype) for _ in range(shape.layers)]
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.symbols, bias=False)

    def __call__(self, symbols: mx.array) -> mx.array:
        x = self.embedding(symbols)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
