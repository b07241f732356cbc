"""The jobs of cuda_trust.py: they make arrays on the current backend and judge them.

`make` builds the whole graph, and so compiles every kernel, but evaluates nothing: it also runs without a GPU.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import feature_cases  # noqa: E402
from cases import Case  # noqa: E402
from cuda_judging import GROSS, TENSORS, Job, drawn, gross, judged, problem, repeated, with_gradients  # noqa: E402
from cuda_kept import MUCH, kept  # noqa: E402
from feature_cases import Variant  # noqa: E402

from mlx_flash import attention
from mlx_flash.cli.accuracy.oracle import Error, acceptable, exact_tensors, float64, unfused
from mlx_flash.kernels import mask_map
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import candidates
from mlx_flash.problem.kinds import DECODE, DELTA, TRAINING

PRECISIONS = {"float32": "float32", "float16": "16-bit", "bfloat16": "16-bit"}


TENSOR_CORES = ("sm80", "sm90")


def row_dims(family: str, dtype: str) -> list[int]:
    """Head dimensions, as few as do, that take every table row of every step, and the usual ones."""
    tensor = dtype != "float32" and FAMILIES[family].tensor in TENSOR_CORES
    intervals, most = [], 512 if tensor else 256
    for step in TRAINING:
        if step is not DELTA:
            ends = [0, *(row.max_head for row in candidates(step, PRECISIONS[dtype], FAMILIES[family]))]
            intervals += [(low, min(high, most)) for low, high in zip(ends, ends[1:]) if low < most]
    chosen = [64, 128]
    for low, high in sorted(intervals, key=lambda ends: ends[1]):
        if not any(low < dim <= high for dim in chosen):
            chosen.append(high)
    return sorted(chosen)


def rows(family: str, dtype: str, head_dim: int) -> Job:
    """One head dimension: 16 heads, lengths that are multiples of nothing, against float64, 30 times the same bits."""

    def make():
        inputs = problem(dtype, head_dim, 1027, 1091)
        return inputs, with_gradients(inputs, causal=True)

    def judge(made):
        inputs, got = made
        mx.eval(inputs, got)
        figures = judged(dtype, inputs, got, True, 1, 2)
        gross(dtype, inputs, got, True)
        repeated(lambda: with_gradients(inputs, causal=True), got)
        return figures

    return Job(family, make, judge)


def sizes(family: str, dtype: str) -> Job:
    """B = 2, H = 8, D = 64, lengths up to 4096, causal and dense."""
    asked = [(length, causal) for length in (2, 3, 65, 257, 1024, 4096) for causal in (True, False)]

    def make():
        made = []
        for length, causal in asked:
            inputs = problem(dtype, 64, length)
            made.append((inputs, with_gradients(inputs, causal=causal), causal))
        return made

    def judge(made):
        figures = {}
        for inputs, got, causal in made:
            mx.eval(inputs, got)
            figures[f"{inputs[0].shape[2]}{' causal' * causal}"] = judged(dtype, inputs, got, causal, 0, 3)
            gross(dtype, inputs, got, causal)
        return figures

    return Job(family, make, judge)


OTHERS = ("causal", "window", "softcap", "alibi", "sinks", "segments", "dropout", "lse")
FEATURES = {
    "array": ("additive", *OTHERS), "blocks": ("blocks", *OTHERS), "bool": ("bool", "lse"), "window": ("window", "lse"),
    "segments": ("segments", "causal"), "softcap": ("softcap",), "sinks": ("sinks", "lse"), "dropout": ("dropout",),
    "alibi": ("alibi", "causal"), "additive": ("additive",),
}  # fmt: skip


def features(family: str, dtype: str, name: str, head_dim: int = 64, **more) -> Job:
    """Masks and variants with every gradient, as the accuracy suite has them, at a few hundred rows."""
    case = Case(261, 403, head_dim, dtype, group=2, key_heads=2, batch=2)
    return _variant(family, Variant(case, FEATURES[name], "bhij", (90, 35)), **more)


def _variant(family: str, variant: Variant, **more) -> Job:
    """`more`: arguments of attention besides the variant's."""

    def make():
        arguments, facts = feature_cases.build(variant)
        arguments |= more
        feature_cases.backward(variant, variant.case.arrays(), arguments, _cotangent(variant))
        return arguments, facts

    def judge(made):
        feature_cases.check_arguments(variant, *made)
        return {}

    return Job(family, make, judge)


def _cotangent(variant: Variant):
    if "lse" not in variant.features:
        return None
    return mx.array(variant.draw("d_lse").standard_normal(variant.shape[:3]).astype(np.float32))


def mapped(family: str, dtype: str, additive: bool) -> Job:
    """An array mask of hidden, full and mixed blocks, long enough for a map: bit for bit what it is without."""
    length = 2100
    draw = np.random.default_rng(5)
    chances = draw.choice([0.0, 0.5, 1.0], (66, 66), p=[0.7, 0.1, 0.2]).repeat(32, 0).repeat(32, 1)
    keep = mx.array(draw.random((length, length)) < chances[:length, :length])

    def make():
        inputs = problem(dtype, 64, length)
        few = [inputs[0][:, :, :4], *(mx.tile(array, (1, 1, 64, 1)) for array in inputs[1:3])]
        mask = mx.where(keep, 0.0, -mx.inf).astype(inputs[0].dtype) if additive else keep

        def results() -> list[mx.array]:
            decoded = attention(*few, mask=mx.tile(mask[:4], (1, 64)))
            return [*with_gradients(inputs, mask=mask), decoded]

        got = results()
        with patch.multiple(mask_map, LEAST_PAIRS=2**60, LEAST_ELEMENTS=2**60):
            return got, results()

    def judge(made):
        got, want = made
        for name, one, other in zip((*TENSORS, "decoded O"), got, want):
            assert mx.array_equal(one, other).item(), f"{name} differs where hidden blocks are left out"
            assert bool(mx.isfinite(one).all()), f"{name} is not finite"
        return {}

    return Job(family, make, judge)


def long(family: str, dtype: str, length: int = 65536) -> Job:
    """Many rows, judged at a few of them: O, dQ of queries far apart, dK and dV of keys far apart."""
    sample = np.array([0, 1, 31, length // 16 - 1, length // 2, length // 2 + 77, length - 2, length - 1])

    def make():
        inputs = problem(dtype, 64, length, batch=1, heads=2, key_heads=1)
        out, lse = attention(*inputs[:3], causal=True, return_lse=True)
        return inputs, with_gradients(inputs, causal=True), (out, lse)

    def judge(made):
        inputs, got, (out, lse) = made
        mx.eval(inputs, got, out, lse)
        assert mx.array_equal(out, got[0]).item(), "O with and without gradients differ"
        q, k, v, d_o = (float64(array)[0] for array in inputs)
        scale, k, v = 1 / 8, k[0], v[0]
        figures = {}
        for name, want, mine in (
            *_queries(sample, q, k, v, d_o, scale, got), *_keys(sample, q, k, v, d_o, scale, float64(lse)[0], got),
        ):  # fmt: skip
            error = np.abs(mine - want).max() / np.abs(want).max()
            figures[name] = max(figures.get(name, 0), float(error))
        # Sums of 65536 products of 16-bit probabilities: what a single rounding may do, and no more.
        assert max(figures.values()) < (1e-4 if dtype == "float32" else 2e-2), figures
        return figures

    return Job(family, make, judge)


def _queries(sample, q, k, v, d_o, scale, got):
    """(name, float64, ours) of O and dQ at sampled queries of every head."""
    for head in range(q.shape[0]):
        s = np.where(np.arange(k.shape[0]) <= sample[:, None], scale * q[head, sample] @ k.T, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        o = p @ v
        d_s = p * (d_o[head, sample] @ v.T - (d_o[head, sample] * o).sum(-1, keepdims=True))
        yield "O", o, float64(got[0][0, head, mx.array(sample)])
        yield "dQ", scale * d_s @ k, float64(got[1][0, head, mx.array(sample)])


def _keys(sample, q, k, v, d_o, scale, lse, got):
    """dK and dV at sampled keys, summed over all queries: with our LSE and O, which are judged above."""
    d_k = d_v = 0
    for head in range(q.shape[0]):
        s = scale * q[head] @ k[sample].T
        p = np.where(sample <= np.arange(q.shape[1])[:, None], np.exp(s - lse[head][:, None]), 0)
        delta = (d_o[head] * float64(got[0][0, head])).sum(-1, keepdims=True)
        d_v = d_v + p.T @ d_o[head]
        d_k = d_k + scale * (p * (d_o[head] @ v[sample].T - delta)).T @ q[head]
    yield "dK", d_k, float64(got[2][0, 0, mx.array(sample)])
    yield "dV", d_v, float64(got[3][0, 0, mx.array(sample)])


def many(family: str, dtype: str, batch: int, heads: int) -> Job:
    """More threadgroups along an axis than a launch of CUDA allows."""

    def make():
        inputs = problem(dtype, 64, 33, batch=batch, heads=heads, key_heads=heads)
        return inputs, with_gradients(inputs, causal=True)

    def judge(made):
        inputs, got = made
        mx.eval(inputs, got)
        last = max(batch, heads) - 1
        figures = {}
        for place in (0, 1, min(last, 65534), min(last, 65535), min(last, 65536), last):
            figures[str(place)] = judged(dtype, inputs, got, True, *((0, place) if batch == 1 else (place, 0)))
        gross(dtype, inputs, got, True)
        return figures

    return Job(family, make, judge)


def decode(family: str, dtype: str, head_dim: int) -> Job:
    """The kernels for few queries, 30 times the same bits: one head dimension, groups of several sizes, slices of a
    cache that MLX copies or, the last, is too long for it; many parts, and one."""
    long = 2**25 // (4 * head_dim * getattr(mx, dtype).size) + 77
    asked = [(3, 8, 2, 1, 5003), (3, 8, 2, 4, 2003), (1, 24, 2, 8, 1999), (70, 32, 8, 1, 100), (1, 8, 2, 2, long)]

    def make():
        made = []
        for seed, (batch, heads, key_heads, length, keys) in enumerate(asked):
            shapes = (batch, heads, length, head_dim), *[(batch, key_heads, keys + 60, head_dim)] * 2
            q, k, v = drawn(8 + seed, dtype, *shapes)
            inputs = [q, k[:, :, :keys], v[:, :, :keys]]
            made.append((inputs, attention(*inputs, causal=True)))
        return made

    def judge(made):
        figures = {}
        for inputs, got in made:
            mx.eval(inputs, got)
            want = exact_tensors(*map(float64, [*inputs, mx.zeros(got.shape)]), True)[0]
            ours, other = Error.of(got, want), Error.of(unfused(*inputs, True), want)
            assert acceptable("O", dtype, ours, other), f"{ours} against {other}"
            repeated(lambda: [attention(*inputs, causal=True)], [got])  # noqa: B023
            figures["x".join(map(str, (*inputs[0].shape, inputs[1].shape[2])))] = ours.largest
        return figures

    return Job(family, make, judge)


def decode_dims(family: str, dtype: str) -> list[int]:
    """The largest head dimension of every table row for decoding, and one beyond those of tensor cores."""
    ends = (row.max_head for row in candidates(DECODE, PRECISIONS[dtype], FAMILIES[family]))
    return sorted({64, *(end for end in ends if end <= 256), 264})


DECODED = {
    "array": ("causal", "window", "additive", "softcap", "alibi", "sinks", "segments", "lse"),
    "blocks": ("causal", "blocks", "softcap", "alibi", "sinks", "segments", "lse"), "bool": ("bool", "lse"),
    "window": ("causal", "window", "lse"), "plain": ("lse",),
}  # fmt: skip


def decoded_features(family: str, dtype: str, name: str) -> Job:
    """Masks and variants of few queries in groups of four, keys in several parts, with every gradient."""
    case = Case(3, 4511, 64, dtype, group=4, key_heads=2, batch=2)
    return _variant(family, Variant(case, DECODED[name], "bhij", (4300, 0)))


SPOILED = ("q", "k", "v", "d_o")
SPOILED_DIMS = (
    ("float32", 64), ("float16", 64), ("bfloat16", 64), ("bfloat16", 128), ("float16", 256), ("bfloat16", 384),
)  # fmt: skip


def reaches(name: str, got: mx.array, want: mx.array, met: np.ndarray, what: str, dtype: str):
    """Rows of `got` that hold a NaN are those that `met` it; the others are what they are without."""
    got, want = (np.array(array.astype(mx.float32)) for array in (got, want))
    assert np.array_equal(np.isnan(got).any(-1), met), f"{name}: {what} in the wrong rows"
    error = np.abs(got - want)[~met].max(initial=0) / np.abs(want).max()
    assert error <= GROSS[dtype], f"{name}: {what} moves what does not see it by {error:.1e}"


def spoiled(family: str, dtype: str, head_dim: int, limits: dict) -> Job:
    """A NaN in row h of head h, for every row of q, k, v or dO in turn: it reaches the rows that see it, and no others;
    and infinity in keys and values that nobody sees. The rest stays what it is without them."""
    batch, heads, length = 10, 31, 310
    hidden = mx.arange(length) % 9 == 4

    def make():
        shape = (batch, heads, length, head_dim)
        inputs = drawn(9, dtype, shape, shape, shape, shape)
        own = mx.arange(batch * heads).reshape(batch, heads, 1)
        place = (mx.arange(length) == own)[..., None] & (mx.arange(head_dim) == own[..., None] % head_dim)
        made = {"clean": with_gradients(inputs, **limits)}
        for n, tensor in enumerate(SPOILED):
            bad = [mx.where(place, mx.nan, array) if n == k else array for k, array in enumerate(inputs)]
            made[tensor] = with_gradients([array.astype(inputs[0].dtype) for array in bad], **limits)
        far = [mx.where(hidden[:, None], mx.inf, array).astype(array.dtype) for array in inputs[1:3]]
        made["masked"] = with_gradients(inputs, mask=~hidden, **limits)
        made["infinity"] = with_gradients([inputs[0], *far, inputs[3]], mask=~hidden, **limits)
        return made

    def judge(made):
        mx.eval(made)
        after = np.arange(length)[:, None] - np.arange(length)
        seen = (after >= 0) & (after <= limits.get("window", (length,))[0])
        for tensor in SPOILED:
            rows = seen.T if tensor in "kv" else np.eye(length, dtype=bool)  # [head, query]: what meets the NaN
            keys = (rows[:, :, None] & seen).any(1)
            for n, name in enumerate(TENSORS):
                met = rows if name in ("O", "dQ") else keys
                met = met & ((tensor, name) not in {("v", "dV"), ("d_o", "O")})
                met = met.reshape(batch, heads, length)
                reaches(name, made[tensor][n], made["clean"][n], met, f"NaN in {tensor}", dtype)
        for n, name in enumerate(TENSORS):
            nothing = np.zeros((batch, heads, length), bool)
            reaches(name, made["infinity"][n], made["masked"][n], nothing, "infinity", dtype)
        return {}

    return Job(family, make, judge)


def views(family: str, dtype: str) -> Job:
    """Transposed, sliced, broadcast and compiled inputs give the bits of their copies."""

    def arrays():
        rows_first = drawn(3, dtype, *[(2, 515, 4, 64)] * 4)
        transposed = [array.transpose(0, 2, 1, 3) for array in rows_first]
        wide = drawn(4, dtype, *[(2, 4, 600, 192)] * 4)
        sliced = [array[:, :, 9:524, 64:128] for array in wide]
        shared = drawn(5, dtype, *[(2, 1, 515, 64)] * 4)
        broadcast = [mx.broadcast_to(array, (2, 4, 515, 64)) for array in shared]
        stepped = [array[:, :, ::2] for array in drawn(6, dtype, *[(2, 4, 1030, 64)] * 4)]
        return {"transposed": transposed, "sliced": sliced, "broadcast": broadcast, "stepped": stepped}

    def make():
        compiled = mx.compile(lambda *inputs: with_gradients(list(inputs), causal=True))
        made = {}
        for name, inputs in arrays().items():
            copies = [mx.contiguous(array) for array in inputs]
            made[name] = with_gradients(inputs, causal=True), with_gradients(copies, causal=True)
            made[f"{name}, compiled"] = compiled(*inputs), made[name][1]
        return made

    def judge(made):
        for name, (got, want) in made.items():
            for tensor, one, other in zip(TENSORS, got, want):
                assert mx.array_equal(one, other).item(), f"{name}: {tensor} differs from that of the copy"
        return {}

    return Job(family, make, judge)


def jobs(families: list[str]) -> dict[str, tuple]:
    """(function, arguments) of every job, by name; what takes longest first."""
    found = {}
    for family in families:
        found[f"long {family}"] = (long, family, "bfloat16")
        found[f"many heads {family}"] = (many, family, "float16", 1, 70001)
        found[f"many batches {family}"] = (many, family, "float16", 70001, 1)
        for dtype in PRECISIONS:
            found[f"sizes {family} {dtype}"] = (sizes, family, dtype)
        for dtype in ("bfloat16", "float32"):
            for head_dim in reversed(row_dims(family, dtype)):
                found[f"rows {family} {dtype} D={head_dim}"] = (rows, family, dtype, head_dim)
        for name in FEATURES:
            for dtype in PRECISIONS if name in ("array", "blocks") else ("float32",):
                found[f"{name} {family} {dtype}"] = (features, family, dtype, name)
        for dtype, head_dim in SPOILED_DIMS:
            for name, limits in (("causal", {"causal": True}), ("window", {"window": (100, 0)})):
                found[f"spoiled {name} {family} {dtype} D={head_dim}"] = (spoiled, family, dtype, head_dim, limits)
        if FAMILIES[family].tensor in TENSOR_CORES:
            for name, head_dim in (("array", 328), ("blocks", 512), ("bool", 264)):
                found[f"{name} {family} bfloat16 D={head_dim}"] = (features, family, "bfloat16", name, head_dim)
            found[f"mask map bool {family}"] = (mapped, family, "bfloat16", False)
            found[f"mask map additive {family}"] = (mapped, family, "float16", True)
        if FAMILIES[family].tensor != "nax":
            last = ("float16" if FAMILIES[family].tensor else "float32", 256)
            for dtype, head_dim in (("bfloat16", 64), ("bfloat16", 128), last):
                found[f"kept {family} {dtype} D={head_dim}"] = (kept, family, dtype, head_dim)
            for name in ("array", "blocks", "dropout", "bool"):
                found[f"kept {name} {family}"] = (partial(features, scratch=MUCH), family, "bfloat16", name)
        found[f"views {family}"] = (views, family, "float16")
        for dtype in PRECISIONS:
            for head_dim in decode_dims(family, dtype) if dtype != "float16" else (64,):
                found[f"decode {family} {dtype} D={head_dim}"] = (decode, family, dtype, head_dim)
        for name in DECODED:
            for dtype in PRECISIONS if name in ("array", "blocks") else ("bfloat16",):
                found[f"decode {name} {family} {dtype}"] = (decoded_features, family, dtype, name)
    return found
