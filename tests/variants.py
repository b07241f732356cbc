"""One small problem for each option of attention, by name; what it asks for is drawn in feature_cases.py."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
from cases import Case
from feature_cases import FEATURES, Variant
from oracle_variants import Attention

CASE = Case(45, 70, 16, group=2, key_heads=2, batch=2)
VARIANTS = {
    "plain": Variant(CASE, ("lse",)),
    **{name: Variant(CASE, (name, "lse")) for name in FEATURES if name != "lse"},
    "additive-by-key": Variant(CASE, ("additive", "lse"), "hj"),
    "additive-by-query": Variant(CASE, ("additive", "lse"), "bi"),
    "everything": Variant(CASE, tuple(name for name in FEATURES if name not in ("bool", "blocks")), "hij", (30, 5)),
}


def _cotangent(variant: Variant) -> mx.array:
    return mx.array(variant.draw("d_lse").standard_normal(variant.shape[:3]).astype(np.float32))


def computed(name: str) -> dict[str, mx.array]:
    """O, L (the natural-log LSE) and every gradient, on the current backend."""
    variant = VARIANTS[name]
    arguments, _ = feature_cases.build(variant)
    got = feature_cases.backward(variant, CASE.arrays(), arguments, _cotangent(variant))
    return {"L" if tensor == "LSE" else tensor: array for tensor, array in got.items()}


def dense(name: str) -> dict[str, np.ndarray]:
    """The same in float64."""
    variant, arrays = VARIANTS[name], CASE.arrays()
    inputs = (bounds.float64(arrays[tensor]) for tensor in ("q", "k", "v", "d_o"))
    facts = feature_cases.build(variant)[1]
    want = Attention(*inputs, CASE.scale, facts, bounds.float64(_cotangent(variant))).results()
    return {"L" if tensor == "LSE" else tensor: array for tensor, array in want.items()}
