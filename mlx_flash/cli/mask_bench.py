"""Bench cases of masks written as text, beside the built-in attention with the same mask as a bool array."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import mlx.core as mx

from ..api import attention
from ..gallery.masks import neighbourhood
from .turns import take_turns

CALLS = 8  # queued without waiting


@dataclass(frozen=True)
class Neighbourhood:
    """Self-attention of the tokens of a grid that see the nearest tokens of their neighbourhood, as NATTEN has it."""

    grid: tuple[int, ...] = (56, 56)
    kernel: tuple[int, ...] = (7, 7)
    backward: bool = False
    heads: int = 16
    head_dim: int = 64
    block: int = 64
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        kernel, grid = ("x".join(map(str, sizes)) for sizes in (self.kernel, self.grid))
        return f"{'fwd+bwd' if self.backward else 'fwd'} neighbourhood {kernel} of {grid}"

    def providers(self) -> dict:
        """Calls without arguments, over the same operands."""
        keys = mx.random.split(mx.random.key(0), 4)
        shape, dtype = (1, self.heads, prod(self.grid), self.head_dim), getattr(mx, self.dtype)
        *qkv, d_o = (mx.random.normal(shape, key=key).astype(dtype) for key in keys)
        visible = neighbourhood(self.grid, self.kernel, block=self.block)
        mask = mx.array(visible.block_mask(prod(self.grid), prod(self.grid)).visible())
        mx.eval(*qkv, d_o, mask)
        scale = self.head_dim**-0.5

        def ours(q, k, v):
            return attention(q, k, v, scale=scale, visible=visible)

        def built_in(q, k, v):
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

        def ours_of_array(q, k, v):
            return attention(q, k, v, scale=scale, mask=mask)

        def call(function):
            return (lambda: mx.vjp(function, qkv, [d_o])) if self.backward else (lambda: function(*qkv))

        return {"mlx_flash": call(ours), "mlx_flash, array": call(ours_of_array), "mx.fast": call(built_in)}

    def measured(self, seconds: float) -> dict:
        """Median milliseconds of a queued call by each provider."""
        return take_turns(self.providers(), CALLS, seconds)


def mask_cases() -> list[Neighbourhood]:
    grids = [{}, {"grid": (8, 28, 28), "kernel": (3, 7, 7)}]
    return [Neighbourhood(**grid, backward=backward) for grid in grids for backward in (False, True)]
