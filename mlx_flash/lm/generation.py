"""Greedy generation with mlx-lm: tokens, text, tokens per second, and the first token in which two runs differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from .models import mlx_lm

# How far rounding in a whole model may change a log-probability.
LIMITS = {mx.float32: 1e-3, mx.float16: 0.25, mx.bfloat16: 0.25}


@dataclass(frozen=True)
class Run:
    """One generation. Speeds are tokens per second as mlx-lm counts them: for the prompt, and for all later tokens."""

    tokens: tuple[int, ...]
    text: str
    prompt_speed: float
    generation_speed: float


def generate(model, tokenizer, prompt: mx.array, count: int, options: dict, tick: Callable = lambda: None) -> Run:
    """Greedy generation of at most `count` tokens after the prompt; `tick` is called for every token."""
    tokens, text = [], []
    for response in mlx_lm().stream_generate(model, tokenizer, prompt, max_tokens=count, **options):
        tokens.append(response.token)
        text.append(response.text)
        tick()
    return Run(tuple(tokens), "".join(text), response.prompt_tps, response.generation_tps)


def fastest(runs: list[Run]) -> tuple[float, float]:
    """The best prompt and generation speeds of several runs: other load on the machine only makes a run slower."""
    return max(run.prompt_speed for run in runs), max(run.generation_speed for run in runs)


@dataclass(frozen=True)
class Divergence:
    """The first token in which two runs differ.

    `gap`: difference in log-probability between MLX's two best tokens at that position. `difference`: the largest
    difference in log-probability between the two runs there, after the same text. `limit`: the largest `difference`
    that rounding explains.
    """

    position: int
    gap: float
    difference: float
    limit: float

    @property
    def tie(self) -> bool:
        """Whether rounding explains it: the runs differ little, and MLX's two best tokens are closer than that."""
        return self.difference <= self.limit and self.gap <= 2 * self.difference


def divergence(model, prompt: mx.array, ours: Run, theirs: Run, options: dict, patched: Callable) -> Divergence | None:
    """The first difference between the tokens of two runs; None if they agree. `patched`: a context in which
    mlx_flash computes."""
    pairs = list(zip(ours.tokens, theirs.tokens))
    position = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
    if position is None:
        return None if len(ours.tokens) == len(theirs.tokens) else Divergence(len(pairs), float("inf"), 0.0, 0.0)
    text = mx.concatenate([prompt, mx.array(theirs.tokens[:position], prompt.dtype)])
    expected = _logprobs(model, text, options)
    with patched():
        got = _logprobs(model, text, options)
    second, best = mx.sort(expected)[-2:].tolist()
    limit = LIMITS[expected.dtype]
    difference = mx.abs(got.astype(mx.float32) - expected.astype(mx.float32)).max().item()
    return Divergence(position, best - second, difference, limit)


def _logprobs(model, text: mx.array, options: dict) -> mx.array:
    ((_, logprobs),) = mlx_lm("generate").generate_step(text, model, max_tokens=1, **options)
    mx.eval(logprobs)
    return logprobs
