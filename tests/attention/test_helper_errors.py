"""Values that make no sense, in every argument of the helpers and of the gallery: taken, or refused in one sentence."""

import inspect

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import BlockMask, UnsupportedProblem, merge
from mlx_flash.gallery import masks, scores
from mlx_flash.rotations import Balance, Rotation
from mlx_flash.sequences import cascade, cumulative_segments, segments

SENSELESS = [
    None, -1, 0, 1.5, float("nan"), float("inf"), "x", b"x", [], {}, [[1], [1, 2]], (None, None), object(), True,
    10**30, 1 + 2j, np.array([1, 2]), np.array(["a"]), np.array(None), np.zeros((2, 2)), mx.array(1.5),
    mx.zeros((0,)), mx.zeros((2,)), mx.zeros((1, 1, 1, 1, 1)), mx.array([1 + 2j]), mx.zeros((9, 9), mx.bool_),
]  # fmt: skip
K = mx.zeros((1, 2, 9, 16))
FUNCTIONS = {
    "merge": (merge, {"outputs": [K, K], "lses": [K[..., 0], K[..., 0]]}),
    "segments": (segments, {"lengths": [3, 4], "length": 9}),
    "cumulative_segments": (cumulative_segments, {"q_offsets": [0, 4, 9], "k_offsets": [0, 2, 5], "q_length": 9}),
    "cascade": (cascade, {"q": K, "prefix": {"k": K, "v": K}, "rest": {"k": K, "v": K}, "return_lse": False}),
    "Rotation": (Rotation, {"dimension": 16, "key": None}),
    "a Rotation": (Rotation(16), {"array": K}),
    "Balance": (Balance, {"sample": K, "key": None}),
    "a Balance": (Balance(K), {"array": K}),
    "its queries": (Balance(K).queries, {"q": K}),
    "its undo": (Balance(K).undo, {"out": K}),
    "from_array": (BlockMask.from_array, {"mask": np.ones((9, 9), bool), "block": 32}),
    "window": (BlockMask.window, {"query_length": 9, "key_length": 9, "left": 3, "right": 0, "block": 32}),
    "prefix": (BlockMask.prefix, {"query_length": 9, "key_length": 9, "prefix": 3, "block": 32}),
    "document": (BlockMask.document, {"lengths": [4, 5], "causal": True, "block": 32}),
    "dilated": (BlockMask.dilated, {"query_length": 9, "key_length": 9, "step": 2, "block": 32}),
}
VALUES = {  # of the gallery's arguments, by name
    "left": 2, "right": 0, "width": 3, "step": 2, "sinks": 1, "anchors": 1, "length": 3, "lengths": [4, 5], "rows": 3,
    "columns": 3, "shape": (3, 3), "kernel": (3, 3), "dilation": 1, "tile": (1, 1), "text": 0, "size": 3, "shift": 1,
    "frames": 3, "tokens": 3, "reach": 1, "prompt": 0, "near": 2, "intervals": [[0, 3]], "query_length": 9,
    "parents": [-1, 0], "context": 3, "slopes": mx.zeros(4), "cap": 2.0, "table": mx.zeros((25, 4)), "power": 1.0,
    "bidirectional": False, "farthest": 16, "temperatures": mx.zeros(9), "trained": 4.0, "rate": 0.1, "block": 32,
    "first": mx.ones(4), "second": mx.ones(4), "causal": True,
}  # fmt: skip
for module in (masks, scores):
    for name, one in vars(module).items():
        if inspect.isfunction(one) and one.__module__ == module.__name__ and name[0] != "_" and name != "t5_buckets":
            FUNCTIONS[f"gallery.{name}"] = one, {named: VALUES[named] for named in inspect.signature(one).parameters}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_senseless_values(reference, name):
    function, right = FUNCTIONS[name]
    function(**right)
    for argument in right:
        for value in SENSELESS:
            try:
                function(**right | {argument: value})
            except (ValueError, UnsupportedProblem) as error:
                assert str(error).startswith("[mlx_flash"), f"{argument}={value!r}: {error}"


WRONG = {
    "a shift of a whole window": (lambda: masks.swin_window((9, 9), 3, 3), "shift: expected less than size, 3"),
    "buckets that overlap": (
        lambda: scores.t5_bias(mx.zeros((32, 2)), farthest=16),
        "farthest: expected .* at least 17",
    ),
    "too few buckets": (
        lambda: scores.t5_bias(mx.zeros((2, 1)), bidirectional=True),
        "table: expected at least 4 rows",
    ),
    "a length of keys that are the queries'": (
        lambda: cumulative_segments([0, 4], k_length=9),
        "k_length: expected None without k_offsets",
    ),
    "a complex cap": (lambda: scores.softcap(mx.array(2j)), "cap: expected a number"),
    "documents of parts": (lambda: masks.document([2.5, 3]), "lengths: expected a whole number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_that_would_give_another_mask(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()
