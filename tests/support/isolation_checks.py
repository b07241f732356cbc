"""The rows that a NaN or an infinity must reach, and checks that it reaches these rows and no others."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import oracle_variants
from cases import Case
from feature_cases import Variant

CASE = Case(65, 70, 40, group=2, key_heads=2, batch=2)
HIDDEN = np.r_[0:9, 33:41, 64:70]  # keys that no query sees, at the edges of blocks and inside them
KEEP = ~np.isin(np.arange(70), HIDDEN)


def spoiled(array: mx.array, place, garbage) -> mx.array:
    """A copy of the array with garbage at one place."""
    copy = np.array(array)
    copy[place] = garbage
    return mx.array(copy)


def rows_of_nan(array) -> np.ndarray:
    """bool over all axes except the last: the rows that hold a NaN."""
    return np.isnan(np.array(array)).any(-1)


def reached(table: np.ndarray, tensor: str, place: tuple) -> dict[str, np.ndarray]:
    """The rows of each result that a NaN in row `place` of `tensor` must reach. table: visible pairs [B, Hq, Lq,
    Lk]."""
    b, head, row = place
    rows, group = np.zeros(table.shape[:3], bool), table.shape[1] // CASE.key_heads
    if tensor in "kv":
        heads = slice(head * group, (head + 1) * group)
        rows[b, heads] = table[b, heads, :, row]
    else:
        rows[b, head, row] = table[b, head, row].any()
    keys = (rows[..., None] & table).any(2).reshape(2, CASE.key_heads, group, -1).any(2)
    none = {"O": np.zeros_like(rows), "dQ": np.zeros_like(rows), "dK": np.zeros_like(keys), "dV": np.zeros_like(keys)}
    if tensor == "d_o":
        return none | {"dQ": rows, "dK": keys, "dV": keys}
    if tensor == "v":
        return none | {"O": rows, "dQ": rows, "dK": keys}
    return {"O": rows, "dQ": rows, "dK": keys, "dV": keys}


# (batch entry, key head, key, column) in V: infinities of one sign, of both in a column, and one beside a NaN.
INFINITE = {
    (0, 0, 3, 5): np.inf, (0, 0, 50, 5): np.inf, (0, 1, 30, 7): -np.inf, (1, 0, 9, 0): np.inf, (1, 0, 61, 0): -np.inf,
    (1, 1, 20, 9): np.nan, (1, 1, 44, 9): np.inf,
}  # fmt: skip


def products(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """weights [.., n, m] @ rows [.., m, d], where a weight of 0 omits its row, whatever the row holds."""
    with np.errstate(invalid="ignore"):
        terms = weights[..., None] * rows[..., None, :, :]
        return np.where(weights[..., None] == 0, 0, terms).sum(-2)


def check_infinities(variant: Variant, places: dict):
    """Checks that rows that see an infinity in V, or in the cotangent of O, follow IEEE arithmetic."""
    case, arrays, (arguments, facts) = variant.case, variant.case.arrays(), feature_cases.build(variant)
    arrays |= {"d_o": arrays["d_o"].at[0, 1, 40, 2].add(-np.inf)}
    for place, value in places.items():
        arrays["v"] = arrays["v"].at[place].add(value)
    q, k, v, d_o = (bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o"))
    p = oracle_variants.Attention(q, k, np.zeros_like(v), np.zeros_like(d_o), case.scale, facts).p
    heads = (v.shape[0], case.key_heads, case.group)
    want = {
        "O": products(p, np.repeat(v, case.group, 1)),
        "dV": products(p.swapaxes(-1, -2), d_o).reshape(*heads, *v.shape[2:]).sum(2),
    }
    got = feature_cases.backward(variant, arrays, arguments)
    for name, exact in want.items():
        found, numbers = bounds.float64(got[name]), np.isfinite(exact)
        assert np.array_equal(found[~numbers], exact[~numbers], equal_nan=True), name
        assert np.isfinite(found[numbers]).all(), name
    assert {np.inf, -np.inf} <= set(want["O"].flat) and np.isnan(want["O"]).any() and np.isneginf(want["dV"]).any()
