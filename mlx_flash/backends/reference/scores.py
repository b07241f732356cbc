"""Scores, masks and dropout of one block of queries and keys in plain mx operations, as the shared templates do it."""

from __future__ import annotations

import math

import mlx.core as mx

from ...common.scalars import LARGEST
from ...problem.formulas.evaluate import evaluate
from ...problem.formulas.program import Formula
from ...problem.problem import Problem

LOG2E, LN2 = math.log2(math.e), math.log(2.0)
SMALLEST = 2.0**-126  # normal float32 number
LINEAR = 2.0**-12  # below it tanh(x) is x in float32


def product(p: mx.array, b: mx.array, whole: bool) -> mx.array:
    """P B. If some pairs are masked (not `whole`), NaN and infinity in B reach only rows with P != 0 there."""
    if whole:
        return p @ b
    seen, total = (p != 0).astype(mx.float32), p @ mx.where(mx.isfinite(b), b, 0)
    for infinity in (math.inf, -math.inf):  # NaN adds both, which is NaN
        reached = seen @ (mx.isnan(b) | (b == infinity)).astype(mx.float32) > 0
        total = mx.where(reached, total + infinity, total)
    return total


def sink_scores(sinks: mx.array, scale: float) -> tuple[mx.array, mx.array]:
    """(sinks as scores that lack the scale, the parts that the division rounds away), both float32 in the sinks' shape.

    The smallest or largest float32 number stands for sinks beyond the range there, as in online_softmax.metal.
    """
    sinks = sinks.astype(mx.float32)
    if scale == 1:
        return sinks, mx.zeros_like(sinks)
    own = sinks / scale
    # own * scale in factors of 12 bits, with exact products
    upper, scale_upper = _upper(own), _upper(mx.array(scale, mx.float32))
    lower, scale_lower = own - upper, mx.array(scale, mx.float32) - scale_upper
    rest = sinks - upper * scale_upper - upper * scale_lower - lower * scale_upper - lower * scale_lower
    rest = mx.where(mx.isfinite(own), rest, 0)
    return mx.where(mx.isfinite(sinks), mx.clip(own, -LARGEST, LARGEST), own), rest


def _upper(x: mx.array) -> mx.array:
    """Float32 numbers without the lower half of their significand."""
    return mx.bitwise_and(x.view(mx.uint32), mx.array(0xFFFFF000, mx.uint32)).view(mx.float32)


class Scores:
    """The scores of a call. `extras`: its operands and numbers besides Q, K and V, by the kernels' names for them.
    `over_keys`: of a kernel that owns keys, and so reads the shifts of keys."""

    def __init__(self, problem: Problem, extras: dict, over_keys: bool = False):
        self.problem, self.extras = problem, extras
        self.offset, self.shifts = problem.key_length - problem.query_length, None
        if problem.variants.shifts and problem.variants.segments:
            self.shifts = extras["q_segments"][:, problem.query_length :]
        elif problem.variants.shifts:
            self.shifts = extras["shifts"].reshape(problem.batch, -1)
        self.by_key = over_keys and problem.variants.shifts
        self.lengths = None  # numbers of queries and of keys that exist, [B, 1, 1, 1, 1] each
        if problem.variants.lengths:
            ends = mx.clip(
                extras["lengths"].reshape(-1, 2), 0, mx.array([problem.query_length, problem.key_length], mx.int32)
            )
            self.shifts = mx.broadcast_to(ends[:, 1:] - ends[:, :1], (problem.batch, problem.query_length))
            self.lengths = [ends[:, n].reshape(-1, 1, 1, 1, 1) for n in (0, 1)]
        self.left, self.right = problem.variants.window or (None, None)
        if problem.variants.causal:
            self.right = 0

    def start(self, shape, rows: slice) -> tuple[mx.array, mx.array]:
        """m and l of rows before their first key: the sink's, or -inf and 0."""
        if not self.problem.variants.sinks:
            return mx.full(shape, -math.inf), mx.zeros(shape)
        sinks, rest = sink_scores(self.extras["sinks"], self.problem.signature.lacking_scale)
        m, rest = (one.reshape(1, self.problem.key_heads, -1, 1, 1) for one in (sinks, rest))
        m = mx.broadcast_to(m, shape)
        if self.lengths:
            m = mx.where(mx.arange(rows.start, rows.stop)[:, None] < self.lengths[0], m, -math.inf)
        return m, mx.where(m == -math.inf, 0.0, mx.exp(rest))

    def exponential(self, distance: mx.array, log2_sum: mx.array | float = 0.0) -> mx.array:
        """exp of the distance of scores from a row's largest one, over 2^log2_sum."""
        natural = distance if self.problem.variants.scaled_first else distance * self.problem.scale
        return mx.exp(natural - log2_sum * LN2)

    def nothing_seen(self, rows: slice, keys: slice) -> bool:
        """Whether causality or the window hide the whole block. Arrays are unknown until they are evaluated."""
        if self.shifts is not None:
            return False
        late = self.right is not None and keys.start > rows.stop - 1 + self.offset + self.right
        early = self.left is not None and keys.stop - 1 < rows.start + self.offset - self.left
        return late or early

    def of(self, q: mx.array, k: mx.array, rows: slice, keys: slice) -> tuple[mx.array, mx.array | float, bool]:
        """(S with -inf where masked, derivative of the softcap, whether every pair is surely visible)."""
        variants, s, slope = self.problem.variants, (q @ k.swapaxes(-1, -2)), 1.0
        s = s * self.problem.scale if variants.scaled_first else s
        if variants.softcap:
            cap = variants.softcap
            x = s * (1 / max(cap, SMALLEST))
            u = mx.tanh(x)
            # Far below the cap, scores stay exactly as they are, so that a huge cap has no effect.
            s, slope = mx.where(mx.abs(x) < LINEAR, s, u * cap), 1 - u * u
        if variants.score:
            s, own = self._scored(s, rows, keys)
            slope = own if variants.seed else slope * own
        bias = self._bias(rows, keys)
        # A bias of -inf hides the key, even where the score is NaN.
        s = s if bias is None else mx.where(bias == -math.inf, -math.inf, s + bias)
        visible = self._visible(rows, keys)
        if visible is None:
            return s, slope, not (variants.additive or (variants.score and variants.score.hides))
        return mx.where(visible, s, -math.inf), slope, False

    def _scored(self, s: mx.array, rows: slice, keys: slice) -> tuple[mx.array, mx.array]:
        """(the user's score of s, its derivative in s or in the elements of the array that it reads)"""
        variants = self.problem.variants
        score, values = variants.score, self._values(variants.score, rows, keys) | {"s": s}
        seed = score.arrays[variants.seed - 1].name if variants.seed else "s"

        def scored(varied):
            return [mx.broadcast_to(evaluate(score.body, values | {seed: varied}), s.shape)]

        (scores,), (slope,) = mx.jvp(scored, [values[seed]], [mx.ones_like(values[seed])])
        return scores, slope

    def _values(self, text: Formula, rows: slice, keys: slice) -> dict:
        """The values that a text reads, by name; positions and heads broadcast to [B, Hk, group, r, c]."""
        problem, segment = self.problem, 0
        shift = self.offset if self.shifts is None else self.shifts[:, None, None, rows, None]
        if problem.variants.segments:
            segment = self.extras["q_segments"][:, None, None, rows, None]
        return {
            **text.values,
            **{one.name: self.extras[text.operand(one.name)] for one in text.arrays},
            "b": mx.arange(problem.batch).reshape(-1, 1, 1, 1, 1),
            "h": mx.arange(problem.query_heads).reshape(problem.key_heads, -1, 1, 1),
            "q": mx.arange(rows.start, rows.stop)[:, None] + shift,
            "k": mx.arange(keys.start, keys.stop),
            "segment": segment,
        }

    def _distance(self, rows: slice, keys: slice) -> mx.array:
        """Distances of the keys from every query's own position: [r, c], or [B, 1, 1, r, c] for shifts."""
        shift = self.offset
        if self.by_key:
            first = self.problem.query_length
            shift = self.shifts[:, None, None, None, first + keys.start : first + keys.stop]
        elif self.shifts is not None:
            shift = self.shifts[:, None, None, rows, None]
        return mx.arange(keys.start, keys.stop) - (mx.arange(rows.start, rows.stop)[:, None] + shift)

    def _grouped(self, tile: mx.array) -> mx.array:
        """Reshapes [B, Hq, rows, columns] to [B, Hk, group, rows, columns]."""
        return tile.reshape(self.problem.batch, self.problem.key_heads, -1, *tile.shape[2:])

    def _bias(self, rows: slice, keys: slice) -> mx.array | None:
        variants, bias = self.problem.variants, None
        if variants.additive:
            bias = self._grouped(self.extras["attention_mask"][..., rows, keys].astype(mx.float32))
        if variants.alibi:
            slopes = self.extras["slopes"].reshape(1, self.problem.key_heads, -1, 1, 1)
            alibi = -slopes * mx.abs(self._distance(rows, keys))
            bias = alibi if bias is None else bias + alibi
        return bias

    def _visible(self, rows: slice, keys: slice) -> mx.array | None:
        """A bool array of the visible pairs; None if all pairs are visible whatever the arrays contain."""
        variants, distance, tests = self.problem.variants, self._distance(rows, keys), []
        unknown, first, last = self.shifts is not None, rows.start + self.offset, rows.stop - 1 + self.offset
        if self.right is not None and (unknown or keys.stop - 1 > first + self.right):
            tests.append(distance <= self.right)
        if self.left is not None and (unknown or keys.start < last - self.left):
            tests.append(distance >= -self.left)
        if self.lengths:
            tests.append(mx.arange(rows.start, rows.stop)[:, None] < self.lengths[0])
            tests.append(mx.arange(keys.start, keys.stop) < self.lengths[1])
        if variants.segments:
            q_ids, k_ids = self.extras["q_segments"][:, rows], self.extras["k_segments"][:, keys]
            tests.append((q_ids[:, :, None] == k_ids[:, None])[:, None, None])
        if variants.mask == "bool":
            tests.append(self._grouped(self.extras["attention_mask"][..., rows, keys]))
        if variants.block:
            tests.append(self._blocks(rows, keys))
        elif variants.visible:
            tests.append(evaluate(variants.visible.body, self._values(variants.visible, rows, keys)))
        visible = None
        for test in tests:
            visible = test if visible is None else visible & test
        return visible

    def _blocks(self, rows: slice, keys: slice) -> mx.array:
        """The pairs that the block mask shows, [B, Hk, group, r, c] or broadcast to it."""
        block, text = self.problem.variants.block, self.problem.variants.visible
        i, j = mx.arange(rows.start, rows.stop)[:, None], mx.arange(keys.start, keys.stop)
        states = self._grouped(self.extras["block_map"][:, :, i // block, j // block])
        if text:
            partial = evaluate(text.body, self._values(text, rows, keys))
        else:
            partial = self.extras["block_bitmaps"][mx.maximum(states - 2, 0), i % block, j % block] != 0
        return mx.where(states < 2, states == 1, partial)

    def drop(self, p: mx.array, rows: slice, keys: slice) -> mx.array:
        """P with dropout, P * survives / (1 - probability), in the pattern of dropout.metal."""
        if not self.problem.variants.dropout:
            return p
        key, problem = self.extras["dropout_key"], self.problem
        heads = philox(mx.arange(problem.batch * problem.query_heads).astype(mx.uint32), key[1], key[0])
        heads = heads.reshape(problem.batch, problem.key_heads, -1, 1, 1)
        i = mx.arange(rows.start, rows.stop).astype(mx.uint32)[:, None]
        words = philox(i, mx.arange(keys.start, keys.stop).astype(mx.uint32), heads)
        return mx.where(words < key[2], 0, p * self.extras["survivor_scale"])


def philox(x: mx.array, y: mx.array, key: mx.array) -> mx.array:
    """The first word of Philox-2x32-10 (Salmon et al. 2011) for the counter (x, y) and a key; uint32, broadcast."""
    for _ in range(10):
        wide = x.astype(mx.uint64) * mx.array(0xD256D193, mx.uint64)
        high, low = (wide >> mx.array(32, mx.uint64)).astype(mx.uint32), wide.astype(mx.uint32)
        x, y = high ^ key ^ y, low
        key = key + mx.array(0x9E3779B9, mx.uint32)
    return x
