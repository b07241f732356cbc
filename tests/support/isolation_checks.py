"""The rows that a NaN or an infinity must reach, and checks that it reaches these rows and no others."""

import bounds
import feature_cases
import mlx.core as mx
import numpy as np
import oracle_variants
from arrays import bits
from cases import Case
from feature_cases import Variant
from oracle_variants import Facts

from mlx_flash.simulator import schedule

CASE = Case(65, 70, 16, group=2, key_heads=2, batch=2)
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


NEARER = {(*place[:2], place[2] * 2 // 3, place[3]): value for place, value in INFINITE.items()}  # within 50 keys


def products(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """weights [.., n, m] @ rows [.., m, d], where a weight of 0 omits its row, whatever the row holds."""
    with np.errstate(invalid="ignore"):
        terms = weights[..., None] * rows[..., None, :, :]
        return np.where(weights[..., None] == 0, 0, terms).sum(-2)


def check_infinities(variant: Variant, places: dict):
    """Checks that rows that see an infinity in V, or in the cotangent of O, follow IEEE arithmetic."""
    case, arrays, (arguments, facts) = variant.case, variant.case.arrays(), feature_cases.build(variant)
    arrays |= {"d_o": arrays["d_o"].at[0, 1, 30, 2].add(-np.inf)}
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


def changed(variant: Variant, arrays: dict, others: dict, arguments: dict) -> list[str]:
    """The results, O, LSE and gradients, that are not the same to the bit over the arrays and over others."""
    want, got = (feature_cases.backward(variant, one, arguments) for one in (arrays, others))
    return [name for name in want if bits(got[name]) != bits(want[name])]


def check_masked_keys(variant: Variant, garbage: float, mask: mx.array):
    """Checks that garbage in HIDDEN keys and values, which the mask hides, changes no result."""
    arrays, keep = variant.case.arrays(), mx.array(KEEP)
    others = {name: mx.where(keep[:, None], arrays[name], garbage).astype(arrays[name].dtype) for name in "kv"}
    assert changed(variant, arrays, arrays | others, {"mask": mask}) == []


def check_masked_queries(case: Case):
    """Checks that NaN in 16 queries before the first key, and in their cotangents, changes no result."""
    arrays, blind = case.arrays(), (slice(None), slice(None), slice(0, 16))
    others = {name: spoiled(arrays[name], blind, np.nan) for name in ("q", "d_o")}
    assert changed(Variant(case, ()), arrays, arrays | others, {"causal": True}) == []


def check_a_nan(case: Case):
    """Checks that a NaN in q, k, v or dO reaches the rows that see it, and changes no other. `case`: 45 queries and 50
    keys, two entries of two key heads and two query heads each."""
    arrays, variant, causal = case.arrays(), Variant(case, ()), {"causal": True}
    table = oracle_variants.seen(Facts(causal=True), (2, 4, 45, 50))
    want = feature_cases.backward(variant, arrays, causal)
    for tensor, place in (("q", (0, 0, 40)), ("k", (1, 1, 30)), ("v", (0, 1, 45)), ("d_o", (1, 0, 20))):
        got = feature_cases.backward(variant, arrays | {tensor: spoiled(arrays[tensor], place, np.nan)}, causal)
        for name, rows in reached(table, tensor, place).items():
            assert rows.any() or not np.isnan(np.array(got[name])).any()
            assert np.array_equal(rows_of_nan(got[name]), rows), f"{name}: from {tensor} {place}"
            assert np.array_equal(np.array(got[name])[~rows], np.array(want[name])[~rows]), (name, tensor)


def check_views(case: Case, view):
    """Checks that views of the arrays give the bits of the arrays."""
    arrays = case.arrays()
    views = {name: view(array) for name, array in arrays.items()}
    assert changed(Variant(case, ()), arrays, views, {"causal": True}) == []


def check_schedules(case: Case, *orders: tuple[str, int]):
    """Checks that every order of threads gives the bits of the usual one."""
    arrays, variant = case.arrays(), Variant(case, ())
    want = feature_cases.backward(variant, arrays, {"causal": True})
    for order in orders:
        with schedule(*order):
            got = feature_cases.backward(variant, arrays, {"causal": True})
        assert [name for name in want if bits(got[name]) != bits(want[name])] == [], order
