"""Problems with masks and variants: a Case, its features, its data, and the oracle's judgement."""

import itertools
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import bounds
import mlx.core as mx
import numpy as np
import score_facts
from cases import SEED, Case
from oracle_variants import Attention, Facts

from mlx_flash import BlockMask, attention, use_backend

KEY, DROPOUT, SOFTCAP = mx.random.key(5), 0.3, 2.5
MASKS = ("bool", "additive", "blocks", "visible")  # a call has at most one of them
FEATURES = ("causal", "window", *MASKS, "softcap", "alibi", "sinks", "segments", "lengths", "dropout", "lse", "score")
APART = (*({one, other} for one, other in itertools.combinations(MASKS, 2)), {"segments", "lengths"})  # never together


@dataclass(frozen=True)
class Variant:
    """`mask_axes`: the axes of [B, Hq, Lq, Lk] that an array mask has; the other axes are 1."""

    case: Case
    features: tuple[str, ...]
    mask_axes: str = "bhij"
    window: tuple[int | None, int | None] = (19, 7)

    def __str__(self):
        return f"{'+'.join(self.features)}-{self.mask_axes}-{self.case}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.case.shapes["q"][:3], self.case.key_length)

    def draw(self, name: str) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(f"{name} {self}".encode())])


def tiles(draw, rows: int, columns: int, side: int = 32) -> np.ndarray:
    """bool [rows, columns] with empty, full and mixed squares, like the masks of real models."""
    grid = -(-rows // side), -(-columns // side)
    odds = draw.choice([0.0, 0.5, 1.0], size=grid, p=[0.3, 0.4, 0.3]).repeat(side, 0).repeat(side, 1)
    return draw.random((rows, columns)) < odds[:rows, :columns]


def boolean(variant: Variant):
    batch, heads, rows, columns = (
        extent if axis in variant.mask_axes else 1 for axis, extent in zip("bhij", variant.shape)
    )
    draw = variant.draw("bool")
    keep = np.stack([tiles(draw, rows, columns) for _ in range(batch * heads)]).reshape(batch, heads, rows, columns)
    return {"mask": mx.array(keep)}, {"keep": keep}


def additive(variant: Variant):
    """An additive mask: random numbers, with some -inf if no axis is broadcast."""
    shape = tuple(extent if axis in variant.mask_axes else 1 for axis, extent in zip("bhij", variant.shape))
    draw = variant.draw("additive")
    numbers = draw.standard_normal(shape)
    if variant.mask_axes == "bhij":
        numbers[draw.random(shape) < 0.2] = -np.inf
    mask = mx.array(numbers).astype(getattr(mx, variant.case.dtype))
    return {"mask": mask}, {"mask": bounds.float64(mask)}


def blocks(variant: Variant):
    rows, columns = variant.shape[2:]
    heads = variant.shape[1] if "h" in variant.mask_axes else 1
    draw = variant.draw("blocks")
    keep = np.stack([tiles(draw, rows, columns) for _ in range(heads)])
    return {"mask": BlockMask.from_array(keep, block=32)}, {"keep": keep}


def per_head(name: str, low: float, high: float):
    def build(variant: Variant):
        numbers = mx.array(variant.draw(name).uniform(low, high, variant.shape[1])).astype(
            getattr(mx, variant.case.dtype)
        )
        fact = "slopes" if name == "alibi_slopes" else name
        return {name: numbers}, {fact: bounds.float64(numbers)}

    return build


def segments(variant: Variant):
    """Runs of positions. They differ by batch entry, and break at different places in queries and keys."""
    batch, _, rows, columns = variant.shape
    draw = variant.draw("segments")
    q_ids, k_ids = (np.sort(draw.integers(0, 3, (batch, length)), -1).astype(np.int32) for length in (rows, columns))
    return {"segments": (mx.array(q_ids), mx.array(k_ids))}, {"q_ids": q_ids, "k_ids": k_ids}


def lengths(variant: Variant):
    """Lengths of every batch entry; some have more queries than keys, or no keys."""
    batch, _, rows, columns = variant.shape
    draw = variant.draw("lengths")
    ends = {name: draw.integers(0, length + 1, batch) for name, length in (("q_lengths", rows), ("k_lengths", columns))}
    return {"lengths": tuple(mx.array(end.astype(np.int32)) for end in ends.values())}, ends


def score(variant: Variant):
    heads, draw = variant.shape[1], variant.draw("score")
    arrays = draw.uniform(0.5, 1.5, heads), draw.standard_normal((17, heads))
    arrays = [array.astype(np.float32) for array in arrays]
    return {"score": score_facts.score(*arrays)}, {"score": score_facts.HandScore(*map(bounds.float64, arrays))}


@lru_cache
def pattern(shape: tuple[int, int, int, int], probability: float = DROPOUT, seed: int = 5) -> np.ndarray:
    """The pairs that survive dropout on the reference: with equal scores and V = 1, O shows which keys are left."""
    batch, heads, rows, columns = shape
    zeros = mx.zeros((batch, heads, 1, 8))
    q, k = mx.broadcast_to(zeros, (batch, heads, rows, 8)), mx.broadcast_to(zeros, (batch, heads, columns, 8))
    v = mx.broadcast_to(mx.eye(columns), (batch, heads, columns, columns))
    with use_backend("reference"):
        return np.array(attention(q, k, v, dropout=probability, key=mx.random.key(seed))) > 0


BUILDERS = {
    "causal": lambda variant: ({"causal": True}, {"causal": True}),
    "window": lambda variant: ({"window": variant.window}, {"window": variant.window}),
    "bool": boolean,
    "additive": additive,
    "blocks": blocks,
    "softcap": lambda variant: ({"softcap": SOFTCAP}, {"softcap": SOFTCAP}),
    "alibi": per_head("alibi_slopes", 0.01, 0.5),
    "sinks": per_head("sinks", -1.0, 2.0),
    "segments": segments,
    "lengths": lengths,
    "dropout": lambda variant: (
        {"dropout": DROPOUT, "key": KEY}, {"dropout": DROPOUT, "survives": pattern(variant.shape)},
    ),
    "score": score,
    "visible": lambda variant: ({"visible": score_facts.visible()}, {"visible": score_facts.hand_visible}),
    "lse": lambda variant: ({"return_lse": True}, {}),
}  # fmt: skip


def legal(features) -> bool:
    """Whether these features may be combined in one call."""
    return not any(pair <= set(features) for pair in APART)


def build(variant: Variant) -> tuple[dict, Facts]:
    """The arguments of `attention`, and the oracle's Facts."""
    arguments, facts = {}, {}
    for name in variant.features:
        ours, theirs = BUILDERS[name](variant)
        arguments |= ours
        facts |= theirs
    return arguments, Facts(**facts)


def backward(variant: Variant, arrays, arguments: dict, d_lse=None) -> dict[str, mx.array]:
    """O, the LSE if the variant returns it, and every gradient."""
    leaves = {name: arrays[name] for name in "qkv"}
    if isinstance(arguments.get("mask"), mx.array) and arguments["mask"].dtype != mx.bool_:
        leaves["mask"] = arguments["mask"]
    if "sinks" in arguments:
        leaves["sinks"] = arguments["sinks"]

    def call(*values):
        named = arguments | dict(zip(leaves, values))
        result = attention(named.pop("q"), named.pop("k"), named.pop("v"), scale=variant.case.scale, **named)
        return list(result) if isinstance(result, tuple) else [result]

    cotangents = [arrays["d_o"], *([] if d_lse is None else [d_lse])]
    outs, grads = mx.vjp(call, list(leaves.values()), cotangents)
    titles = {"q": "dQ", "k": "dK", "v": "dV", "mask": "dM", "sinks": "dsinks"}
    return dict(zip(("O", "LSE"), outs)) | {titles[name]: grad for name, grad in zip(leaves, grads)}


def unfused_errors(variant: Variant, arrays, arguments, judge: Attention, d_lse, want) -> dict[str, bounds.Error]:
    mask = arguments.get("mask")
    optional = {"dM": mask if "dM" in want else None, "dsinks": arguments.get("sinks")}
    leaves = [arrays[name] for name in "qkv"] + [array for array in optional.values() if array is not None]

    def call(q, k, v, *rest):
        rest = iter(rest)
        extra = [next(rest) if array is not None else None for array in optional.values()]
        return bounds.unfused_variant(q, k, v, *extra, scale=variant.case.scale, attention=judge)

    d_lse = mx.zeros(variant.shape[:3]) if d_lse is None else d_lse
    outs, grads = mx.vjp(call, leaves, [arrays["d_o"], d_lse])
    names = ("O", "dQ", "dK", "dV", *(name for name, array in optional.items() if array is not None))
    return {name: bounds.Error.of(got, want[name]) for name, got in zip(names, (outs[0], *grads))}


def check(variant: Variant, stored_output=False):
    """Runs the variant on the current backend, forward and backward, and judges every tensor."""
    check_arguments(variant, *build(variant), stored_output)


def check_arguments(variant: Variant, arguments: dict, facts: Facts, stored_output=False):
    """The same with the caller's arguments; `variant` supplies q, k, v and says whether the LSE is returned."""
    case, arrays = variant.case, variant.case.arrays()
    d_lse = None
    if "lse" in variant.features:
        d_lse = mx.array(variant.draw("d_lse").standard_normal(variant.shape[:3]).astype(np.float32))
    got = backward(variant, arrays, arguments, d_lse)
    judge = Attention(
        *(bounds.float64(arrays[name]) for name in ("q", "k", "v", "d_o")), scale=case.scale, facts=facts,
        d_lse=None if d_lse is None else bounds.float64(d_lse),
    )  # fmt: skip
    want, terms = judge.results(), judge.term_magnitudes()
    assert set(got) == set(want) - ({"LSE"} if d_lse is None else set())
    unfused, floors = {}, {name: bounds.score_rounding(judge.largest_score) * size for name, size in terms.items()}
    if case.dtype != "float32":
        unfused = unfused_errors(variant, arrays, arguments, judge, d_lse, want)
        # The gradient of a sink is a sum of rowsum(dO * O) itself: the effects of rounding O do not cancel in it.
        moved = judge.moved_by_output(bounds.rounding(case.dtype))
        floors = moved if stored_output else {name: moved[name] for name in moved if name == "dsinks"}
    if "LSE" in got:
        check_lse(got.pop("LSE"), want["LSE"], str(variant), terms["LSE"])
    for name, array in got.items():
        assert array.dtype == getattr(mx, case.dtype), f"{name}: dtype {array.dtype} in {variant}"
        bounds.check(
            name, array, want[name], str(variant), case.dtype, terms=terms[name], unfused=unfused.get(name),
            floor=floors.get(name, 0.0),
        )  # fmt: skip


def check_lse(got: mx.array, want: np.ndarray, case: str, terms: float):
    """The LSE is float32 for every input dtype, and -inf exactly where no key is visible."""
    assert got.dtype == mx.float32
    finite = np.isfinite(want)
    assert np.array_equal(np.isneginf(bounds.float64(got)), ~finite), f"LSE: rows that see nothing in {case}"
    bounds.check(
        "LSE", np.where(finite, bounds.float64(got), 0), np.where(finite, want, 0), case, "float32", terms=terms
    )


def with_dtype(variant: Variant, dtype: str) -> Variant:
    return replace(variant, case=replace(variant.case, dtype=dtype))
