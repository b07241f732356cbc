"""`python -m mlx_flash check --fuzz N`: random problems over every option of attention, against float64.

A problem is drawn from one number, so that this number reproduces a failure. Everything is float32: the table of
`check` covers dtypes, this covers masks, lengths, heads and their combinations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ...api import attention
from ...backends import current_backend, use_backend
from ...backends.reference.scores import philox
from ...common.errors import need
from ...problem.masks import BlockMask
from ..console import kernel_backend, progress
from . import oracle
from .oracle import Exact, Terms

# Kernels are compiled for one head dimension and few sets of features, so that the time goes into running them.
HEAD_DIMS = (5, 16, 33, 40, 64)
KERNEL_HEAD_DIM = 40
KERNEL_SETS = (
    ("causal", "window", "lse"), ("bool", "softcap", "sinks"), ("additive", "alibi", "segments", "lse"),
    ("blocks", "dropout", "sinks"),
)  # fmt: skip
FEATURES = ("causal", "window", "mask", "softcap", "alibi", "sinks", "segments", "dropout", "lse")


@dataclass
class Drawn:
    """A random problem: q, k, v and the cotangents as numpy float32, the options of `attention`, and their meaning as
    arrays [B, Hq, Lq, Lk]: `seen` (bool) and `bias` (float64). `positions`: of queries among the keys,
    [B or 1, 1, Lq, 1]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    d_o: np.ndarray
    d_lse: np.ndarray
    seen: np.ndarray
    bias: np.ndarray
    positions: np.ndarray
    options: dict = field(default_factory=dict)

    def __str__(self):
        shapes = " ".join(f"{name}{list(getattr(self, name).shape)}" for name in "qkv")
        return f"{shapes} {', '.join(sorted(self.options)) or 'plain'}"


def draw(number: int, kernels: bool) -> Drawn:
    """The problem that a number stands for. `kernels`: draw from the few sets of features that are compiled."""
    random = np.random.default_rng(number)
    batch, key_heads, group = (int(n) for n in random.integers(1, (3, 3, 5)))
    rows, columns = (int(random.integers(1, random.choice([10, 140]))) for _ in range(2))
    width = KERNEL_HEAD_DIM if kernels else int(random.choice(HEAD_DIMS))
    value = width if kernels else int(random.choice(HEAD_DIMS))
    heads = key_heads * group

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    shape = (batch, heads, rows, columns)
    drawn = Drawn(
        normal(batch, heads, rows, width), normal(batch, key_heads, columns, width),
        normal(batch, key_heads, columns, value), normal(batch, heads, rows, value), np.zeros(shape[:3], np.float32),
        np.ones(shape, bool), np.zeros(shape), (np.arange(rows) + columns - rows).reshape(1, 1, -1, 1),
    )  # fmt: skip
    if kernels:
        chosen = KERNEL_SETS[number % len(KERNEL_SETS)]
    else:
        chosen = [name for name in FEATURES if random.random() < 0.4]
        chosen = [str(random.choice(["bool", "additive", "blocks"])) if name == "mask" else name for name in chosen]
    for name in sorted(chosen, key=lambda name: name != "segments"):  # segments first: they decide positions
        _ADD[name](drawn, random)
    return drawn


def _distance(drawn: Drawn) -> np.ndarray:
    return np.arange(drawn.seen.shape[3]) - drawn.positions


def _causal(drawn: Drawn, random):
    drawn.options["causal"] = True
    drawn.seen &= _distance(drawn) <= 0


def _window(drawn: Drawn, random):
    left, right = (None if random.random() < 0.2 else int(random.integers(0, 50)) for _ in range(2))
    drawn.options["window"] = (left, right)
    drawn.seen &= (left is None) | (_distance(drawn) >= -(left or 0))
    drawn.seen &= (right is None) | (_distance(drawn) <= (right or 0))


def _mask_shape(drawn: Drawn, random) -> tuple[int, ...]:
    return tuple(1 if random.random() < 0.3 else extent for extent in drawn.seen.shape)


def _bool(drawn: Drawn, random):
    keep = random.random(_mask_shape(drawn, random)) < random.choice([0.1, 0.5, 0.95])
    drawn.options["mask"] = mx.array(keep)
    drawn.seen &= keep


def _additive(drawn: Drawn, random):
    mask = random.standard_normal(_mask_shape(drawn, random)).astype(np.float32)
    mask[random.random(mask.shape) < 0.1] = -np.inf
    drawn.options["mask"] = mx.array(mask)
    drawn.seen &= ~np.isneginf(mask)
    drawn.bias += np.where(np.isneginf(mask), 0, mask)


def _blocks(drawn: Drawn, random):
    rows, columns = drawn.seen.shape[2:]
    states = random.choice([0.0, 0.5, 1.0], (-(-rows // 32), -(-columns // 32))).repeat(32, 0).repeat(32, 1)
    keep = random.random((rows, columns)) < states[:rows, :columns]
    drawn.options["mask"] = BlockMask.from_array(keep, block=32)
    drawn.seen &= keep


def _softcap(drawn: Drawn, random):
    drawn.options["softcap"] = float(random.uniform(0.5, 10))


def _alibi(drawn: Drawn, random):
    slopes = random.uniform(0, 0.5, drawn.q.shape[1]).astype(np.float32)
    drawn.options["alibi_slopes"] = mx.array(slopes)
    drawn.bias -= slopes.astype(np.float64)[:, None, None] * np.abs(_distance(drawn))


def _sinks(drawn: Drawn, random):
    drawn.options["sinks"] = mx.array(random.standard_normal(drawn.q.shape[1]).astype(np.float32))


def _segments(drawn: Drawn, random):
    batch, _, rows, columns = drawn.seen.shape
    q_ids, k_ids = (np.sort(random.integers(0, 4, (batch, n)), -1).astype(np.int32) for n in (rows, columns))
    drawn.options["segments"] = (mx.array(q_ids), mx.array(k_ids))
    same = q_ids[:, :, None] == k_ids[:, None]
    drawn.seen &= same[:, None]
    # The last query of a segment has the position of its last key.
    last_query = ((q_ids[:, :, None] == q_ids[:, None]) * np.arange(rows)).max(2)
    drawn.positions = (np.arange(rows) + (same * np.arange(columns)).max(2) - last_query)[:, None, :, None]


def _dropout(drawn: Drawn, random):
    drawn.options |= {"dropout": float(random.uniform(0.05, 0.6)), "key": mx.random.key(int(random.integers(2**31)))}


def _lse(drawn: Drawn, random):
    drawn.options["return_lse"] = True
    drawn.d_lse = random.standard_normal(drawn.q.shape[:3]).astype(np.float32)


_ADD = {
    "causal": _causal, "window": _window, "bool": _bool, "additive": _additive, "blocks": _blocks,
    "softcap": _softcap, "alibi": _alibi, "sinks": _sinks, "segments": _segments, "dropout": _dropout, "lse": _lse,
}  # fmt: skip


def _kept(drawn: Drawn) -> np.ndarray | float:
    """1 / (1 - probability) for weights that survive and 0 for others, from the generator of dropout.metal."""
    probability = drawn.options.get("dropout", 0.0)
    if not probability:
        return 1.0
    batch, heads, rows, columns = drawn.seen.shape
    key = drawn.options["key"]
    per_head = philox(mx.arange(batch * heads).astype(mx.uint32), key[1], key[0]).reshape(batch, heads, 1, 1)
    words = philox(mx.arange(rows).astype(mx.uint32)[:, None], mx.arange(columns).astype(mx.uint32), per_head)
    return (np.array(words) >= round(probability * 2**32)) / (1 - probability)


def exact(drawn: Drawn) -> Exact:
    """Every result in float64."""
    options = drawn.options
    terms = Terms(
        drawn.seen, drawn.bias, _kept(drawn), options.get("softcap"),
        np.array(options["sinks"], np.float64) if "sinks" in options else None,
        options["mask"].shape if has_additive_mask(drawn) else None,
    )  # fmt: skip
    q, k, v, d_o, d_lse = (getattr(drawn, name).astype(np.float64) for name in ("q", "k", "v", "d_o", "d_lse"))
    return oracle.exact(q, k, v, d_o, terms, d_lse)


def has_additive_mask(drawn: Drawn) -> bool:
    mask = drawn.options.get("mask")
    return isinstance(mask, mx.array) and mask.dtype != mx.bool_


def results(drawn: Drawn) -> dict[str, np.ndarray]:
    """Every result of `attention`, on the current backend."""
    leaves = {name: mx.array(getattr(drawn, name)) for name in "qkv"}
    if has_additive_mask(drawn):
        leaves["mask"] = drawn.options["mask"]
    if "sinks" in drawn.options:
        leaves["sinks"] = drawn.options["sinks"]

    def call(*arrays):
        named = drawn.options | dict(zip(leaves, arrays))
        out = attention(named.pop("q"), named.pop("k"), named.pop("v"), **named)
        return list(out) if isinstance(out, tuple) else [out]

    cotangents = [mx.array(drawn.d_o), mx.array(drawn.d_lse)][: 1 + ("return_lse" in drawn.options)]
    outs, grads = mx.vjp(call, list(leaves.values()), cotangents)
    titles = {"q": "dQ", "k": "dK", "v": "dV", "mask": "dM", "sinks": "dsinks"}
    named = dict(zip(("O", "LSE"), outs)) | {titles[name]: grad for name, grad in zip(leaves, grads)}
    return {name: np.array(array) for name, array in named.items()}


def failure_of(number: int, kernels: bool) -> str | None:
    """Why the problem of a number fails on the current backend; None if it passes."""
    drawn = draw(number, kernels)
    got, wanted = results(drawn), exact(drawn)
    for name in got:
        want, floor = wanted.values[name], wanted.floors[name]
        finite = np.isfinite(want)
        if got[name].shape != want.shape or not np.array_equal(np.isneginf(got[name]), np.isneginf(want)):
            return f"{name}: shape or empty rows differ ({drawn})"
        error = np.abs(got[name][finite] - want[finite]).max(initial=0.0)
        limit = max(oracle.FLOAT32[name] * np.abs(want[finite]).max(initial=0.0), floor)
        if not error <= limit:  # false for NaN
            return f"{name}: error {error:.1e}, allowed {limit:.1e} ({drawn})"
    return None


def fuzz(count: int, seed: int, kernels: bool, tick: Callable[[str], None]) -> list[tuple[int, str]]:
    """(number, reason) of every problem among seed, seed + 1, ... that fails; calls `tick` after each problem."""
    failed = []
    for number in range(seed, seed + count):
        if found := failure_of(number, kernels):
            failed.append((number, found))
        tick(f"{len(failed)} failed" if failed else "")
    return failed


def run(backend: str | None, family: str | None, count: int, seed: int) -> int:
    """Runs `count` problems and prints each failure with the command that reproduces it; returns 1 if any failed."""
    console = need("rich.console", "check").Console()
    with use_backend(backend or kernel_backend(), family), progress("check", console) as bars:
        where = current_backend()
        bar = bars.add_task(f"fuzz on {where.name}", total=count, note="")
        failed = fuzz(count, seed, where.family is not None, lambda note: bars.update(bar, advance=1, note=note))
    place = f"--backend {where.name}" + (f" --family {where.family.name}" if where.family else "")
    for number, found in failed:
        console.print(f"{found}\n  python -m mlx_flash check {place} --fuzz 1 --seed {number}", highlight=False)
    verdict = f"[red]{len(failed)} fail[/]" if failed else "[green]all pass[/]"
    console.print(f"{count} random problems on {where.name}, {verdict}", highlight=False)
    return 1 if failed else 0
