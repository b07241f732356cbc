"""Bench cases that look like generation: a token's attention calls over a cache, and mlx-lm's own loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from ..api import attention
from ..common.errors import CommandError
from .turns import take_turns

TOKENS = 16  # tokens of a round, queued without waiting, as mlx-lm queues one ahead
MOST_ROUNDS = 40
ALWAYS, LEAST_TURNS, MOST_TURNS = 'patch(policy="always")', 3, 20  # turns of generation


@dataclass(frozen=True)
class TokenStep:
    """The attention calls of one token through all layers of a model, over one cache. `growing`: the cache has one key
    more with every token, as in generation; otherwise every token sees the same keys."""

    keys: int
    growing: bool = True
    layers: int = 32
    heads: int = 32
    key_heads: int = 8
    head_dim: int = 128
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"token of {self.layers} layers, {self.keys} keys{' growing' if self.growing else ''}"

    def measured(self, seconds: float) -> dict:
        """Median milliseconds of a token by each provider; rounds of both take turns over the same lengths."""
        q, k, v = self.operands()
        scale = self.head_dim**-0.5
        providers = {
            "mlx_flash": lambda *qkv: attention(*qkv, scale=scale),
            "mx.fast": lambda *qkv: mx.fast.scaled_dot_product_attention(*qkv, scale=scale),
        }
        times: dict[str, list] = {name: [] for name in providers}
        end, keys = time.perf_counter() + seconds, self.keys
        while len(times["mx.fast"]) < 4 or (time.perf_counter() < end and len(times["mx.fast"]) < MOST_ROUNDS):
            for name, call in providers.items():
                times[name].append(self.round_of(call, q, k, v, keys))
            keys += TOKENS if self.growing else 0
        return {name: {"ms": round(statistics.median(found[1:]), 4)} for name, found in times.items()}

    def operands(self) -> list[mx.array]:
        """q, and a cache with room for the keys of all rounds."""
        dtype, room = getattr(mx, self.dtype), self.keys + TOKENS * (MOST_ROUNDS + 1)
        q = mx.random.normal((1, self.heads, 1, self.head_dim)).astype(dtype)
        k, v = mx.random.normal((2, 1, self.key_heads, room, self.head_dim)).astype(dtype)
        mx.eval(q, k, v)
        return [q, k, v]

    def round_of(self, call, q: mx.array, k: mx.array, v: mx.array, keys: int) -> float:
        """Milliseconds of a token, over a round of tokens."""
        mx.synchronize()
        start = time.perf_counter()
        for token in range(TOKENS):
            length = keys + token if self.growing else keys
            front = k[:, :, :length], v[:, :, :length]
            x = q
            for _ in range(self.layers):
                x = call(x, *front)  # each layer waits for the one before it
            mx.async_eval(x)
        mx.synchronize()
        return (time.perf_counter() - start) / TOKENS * 1e3


@dataclass(frozen=True)
class Generation:
    """mlx-lm's generation with a tiny random model: nearly all of its time is the host's."""

    tokens: int = 256
    layers: int = 2

    @property
    def name(self) -> str:
        return f"mlx-lm generation, {self.layers} small layers"

    def measured(self, seconds: float, tick: Callable[[], None] = lambda: None) -> dict:
        """Tokens a second and milliseconds of a token: mlx-lm as it is, and under patch() with both policies, which
        take turns. `ratio`: of the time of a token to mlx-lm's own in the same turn, the median. `same`: whether the
        tokens are mlx-lm's. `tick` is called after every turn."""
        from ..integrations import patch
        from ..lm import tiny_model

        try:
            generate = self.generator(*tiny_model(layers=self.layers))
        except CommandError as error:
            return {"mlx_flash": {"failure": str(error)}}
        providers = {"mx.fast": nullcontext, "patch()": patch, ALWAYS: partial(patch, policy="always")}
        turns, end = [], time.perf_counter() + 3 * seconds
        while len(turns) < LEAST_TURNS or (time.perf_counter() < end and len(turns) < MOST_TURNS):
            turns.append({})
            for name, patched in providers.items():
                with patched():
                    turns[-1][name] = generate()
            tick()
        del turns[0]  # the first turn compiles kernels
        found = {}
        for name in providers:
            speeds = [turn[name][0] for turn in turns]
            ratios = [turn["mx.fast"][0] / turn[name][0] for turn in turns]
            found[name] = {
                "ms": round(1e3 / statistics.median(speeds), 4),
                "tokens_per_s": round(statistics.median(speeds), 1),
                "ratio": round(statistics.median(ratios), 3),
                "same": all(turn[name][1] == turn["mx.fast"][1] for turn in turns),
            }
        return found

    def generator(self, model, tokenizer) -> Callable[[], tuple[float, list[int]]]:
        """A function that generates: tokens a second, and the tokens. mx.fast is looked up with every call."""
        from mlx_lm import stream_generate

        def generate() -> tuple[float, list[int]]:
            start = time.perf_counter()
            found = [one.token for one in stream_generate(model, tokenizer, "Attention", max_tokens=self.tokens)]
            return len(found) / (time.perf_counter() - start), found

        return generate


@dataclass(frozen=True)
class ServedBatch:
    """One decoding call over the caches of a server: rows of unequal lengths, from `least` to `most` keys in equal
    ratios, in pages in no order, side by side, and padded on the left with a bool mask, as mlx-lm keeps them."""

    rows: int = 32
    least: int = 1024
    most: int = 32768
    heads: int = 32
    key_heads: int = 8
    head_dim: int = 128
    page: int = 64
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"{self.rows} rows of {self.least} to {self.most} keys"

    def measured(self, seconds: float) -> dict:
        """Median milliseconds of a call: of `mlx_flash` over pages and over padded keys of unequal lengths, and of the
        built-in."""
        return take_turns(self.providers(), TOKENS, seconds)

    def providers(self) -> dict:
        """Calls without arguments, over the same keys and values."""
        dtype, columns = getattr(mx, self.dtype), self.head_dim
        span = max(self.rows - 1, 1)
        lengths = [round(self.least * (self.most / self.least) ** (n / span)) for n in range(self.rows)]
        per_row = -(-self.most // self.page)
        q = mx.random.normal((self.rows, self.heads, 1, columns)).astype(dtype)
        shape = (self.rows * per_row, self.key_heads, self.page, columns)
        pools = [mx.random.normal(shape).astype(dtype) for _ in range(2)]
        table = mx.random.permutation(self.rows * per_row).reshape(self.rows, per_row).astype(mx.int32)
        side = [pool[table].swapaxes(1, 2).flatten(2, 3)[:, :, : self.most] for pool in pools]
        ends = mx.array(lengths, mx.int32)
        places = (mx.arange(self.most) - (self.most - ends)[:, None])[:, None, :, None]
        padded = [mx.take_along_axis(one, mx.maximum(places, 0), axis=2) for one in side]
        mask = (places >= 0).swapaxes(2, 3)
        mx.eval(q, pools, table, side, padded, mask, ends)
        built_in, scale = mx.fast.scaled_dot_product_attention, columns**-0.5
        return {
            "mlx_flash": lambda: attention(q, *pools, pages=table, lengths=ends, scale=scale),
            "mlx_flash, contiguous": lambda: attention(q, *side, lengths=ends, scale=scale),
            "mx.fast": lambda: built_in(q, *padded, scale=scale, mask=mask),
        }


def token_cases() -> list[TokenStep | Generation | ServedBatch]:
    steps = [TokenStep(keys, growing) for keys in (512, 4096, 32768) for growing in (True, False)]
    return [*steps, Generation(), ServedBatch()]
