"""Values that make no sense, in every argument of the functions for mlx-lm's models: taken, or refused in one
sentence."""

import mlx.core as mx
import pytest
from refusals import taken_or_refused

from mlx_flash.lm import PagePool, tiny_model
from mlx_flash.lm.sharded import shard_batch, sharded, summed
from mlx_flash.lm.sharded_generation import generate


def shared(model, **named):
    with sharded(model, **named):
        pass


def first_token(**named):
    return next(generate(count=1, **named))


TOKENS = mx.array([[1, 2, 3, 4, 5]])
FUNCTIONS = {
    "tiny_model": (tiny_model, {"seed": 0, "layers": 1}),
    "shard_batch": (shard_batch, {"tokens": TOKENS, "group": None, "layout": "zigzag"}),
    "summed": (summed, {"tree": [mx.array(1.0)], "group": None}),
    "sharded": (shared, {"model": None, "group": None}),
    "generate": (
        first_token, {"model": None, "prompt": TOKENS[0], "group": None, "layout": "zigzag", "sampler": mx.argmax}
    ),
    "PagePool": (
        PagePool, {"model": None, "bytes": 1 << 20, "page": 64, "bits": 4, "group_size": 64, "mode": "affine"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_senseless_values(reference, name):
    pytest.importorskip("mlx_lm")
    function, right = FUNCTIONS[name]
    taken_or_refused(function, right | ({"model": tiny_model()[0]} if "model" in right else {}))
