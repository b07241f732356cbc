"""Text after a prompt that ranks share: the tokens of one process, each rank holding its part of the cache."""

import itertools

import distributed_work
import mlx.core as mx
import numpy as np
import pytest
from ranks import on_ranks
from tiny_models import tiny

from mlx_flash import UnsupportedProblem
from mlx_flash.lm import sharded_generation

COUNT = 9


SHARED = [(1, 3, "zigzag"), (23, 2, "contiguous"), (23, 3, "zigzag"), (64, 2, "zigzag")]


@pytest.mark.process
@pytest.mark.parametrize(
    "length, ranks, layout",
    [
        pytest.param(*case, marks=() if case in SHARED else pytest.mark.slow)
        for case in itertools.product((1, 23, 64), (2, 3), ("zigzag", "contiguous"))
    ],
)
def test_tokens_are_those_of_one_process(ranks, layout, length):
    """Lengths that do not divide are padded, and what pads them is not cached; one token leaves ranks without any."""
    prompt = np.random.default_rng(length).integers(0, 64, length).tolist()
    found = on_ranks(ranks, "distributed_work", "generated", prompt=prompt, tokens=COUNT, layout=layout)
    for got, want, _ in found:
        assert got == want and len(got) == COUNT
    rows = [held for *_, held in found]
    assert sum(rows) == length + COUNT - 1  # the last token is not cached
    assert max(rows) - min(rows) <= 1 + -length % (2 * ranks)  # padding stands at the end


def test_one_rank_is_plain_generation(reference):
    ((got, want, _),) = [distributed_work.generated([3, 1, 4, 1, 5], COUNT)]
    assert got == want


def test_models_with_windows_are_refused(reference):
    with pytest.raises(UnsupportedProblem, match="layers with RotatingKVCache cannot be shared"):
        list(sharded_generation.generate(tiny("gemma3_text"), mx.array([1, 2, 3]), 2))


@pytest.mark.parametrize("prompt", [[1, 2], mx.zeros((0,), mx.int32), mx.zeros((1, 3), mx.int32)], ids=str)
def test_wrong_prompts(prompt):
    with pytest.raises(ValueError, match="lm.generate. prompt: expected an array of at least 1 token"):
        list(sharded_generation.generate(None, prompt, 1))


@pytest.mark.parametrize("count", [-1, 1.5, "three"])
def test_wrong_counts(count):
    with pytest.raises(ValueError, match="lm.generate. count: expected a whole number of tokens"):
        list(sharded_generation.generate(None, mx.array([1]), count))
