"""Every wrong option is refused by a message that names it, what was expected, what came, and what to do."""

import math
import re
import sys

import mlx.core as mx
import numpy as np
import pytest
from refusals import call

from mlx_flash import BlockMask, UnsupportedProblem, explain
from mlx_flash.kernels import source
from mlx_flash.problem import variants

KEY = mx.random.key(0)
HALVES = {name: mx.zeros(shape, mx.float16) for name, shape in
          {"q": (2, 4, 5, 16), "k": (2, 2, 6, 16), "v": (2, 2, 6, 24)}.items()}  # fmt: skip


def ids(length, dtype=mx.int32, *batch):
    return mx.zeros((*batch, length), dtype)


# name: (options, the argument blamed, what was expected, what came, what to do); B 2, Hq 4, Hk 2, Lq 5, Lk 6, float32
WRONG = {
    "mask word": ({"mask": "causl"}, "mask", '"causal"', "'causl'", "spelling"),
    "causal": ({"causal": 1}, "causal", "True or False", "1", "Pass a bool"),
    **{f"return_lse {got}": ({"return_lse": value}, "return_lse", 'True, False or "split"', got, "spelling")
       for value, got in (("both", "both"), (2, "2"), (np.array([1, 2]), "array([1, 2])"))},
    "mask-no-array": (
        {"mask": np.ones((5, 6), bool)}, "mask", "an mlx.core.array or a BlockMask", "ndarray", "mx.array",
    ),
    "mask-integers": (
        {"mask": mx.zeros((5, 6), mx.int32)}, "mask", "dtype bool (True = keep) or a float", "int32", "Cast",
    ),
    "mask-complex": ({"mask": mx.zeros((5, 6), mx.complex64)}, "mask", "dtype bool", "complex64", "Cast"),
    "mask-promotes": (
        HALVES | {"mask": mx.zeros((5, 6))}, "mask", "a dtype that promotes to q's mlx.core.float16", "float32", "Cast",
    ),
    "mask-other-half": (
        HALVES | {"mask": mx.zeros((5, 6), mx.bfloat16)}, "mask", "a dtype that promotes", "bfloat16", "Cast it with",
    ),
    "mask-transposed": (
        {"mask": mx.zeros((6, 5))}, "mask", "broadcasts to [B, Hq, Lq, Lk] = [2, 4, 5, 6]", "(6, 5)", "Add",
    ),
    "mask-key-heads": ({"mask": mx.zeros((2, 2, 5, 6))}, "mask", "broadcasts to", "(2, 2, 5, 6)", "slice"),
    "mask-five-axes": ({"mask": mx.zeros((1, 1, 1, 5, 6))}, "mask", "broadcasts to", "(1, 1, 1, 5, 6)", "slice"),
    "block-mask-lengths": (
        {"mask": BlockMask.causal(6, 6)}, "mask", "a BlockMask that fits", "[1, 1, 6, 6]", "Build it",
    ),
    "block-mask-heads": (
        {"mask": BlockMask.from_array(np.ones((2, 5, 6), bool))}, "mask", "a BlockMask that fits", "[1, 2, 5, 6]",
        "Build it",
    ),
    "score": ({"score": 3}, "score", "a mlx_flash.Score or its text", "int", "Pass Score"),
    "too-many": (
        {"score": "s", "visible": "k < q", "mask": mx.zeros((5, 6)), "softcap": 1.0, "alibi_slopes": mx.zeros(4),
         "window": (3, 3), "segments": (ids(5), ids(6)), "dropout": 0.1, "key": KEY},
        "options", "at most 31 arguments", "33", "Leave out a mask",
    ),
    "visible-and-blocks": (
        {"visible": "k < q", "mask": BlockMask.causal(5, 6)}, "visible", "one way to say", "a BlockMask too", "Join",
    ),
    "window-number": ({"window": 5}, "window", "(left, right), each a number of keys or None", "5", "Pass a pair"),
    "window-three": ({"window": (1, 2, 3)}, "window", "(left, right)", "(1, 2, 3)", "Pass a pair"),
    "window-negative": ({"window": (-2, 0)}, "window", "sides of at least 0", "(-2, 0)", "whole numbers"),
    "window-fraction": ({"window": (1.5, 0)}, "window", "sides of at least 0", "(1.5, 0)", "whole numbers"),
    "window-bool": ({"window": (True, 0)}, "window", "sides of at least 0", "(True, 0)", "whole numbers"),
    "softcap-negative": ({"softcap": -1}, "softcap", "a finite number above 0", "-1", "Pass a float"),
    "softcap-infinite": ({"softcap": math.inf}, "softcap", "a finite number above 0", "inf", "Pass a float"),
    "softcap-nan": ({"softcap": math.nan}, "softcap", "a finite number above 0", "nan", "Pass a float"),
    "softcap-word": ({"softcap": "fifty"}, "softcap", "a finite number above 0", "'fifty'", "Pass a float"),
    "slopes-list": (
        {"alibi_slopes": [1.0] * 4}, "alibi_slopes", "an mlx.core.array of a float type", "list", "mx.array",
    ),
    "slopes-integers": (
        {"alibi_slopes": mx.zeros(4, mx.int32)}, "alibi_slopes", "of a float type", "int32", "mx.array",
    ),
    "slopes-key-heads": (
        {"alibi_slopes": mx.zeros(2)}, "alibi_slopes", "shape (4,), one number per", "(2,)", "Reshape",
    ),
    "sinks-list": ({"sinks": [1.0] * 4}, "sinks", "an mlx.core.array of a float type", "list", "mx.array"),
    "sinks-shape": ({"sinks": mx.zeros((4, 1))}, "sinks", "shape (4,), one number per query head", "(4, 1)", "Reshape"),
    "sinks-promote": (HALVES | {"sinks": mx.zeros(4)}, "sinks", "a dtype that promotes", "float32", "Cast it with"),
    "segments-array": ({"segments": ids(5)}, "segments", "(q_ids, k_ids)", "array", "Pass a pair"),
    "segments-one": ({"segments": (ids(5),)}, "segments", "(q_ids, k_ids)", "tuple", "Pass a pair"),
    "segments-list": ({"segments": ([0] * 5, ids(6))}, "segments q_ids", "an integer array", "list", "mx.int32"),
    "segments-floats": (
        {"segments": (ids(5), ids(6, mx.float32))}, "segments k_ids", "an integer array", "float32", "Cast",
    ),
    "segments-of-floats": (
        {"segments": (ids(5, mx.float32), ids(6))}, "segments q_ids", "an integer array", "float32", "Cast",
    ),
    "segments-length": ({"segments": (ids(5), ids(5))}, "segments k_ids", "= [2, 6] or [6]", "(5,)", "every position"),
    "segments-batch": (
        {"segments": (ids(5, mx.int32, 3), ids(6))}, "segments q_ids", "= [2, 5] or [5]", "(3, 5)", "every position",
    ),
    "dropout-one": ({"dropout": 1.0, "key": KEY}, "dropout", "at least 0 and below 1", "1.0", "Pass 0.0"),
    "dropout-negative": ({"dropout": -0.1, "key": KEY}, "dropout", "at least 0 and below 1", "-0.1", "Pass 0.0"),
    "dropout-nan": ({"dropout": math.nan, "key": KEY}, "dropout", "at least 0 and below 1", "nan", "Pass 0.0"),
    "dropout-word": ({"dropout": "0.1", "key": KEY}, "dropout", "at least 0 and below 1", "'0.1'", "Pass 0.0"),
    "dropout-bool": ({"dropout": True, "key": KEY}, "dropout", "at least 0 and below 1", "True", "Pass 0.0"),
    "dropout-without-key": (
        {"dropout": 0.1}, "key", "an mx.random key when dropout > 0", "None", "mx.random.key(seed)",
    ),
    "key-number": ({"dropout": 0.1, "key": 7}, "key", "an mx.random key (uint32 of shape (2,))", "7", "mx.random.key"),
    "key-shape": (
        {"dropout": 0.1, "key": mx.zeros(3, mx.uint32)}, "key", "an mx.random key (uint32", "array", "mx.random.key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_option(name):
    options, argument, expected, got, remedy = WRONG[name]
    pattern = r"\[mlx_flash\.attention\] {}: expected (?s:.*){}(?s:.*), got (?s:.*){}(?s:.*)\. .*{}".format(
        *map(re.escape, (argument, expected, got, remedy))
    )
    with pytest.raises(ValueError, match=pattern) as raised:
        call(**options)
    assert isinstance(raised.value, UnsupportedProblem) == (name == "too-many")


def test_a_plot_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"\[mlx_flash.BlockMask\] plot needs matplotlib: pip install .*\[demo\]"):
        BlockMask.causal(9, 9).plot(tmp_path / "mask.png")


def test_explaining_a_gpu_that_is_not_here(monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"family: expected one of apple7, .* to explain metal .* got None\. Name the"):
        explain(head_dim=64, length=9, backend="metal")


def test_an_installation_without_templates():
    with pytest.raises(FileNotFoundError, match=r"template nothing\.metal is missing .*: reinstall it"):
        source.template("nothing")


def sites_met(module) -> set[int]:
    """Lines of the module's raise statements that a case of this file reaches."""
    met = set()
    for options, *_ in WRONG.values():
        with pytest.raises(ValueError) as raised:
            call(**options)
        met |= {entry.lineno + 1 for entry in raised.traceback if entry.path.name == f"{module}.py"}
    return met


def test_every_check_of_the_options_is_met():
    path = variants.__file__
    with open(path, encoding="utf-8") as file:
        sites = {number for number, line in enumerate(file, 1) if line.lstrip().startswith("raise ")}
    assert sites <= sites_met("variants")


def test_good_options_are_taken():
    """Everything that the messages call right: a list for a pair, masks and sinks of a narrower type, numpy scalars."""
    good = {
        "window": [3, None], "softcap": np.float32(2), "sinks": mx.zeros(4, mx.float16), "dropout": 0.5, "key": KEY,
        "mask": mx.zeros((4, 1, 6), mx.bfloat16), "segments": [ids(5, mx.int8), ids(6, mx.uint16)],
        "alibi_slopes": mx.zeros(4, mx.bfloat16), "causal": True,
    }  # fmt: skip
    assert call(**good).shape == (2, 4, 5, 24)
    for options in ({"dropout": 0}, {"softcap": None}, {"window": None}, {"mask": mx.array(0.0)}):
        assert call(**options).shape == (2, 4, 5, 24)
