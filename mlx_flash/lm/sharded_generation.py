"""Generating text from a prompt that several ranks share: each keeps the keys and values of its part of the prompt.

    for token in generate(model, prompt, 100, group=mx.distributed.init()):
        ...

The prompt is cut as in training. Then every rank computes every new token, but the tokens' keys and values go to the
ranks in turn, and attention over all of them is one small message a layer (`distributed.decode`). Every rank must make
the same calls, and gets the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn

from .. import distributed
from ..common.errors import UnsupportedProblem, wrong
from ..common.scalars import shown, whole
from ..distributed.collectives import group_of
from ..distributed.layout import layout_of
from .models import check_model, mlx_lm
from .sharded import is_tokens, served_by, sharded


class ShardedCache:
    """A layer's cache, of which this rank holds a part: rows of the prompt as `distributed.shard` cuts them, without
    those that pad it, and every P-th of the tokens after it.

    `length`: of the prompt. `offset` counts the tokens of all ranks, as rotary embeddings need it.
    """

    def __init__(self, length: int, group: mx.distributed.Group, layout: str):
        self.offset, self._length, self._group, self._layout = 0, length, group, layout
        self._held, self._own = mlx_lm("models.cache").KVCache(), None

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> str | None:
        """The mask that mlx-lm asks for: "causal" for the prompt, nothing for a token, which sees all that is
        cached."""
        if return_array or window_size:
            raise UnsupportedProblem("[mlx_flash.lm.sharded] mask: only causal layers can be shared, not windows.")
        return None if self.offset else "causal"

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Prompt: keeps this rank's rows, and returns the shards that attention gathers. Token: keeps it if it is this
        rank's turn, and returns all that it holds."""
        if not self.offset:
            self.offset = self._length
            self._own = self._kept(keys), self._kept(values)
            if self._own[0].shape[2]:
                self._own = self._held.update_and_fetch(*self._own)
            return keys, values
        if keys.shape[2] != 1:
            raise UnsupportedProblem(f"[mlx_flash.lm.sharded] tokens: one at a time, not {keys.shape[2]}.")
        if self.offset % self._group.size() == self._group.rank():
            self._own = self._held.update_and_fetch(keys, values)
        self.offset += 1
        return self._own

    def _kept(self, shard: mx.array) -> mx.array:
        """A shard's rows without padding, which stands at the end of the sequence."""
        parts, place = [], 0
        for first, length in distributed.positions(shard.shape[2], group=self._group, layout=self._layout):
            parts.append(shard[:, :, place : place + max(0, min(length, self._length - first))])
            place += length
        return mx.concatenate(parts, axis=2)

    @property
    def state(self) -> tuple:
        """The arrays that this rank holds."""
        return self._own


def decoding(group: mx.distributed.Group):
    """A block in which attention of a new token spans the caches of all ranks."""

    def attention(q, k, v, *, scale, mask=None, sinks=None, **_):
        if mask is not None:
            raise UnsupportedProblem("[mlx_flash.lm.sharded] mask: a new token sees all keys, no mask is available.")
        return distributed.decode(q, k, v, scale=scale, sinks=sinks, group=group)[0]

    return served_by(attention)


def generate(
    model: nn.Module,
    prompt: mx.array,
    count: int,
    *,
    group: mx.distributed.Group | None = None,
    layout: str = "zigzag",
    sampler: Callable[[mx.array], mx.array] | None = None,
) -> Iterator[int]:
    """Tokens after a prompt whose keys and values no single rank holds. Every rank must iterate as far.

    Args:
        model: of mlx-lm, the same weights on every rank; all its layers causal, without windows.
        prompt: [N] tokens, the same on every rank; any N of at least 1.
        count: the number of tokens.
        group, layout: as in `distributed.attention`.
        sampler: the next token from log-probabilities [1, vocabulary], by the same rule and seed on every rank; None
            takes the likeliest.

    Raises:
        ValueError: a prompt that is no row of tokens, or another argument that is wrong. UnsupportedProblem: a model
            with other caches or masks.
    """
    if not is_tokens(prompt) or prompt.ndim != 1 or not prompt.size:
        raise wrong("prompt", "an array of at least 1 token", shown(prompt), "Pass one sequence.", "lm.generate")
    if whole(count) is None or whole(count) < 0:
        raise wrong("count", "a whole number of tokens", shown(count), "Pass how many to make.", "lm.generate")
    if sampler is not None and not callable(sampler):
        remedy = "Pass one of mlx_lm.sample_utils, or None."
        raise wrong("sampler", "a function of log-probabilities", shown(sampler), remedy, "lm.generate")
    check_model(model, "lm.generate")
    group = group_of(group, "lm.generate")
    layout_of(layout, group.size(), "lm.generate")
    caches = sharded_caches(model, prompt.size, group, layout)
    choose = sampler or (lambda logprobs: mx.argmax(logprobs, axis=-1))
    logits = prefill(model, prompt, caches, group, layout)
    for number in range(whole(count)):
        token = choose(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        yield token.item()
        if number + 1 < whole(count):
            with decoding(group):
                logits = model(token.reshape(1, 1), cache=caches)[:, -1]
                mx.eval(logits)


def sharded_caches(model: nn.Module, length: int, group: mx.distributed.Group, layout: str) -> list[ShardedCache]:
    """One cache for each layer. Raises UnsupportedProblem where the model asks for other caches than ordinary ones."""
    own = mlx_lm("models.cache").make_prompt_cache(model)
    other = {type(one).__name__ for one in own} - {"KVCache"}
    if other:
        raise UnsupportedProblem(
            f"[mlx_flash.lm.generate] model: layers with {', '.join(sorted(other))} cannot be shared, only those with "
            "an ordinary KVCache."
        )
    return [ShardedCache(length, group, layout) for _ in own]


def prefill(model: nn.Module, prompt: mx.array, caches: list[ShardedCache], group, layout: str) -> mx.array:
    """Logits [1, vocabulary] after the prompt, the same on every rank; fills the caches."""
    multiple = 2 * group.size()
    rows = distributed.shard(mx.pad(prompt, (0, -prompt.size % multiple))[None], 1, group=group, layout=layout)
    with sharded(model, group=group, layout=layout):
        logits, place, last = model(rows, cache=caches), 0, None
        mx.eval(logits, [cache.state for cache in caches])
    for first, length in distributed.positions(rows.shape[1], group=group, layout=layout):
        if first < prompt.size <= first + length:
            last = logits[:, place + prompt.size - 1 - first]
        place += length
    # Only one rank has the last token of the prompt; the others add nothing.
    own = mx.zeros_like(logits[:, 0]) if last is None else last
    return mx.distributed.all_sum(own, group=group)
