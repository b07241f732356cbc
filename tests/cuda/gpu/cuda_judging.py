"""How the jobs of cuda_jobs.py make their arrays, and judge them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_flash import attention
from mlx_flash.cli.accuracy.oracle import Error, acceptable, exact_tensors, float64, unfused

REPEATS = 30
TENSORS = ("O", "dQ", "dK", "dV")
GROSS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}  # of the largest magnitude: heads not judged one by one


@dataclass(frozen=True)
class Job:
    """`make()` returns what `judge` takes; `judge` returns figures, and raises AssertionError for a wrong result."""

    family: str
    make: Callable
    judge: Callable


def drawn(seed: int, dtype: str, *shapes) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return [mx.random.normal(shape, key=key).astype(getattr(mx, dtype)) for shape, key in zip(shapes, keys)]


def with_gradients(arrays: list[mx.array], **options) -> list[mx.array]:
    """O, dQ, dK, dV, lazily."""
    *inputs, d_o = arrays
    outputs, gradients = mx.vjp(lambda q, k, v: attention(q, k, v, **options), inputs, [d_o])
    return [*outputs, *gradients]


def problem(dtype, head_dim, length, key_length=None, batch=2, heads=8, key_heads=4, seed=0) -> list[mx.array]:
    query = (batch, heads, length, head_dim)
    key = (batch, key_heads, key_length or length, head_dim)
    return drawn(seed, dtype, query, key, key, query)


INPUTS, RESULTS = (0, 1, 1, 0), (0, 0, 1, 1)  # Q K V dO and O dQ dK dV: with query heads, or with key heads


def part(arrays: list[mx.array], like: tuple[int, ...], inputs: list[mx.array], batch: int, key_head: int):
    """One key head with the query heads that share it."""
    group = inputs[0].shape[1] // inputs[1].shape[1]
    heads = slice(key_head * group, (key_head + 1) * group), slice(key_head, key_head + 1)
    return [array[batch : batch + 1, heads[place]] for array, place in zip(arrays, like)]


def judged(dtype: str, inputs, got, causal: bool, batch: int, key_head: int) -> dict[str, float]:
    """One head's largest errors against float64; raises where they exceed those of unfused mx in the same type."""
    inputs, got = part(inputs, INPUTS, inputs, batch, key_head), part(got, RESULTS, inputs, batch, key_head)
    want = exact_tensors(*map(float64, inputs), causal)
    outputs, gradients = mx.vjp(lambda q, k, v: unfused(q, k, v, causal), inputs[:3], inputs[3:])
    figures = {}
    for name, mine, other, right in zip(TENSORS, got, [*outputs, *gradients], want):
        ours, theirs = Error.of(mine, right), Error.of(other, right)
        figures[name] = ours.largest
        assert acceptable(name, dtype, ours, theirs), f"{name}: {ours} against {theirs} of unfused mx"
    return figures


def gross(dtype: str, inputs: list[mx.array], got: list[mx.array], causal: bool):
    """Compares all heads with plain mx operations in float32."""
    wide = [array.astype(mx.float32) for array in inputs]
    outputs, gradients = mx.vjp(lambda q, k, v: unfused(q, k, v, causal), wide[:3], wide[3:])
    for name, mine, other in zip(TENSORS, got, [*outputs, *gradients]):
        error = mx.abs(mine.astype(mx.float32) - other).max() / mx.abs(other).max()
        assert error.item() <= GROSS[dtype], f"{name}: some head is off by {error.item():.1e} of the largest magnitude"


def repeated(call: Callable[[], list[mx.array]], first: list[mx.array]):
    for turn in range(1, REPEATS):
        for name, one, other in zip(TENSORS, first, call()):
            assert mx.array_equal(one, other, equal_nan=True).item(), f"{name} of run {turn + 1} differs in its bits"
