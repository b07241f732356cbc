"""Greedy generation with mlx-lm: tokens, text and tokens per second, and where two runs part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from .models import mlx_lm

LIMITS = {mx.float32: 1e-3, mx.float16: 0.25, mx.bfloat16: 0.25}  # of log-probabilities: rounding of a whole model


@dataclass(frozen=True)
class Run:
    """One generation. Tokens per second as mlx-lm counts them: the prompt up to the first token, then the others."""

    tokens: tuple[int, ...]
    text: str
    prompt_speed: float
    generation_speed: float


def generate(model, tokenizer, prompt: mx.array, count: int, options: dict, tick: Callable = lambda: None) -> Run:
    """At most `count` tokens after the prompt, the most likely one each time; `tick` is called at every token."""
    tokens, text = [], []
    for response in mlx_lm().stream_generate(model, tokenizer, prompt, max_tokens=count, **options):
        tokens.append(response.token)
        text.append(response.text)
        tick()
    return Run(tuple(tokens), "".join(text), response.prompt_tps, response.generation_tps)


def fastest(runs: list[Run]) -> tuple[float, float]:
    """The best prompt and generation speeds of several runs: what else the machine did only takes away."""
    return max(run.prompt_speed for run in runs), max(run.generation_speed for run in runs)


@dataclass(frozen=True)
class Parting:
    """The first token in which two runs differ. `gap`: log-probability between MLX's best two tokens there;
    `difference`: the largest between the two runs there, after the same text; `limit`: what rounding may make of it."""

    position: int
    gap: float
    difference: float
    limit: float

    @property
    def tie(self) -> bool:
        """Whether rounding explains it: the runs differ little, and MLX's best two tokens lie closer than that."""
        return self.difference <= self.limit and self.gap <= 2 * self.difference


def parting(model, prompt: mx.array, ours: Run, theirs: Run, options: dict, patched: Callable) -> Parting | None:
    """Where the tokens part, if they do. `patched`: a context in which attention is ours."""
    pairs = list(zip(ours.tokens, theirs.tokens))
    position = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
    if position is None:
        return None if len(ours.tokens) == len(theirs.tokens) else Parting(len(pairs), float("inf"), 0.0, 0.0)
    text = mx.concatenate([prompt, mx.array(theirs.tokens[:position], prompt.dtype)])
    expected = _logprobs(model, text, options)
    with patched():
        got = _logprobs(model, text, options)
    second, best = mx.sort(expected)[-2:].tolist()
    limit = LIMITS[expected.dtype]
    difference = mx.abs(got.astype(mx.float32) - expected.astype(mx.float32)).max().item()
    return Parting(position, best - second, difference, limit)


def _logprobs(model, text: mx.array, options: dict) -> mx.array:
    ((_, logprobs),) = mlx_lm("generate").generate_step(text, model, max_tokens=1, **options)
    mx.eval(logprobs)
    return logprobs
