"""Checks of decoding for every backend and every tile layer."""

import itertools
import math
from dataclasses import replace

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import oracle
from arrays import bits
from cases import Case, expected
from feature_cases import Variant

from mlx_flash import BlockMask, attention, explain
from mlx_flash.explanations.explain import inner_problem
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import DECODE


def check(case: Case):
    """Checks O and LSE of the case on the current backend."""
    arrays = case.arrays()
    q, k, v = (arrays[name] for name in "qkv")
    out, lse = attention(q, k, v, scale=case.scale, causal=case.causal, return_lse=True)
    expected(case, arrays).check(O=out)
    exact = [bounds.float64(array) for array in (q, k, v)]
    want = oracle.forward(*exact, case.scale, case.causal)[1]
    terms = float(case.scale * np.abs(exact[0]).sum(-1).max() * np.abs(exact[1]).max()) + math.log(case.key_length + 1)
    feature_cases.check_lse(lse, want, str(case), terms)


LENGTH_CASES = [
    Case(queries, keys, 16, causal=True, group=group, key_heads=2, batch=2)
    for queries, keys, group in itertools.product((1, 2, 8), (1, 7, 65, 1301), (1, 4, 12))
]
# Numbers of rows that are not a multiple of the rows that a threadgroup combines, with keys in several parts.
LENGTH_CASES += [
    Case(queries, 1301, 16, causal=True, group=group) for queries, group in ((3, 3), (1, 5), (7, 3), (1, 1))
]


# 704 keys in two parts, the last block full; feature_cases.py has the features. Gradients read the same O and L.
TEXTS = ("score", "visible")
CASE = Case(3, 704, 16, group=4, key_heads=2, batch=2)
ONE = replace(CASE, query_length=1)
VARIANTS = {
    **{name: Variant(CASE, (name, "lse")) for name in feature_cases.FEATURES if name not in ("lse", *TEXTS)},
    "wide-window": Variant(replace(CASE, causal=True), ("causal", "window", "lse"), window=(600, 0)),
    "additive-by-key": Variant(ONE, ("additive", "lse"), "bj"),
    "bool-by-head": Variant(ONE, ("bool", "lse"), "hj"),
    "array-mask": Variant(
        CASE, ("causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "lse"), window=(500, 0),
    ),
    "block-mask": Variant(CASE, ("causal", "blocks", "softcap", "alibi", "sinks", "segments", "lse"), "h"),
    **{name: Variant(CASE, (name, "lse")) for name in TEXTS},
}  # fmt: skip


def shaped(group: int, queries: int, keys: int, head_dim=16, dtype=mx.float32, key_heads=2):
    shapes = [(1, group * key_heads, queries, head_dim), *[(1, key_heads, keys, head_dim)] * 2]
    return [mx.random.normal(shape, key=mx.random.key(keys)).astype(dtype) for shape in shapes]


def check_hidden_parts(dtype=mx.float32, garbage=mx.nan):
    """Checks that results do not depend on hidden keys and values, which hold `garbage`."""
    q, k, v = shaped(4, 2, 1024, dtype=dtype)
    keep = np.ones(1024, bool)
    keep[256:768] = False
    hidden = {
        "bool": {"mask": mx.array(keep)},
        "additive": {"mask": mx.array(np.where(keep, 0, -np.inf)).astype(dtype)},
        "blocks": {"mask": BlockMask.from_array(np.broadcast_to(keep, (2, 1024)), block=64)},
        "segments": {"segments": (mx.zeros((2,), mx.int32), mx.array(np.where(keep, 0, 1).astype(np.int32)))},
    }
    asked = inner_problem(explain(q, k, v, backend="simulator").problem)
    assert plan_of(DECODE, asked, FAMILIES["apple9"]).launch(asked).parts == 4
    near = mx.concatenate([mx.arange(256), mx.arange(768, 1024)])
    alone = q, k[:, :, near], v[:, :, near]  # two parts of 256 keys
    plain, nothing_added = (attention(*alone, mask=mask, return_lse=True) for mask in (None, mx.zeros((512,), dtype)))
    spoiled = [mx.where(mx.array(keep)[:, None], array, garbage).astype(dtype) for array in (k, v)]
    for name, options in hidden.items():
        got = attention(q, *spoiled, return_lse=True, **options)
        want = nothing_added if name == "additive" else plain  # scores are scaled before anything is added
        assert [bits(array) for array in got] == [bits(array) for array in want], name


def check_blind_rows(name: str, dtype=mx.float32):
    q, k, v = shaped(4, 3, 600, dtype=dtype)
    keep = np.ones((8, 3, 600), bool)
    keep[1, 2], keep[4, 0], keep[7] = False, False, False
    options = {
        "bool": {"mask": mx.array(keep)},
        "additive": {"mask": mx.array(np.where(keep, 0, -np.inf)).astype(dtype)},
        "blocks": {"mask": BlockMask.from_array(keep, block=64)},
        "segments": {"segments": (mx.array([0, 5, 0]), mx.zeros((600,), mx.int32))},
        "window": {"window": (0, 0), "mask": mx.array(np.arange(600) != 598)},
    }[name]
    blind = ~keep.any(-1)[None] if name in ("bool", "additive", "blocks") else np.tile(np.arange(3) == 1, (1, 8, 1))
    out, lse = (np.array(array.astype(mx.float32)) for array in attention(q, k, v, return_lse=True, **options))
    assert np.array_equal(np.isneginf(lse), blind) and np.isfinite(lse[~blind]).all()
    assert out[blind].tobytes() == bytes(out[blind].nbytes) and np.isfinite(out).all() and out[~blind].any(-1).all()
    nobody = attention(q, k, v, return_lse=True, mask=mx.zeros((600,), mx.bool_))
    assert not bounds.float64(nobody[0]).any() and np.isneginf(np.array(nobody[1])).all()
