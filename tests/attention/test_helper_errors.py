"""Values that make no sense, in every argument of the public functions besides attention: taken, or refused in one
sentence."""

import inspect
from contextvars import copy_context

import mlx.core as mx
import numpy as np
import pytest
from refusals import taken_or_refused

import mlx_flash
from mlx_flash import BlockMask, Visible, distributed, explain, merge, patch, use_backend
from mlx_flash.gallery import masks, scores
from mlx_flash.rotations import Balance, Rotation
from mlx_flash.sequences import cascade, cumulative_segments, segments

K = mx.zeros((1, 2, 9, 16))
LENGTHS = {"query_length": 9, "key_length": 9}


def exported(file_or_callback, fun):
    mlx_flash.export_function(file_or_callback, fun, K)


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
    "window": (BlockMask.window, {**LENGTHS, "left": 3, "right": 0, "block": 32}),
    "prefix": (BlockMask.prefix, {**LENGTHS, "prefix": 3, "block": 32}),
    "document": (BlockMask.document, {"lengths": [4, 5], "causal": True, "block": 32}),
    "dilated": (BlockMask.dilated, {**LENGTHS, "step": 2, "block": 32}),
    "visible": (BlockMask.causal(9, 9, block=32).visible, {"batch": 0, "head": 0}),
    "check": (BlockMask.causal(9, 9, block=32).check, {"shape": (1, 2, 9, 9)}),
    "block_mask": (Visible("k <= q", block=32).block_mask, {**LENGTHS, "batch": 1, "heads": 1}),
    "explain": (explain, {"head_dim": 64, "length": 64, "dtype": "float16", "backend": "simulator", "family": "sm90"}),
    "its sharing": (explain, {"head_dim": 64, "group_size": 2, "link": 1e9, "layout": "zigzag", "method": "auto"}),
    "patch": (lambda **named: patch(**named).undo(), {"min_queries": 1, "policy": "always"}),
    "use_backend": (use_backend, {"name": "reference", "family": "apple9", "table": "own"}),
    "vmap": (mlx_flash.vmap, {"fun": mx.square}),
    "exporter": (mlx_flash.exporter, {"file": "own", "fun": mx.square}),
    "export_function": (exported, {"file_or_callback": "own", "fun": mx.square}),
    "distributed.attention": (
        distributed.attention,
        {"q": K, "k": K, "v": K, "group": None, "layout": "zigzag", "method": "exact", "heads": 1},
    ),
    "distributed.decode": (distributed.decode, {"q": K, "k": K, "v": K, "group": None, "scale": 1.0}),
    "distributed.shard": (distributed.shard, {"sequence": K, "axis": 3, "group": None, "layout": "zigzag"}),
    "distributed.unshard": (distributed.unshard, {"rows": K, "axis": 3, "group": None, "layout": "zigzag"}),
    "distributed.positions": (distributed.positions, {"rows": 8, "group": None, "layout": "zigzag"}),
    "distributed.check": (distributed.check, {"q": K, "k": K, "v": K, "group": None}),
}  # fmt: skip
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
def test_senseless_values(reference, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)  # some functions write files
    copy_context().run(taken_or_refused, *FUNCTIONS[name])  # what use_backend chooses ends with the context


def test_senseless_pictures(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    right = {"path": str(tmp_path / "mask.png"), "batch": 0, "head": 0}
    taken_or_refused(lambda **named: BlockMask.causal(9, 9, block=32).plot(**right | named), right)


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
