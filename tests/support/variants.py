"""One small problem for each option of attention, by name; feature_cases.py draws the options' values."""

from dataclasses import replace

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
from cases import Case
from feature_cases import FEATURES, MASKS, Variant
from oracle_variants import Attention

from mlx_flash import attention

CASE = Case(45, 70, 16, group=2, key_heads=2, batch=2)
VARIANTS = {
    "plain": Variant(CASE, ("lse",)),
    **{name: Variant(CASE, (name, "lse")) for name in FEATURES if name != "lse"},
    "additive-by-key": Variant(CASE, ("additive", "lse"), "hj"),
    "additive-by-query": Variant(CASE, ("additive", "lse"), "bi"),
    "wide-window": Variant(replace(CASE, key_length=197), ("window", "lse"), window=(90, 20)),  # whole tiles inside it
    "long-lengths": Variant(replace(CASE, key_length=300), ("lengths", "lse")),  # whole tiles behind an end
    "everything": Variant(
        CASE, tuple(name for name in FEATURES if name not in ("bool", "blocks", "visible", "lengths")), "hij", (30, 5)
    ),
    "everything-visible": Variant(
        CASE, tuple(name for name in FEATURES if name not in (*MASKS[:3], "lengths")), "hij", (30, 5)
    ),
}


def _cotangent(variant: Variant) -> mx.array:
    return mx.array(variant.draw("d_lse").standard_normal(variant.shape[:3]).astype(np.float32))


def output(name: str) -> dict[str, mx.array]:
    """O and L, without the gradients."""
    q, k, v = (VARIANTS[name].case.arrays()[tensor] for tensor in "qkv")
    return dict(zip("OL", attention(q, k, v, **feature_cases.build(VARIANTS[name])[0])))


def computed(name: str) -> dict[str, mx.array]:
    """O, L (the natural-log LSE) and every gradient, on the current backend."""
    variant = VARIANTS[name]
    arguments, _ = feature_cases.build(variant)
    got = feature_cases.backward(variant, variant.case.arrays(), arguments, _cotangent(variant))
    return {"L" if tensor == "LSE" else tensor: array for tensor, array in got.items()}


def dense(name: str) -> dict[str, np.ndarray]:
    """The same results from the oracle, in float64."""
    variant = VARIANTS[name]
    arrays = variant.case.arrays()
    inputs = (bounds.float64(arrays[tensor]) for tensor in ("q", "k", "v", "d_o"))
    facts = feature_cases.build(variant)[1]
    want = Attention(*inputs, variant.case.scale, facts, bounds.float64(_cotangent(variant))).results()
    return {"L" if tensor == "LSE" else tensor: array for tensor, array in want.items()}
