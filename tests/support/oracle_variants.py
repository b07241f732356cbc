"""Attention with every mask and variant from its definition, in float64 numpy. Nothing is shared with the package.

`visible` and `bias` give the visibility and the additions to the scores pair by pair; `forward_by_loops` is the
definition element by element. Tests use the array form: test_oracle_variants.py proves that both agree, and that the
gradients are those of central differences.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Facts:
    """The options of a call. keep, survives and mask broadcast to [B, Hq, Lq, Lk]; slopes, sinks [Hq]; ids [B, L].

    score: a HandScore, its value and its slope in s; visible(b, h, q, k): both by positions.
    keep: True where a key may be seen. mask: added to the scores; -inf hides the key. survives: the dropout pattern.
    """

    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    keep: np.ndarray | None = None
    mask: np.ndarray | None = None
    slopes: np.ndarray | None = None
    sinks: np.ndarray | None = None
    softcap: float | None = None
    q_ids: np.ndarray | None = None
    k_ids: np.ndarray | None = None
    survives: np.ndarray | None = None
    dropout: float = 0.0
    q_lengths: np.ndarray | None = None  # [B], with k_lengths
    k_lengths: np.ndarray | None = None
    score: object = None
    visible: Callable | None = None


def _at(array: np.ndarray, *index: int):
    """An element of an array, as if the array were broadcast."""
    array = array.reshape((1,) * (len(index) - array.ndim) + array.shape)
    return array[tuple(0 if extent == 1 else i for i, extent in zip(index, array.shape))]


def position(facts: Facts, b: int, i: int, query_length: int, key_length: int) -> int:
    """The position of a query among the keys: i + Lk - Lq, so that the last query has the position of the last key.

    With segments, the last query of each segment has the position of the segment's last key; a query without such a key
    sees nothing. With lengths, the same holds for the last query and key of each batch entry.
    """
    if facts.k_lengths is not None:
        return i + facts.k_lengths[b] - facts.q_lengths[b]
    if facts.q_ids is None:
        return i + key_length - query_length
    own = facts.q_ids[b, i]
    last_query = max(row for row in range(query_length) if facts.q_ids[b, row] == own)
    last_key = max((row for row in range(key_length) if facts.k_ids[b, row] == own), default=0)
    return i + last_key - last_query


def visible(facts: Facts, b: int, h: int, i: int, j: int, query_length: int, key_length: int) -> bool:
    """Whether query i sees key j."""
    distance = j - position(facts, b, i, query_length, key_length)
    if facts.causal and distance > 0:
        return False
    if facts.window is not None:
        left, right = facts.window
        if (left is not None and distance < -left) or (right is not None and distance > right):
            return False
    if facts.q_ids is not None and facts.q_ids[b, i] != facts.k_ids[b, j]:
        return False
    if facts.k_lengths is not None and (i >= facts.q_lengths[b] or j >= facts.k_lengths[b]):
        return False
    if facts.mask is not None and _at(facts.mask, b, h, i, j) == -math.inf:
        return False
    own = position(facts, b, i, query_length, key_length)
    if facts.visible is not None and not facts.visible(b, h, own, j):
        return False
    return facts.keep is None or bool(_at(facts.keep, b, h, i, j))


def bias(facts: Facts, b: int, h: int, i: int, j: int, query_length: int, key_length: int) -> float:
    added = 0.0 if facts.mask is None else float(_at(facts.mask, b, h, i, j))
    if facts.slopes is not None:
        added -= facts.slopes[h] * abs(position(facts, b, i, query_length, key_length) - j)
    return added


def forward_by_loops(q, k, v, scale: float, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """O [B, Hq, Lq, Dv] and the natural-log LSE [B, Hq, Lq], one query and one key at a time."""
    lengths = (q.shape[2], k.shape[2])
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -math.inf)
    for b, h, i in np.ndindex(*q.shape[:3]):
        g = h // (q.shape[1] // k.shape[1])
        scores = {}
        for j in range(lengths[1]):
            if visible(facts, b, h, i, j, *lengths):
                score = scale * sum(q[b, h, i] * k[b, g, j])
                if facts.softcap is not None:
                    score = facts.softcap * math.tanh(score / facts.softcap)
                if facts.score is not None:
                    whole, own = np.full((1, q.shape[1], 1, 1), score), position(facts, b, i, *lengths)
                    score = facts.score.value(whole, np.full((1, 1, 1, 1), own), np.array([j]))[0, h, 0, 0]
                scores[j] = score + bias(facts, b, h, i, j, *lengths)
        exists = facts.q_lengths is None or i < facts.q_lengths[b]
        sink = [facts.sinks[h]] if facts.sinks is not None and exists else []
        everything = [*scores.values(), *sink]
        if not everything:
            continue
        top = max(everything)
        total = sum(math.exp(score - top) for score in everything)
        lse[b, h, i] = top + math.log(total)
        for j, score in scores.items():
            part = math.exp(score - top) / total
            if facts.survives is not None:
                part *= bool(_at(facts.survives, b, h, i, j)) / (1 - facts.dropout)
            out[b, h, i] += part * v[b, g, j]
    return out, lse


def positions(facts: Facts, query_length: int, key_length: int) -> np.ndarray:
    """`position` with arrays: [B, Lq], or [1, Lq] without segments and lengths."""
    rows = np.arange(query_length)[None]
    if facts.k_lengths is not None:
        return rows + (facts.k_lengths - facts.q_lengths)[:, None]
    if facts.q_ids is None:
        return rows + key_length - query_length
    if not key_length:
        return np.zeros_like(facts.q_ids)
    same_query = facts.q_ids[:, :, None] == facts.q_ids[:, None]
    same_key = facts.q_ids[:, :, None] == facts.k_ids[:, None]
    last_query, last_key = ((same * np.arange(same.shape[2])).max(2) for same in (same_query, same_key))
    return rows + last_key - last_query


def seen(facts: Facts, shape: tuple[int, int, int, int]) -> np.ndarray:
    """`visible` with arrays: bool [B, Hq, Lq, Lk]."""
    _, _, query_length, key_length = shape
    distance = np.arange(key_length) - positions(facts, query_length, key_length)[:, None, :, None]
    table = np.ones(shape, bool)
    if facts.causal:
        table &= distance <= 0
    if facts.window is not None:
        left, right = facts.window
        table &= True if left is None else distance >= -left
        table &= True if right is None else distance <= right
    if facts.q_ids is not None:
        table &= (facts.q_ids[:, :, None] == facts.k_ids[:, None])[:, None]
    if facts.k_lengths is not None:
        table &= ~behind(facts, query_length)[:, None, :, None]
        table &= (np.arange(key_length) < facts.k_lengths[:, None])[:, None, None]
    if facts.mask is not None:
        table &= ~np.isneginf(facts.mask)
    if facts.visible is not None:
        b, h = np.arange(shape[0])[:, None, None, None], np.arange(shape[1])[:, None, None]
        own = positions(facts, query_length, key_length)[:, None, :, None]
        table &= facts.visible(b, h, own, np.arange(key_length))
    return table if facts.keep is None else table & facts.keep


def behind(facts: Facts, query_length: int) -> np.ndarray:
    """bool [B, Lq]: queries beyond the end of their batch entry, which see nothing, not even a sink."""
    return np.arange(query_length) >= facts.q_lengths[:, None]


def alibi(facts: Facts, query_length: int, key_length: int) -> np.ndarray:
    """The ALiBi term of every score, [B or 1, Hq, Lq, Lk]."""
    own = positions(facts, query_length, key_length)[:, None, :, None]
    return -facts.slopes[:, None, None] * np.abs(own - np.arange(key_length))


class Attention:
    """One problem: its results, their gradients, and the magnitudes of the terms behind them.

    q [B, Hq, Lq, D], k [B, Hk, Lk, D], v [B, Hk, Lk, Dv]; d_o and d_lse are the cotangents of O and LSE.
    """

    def __init__(self, q, k, v, d_o, scale: float, facts: Facts, d_lse=None):
        self.q, self.d_o, self.scale, self.facts, self.key_heads = q, d_o, scale, facts, k.shape[1]
        self.k, self.v = (np.repeat(array, q.shape[1] // k.shape[1], axis=1) for array in (k, v))
        self.d_lse = np.zeros(q.shape[:3]) if d_lse is None else d_lse
        self.seen = seen(facts, (*q.shape[:3], k.shape[2]))
        self._softmax()

    def _softmax(self):
        facts, s, self.slope = self.facts, self.scale * self.q @ self.k.swapaxes(-1, -2), 1.0
        self.slope_terms = 1.0
        if facts.softcap is not None:
            u = np.tanh(s / facts.softcap)
            s, self.slope, self.slope_terms = facts.softcap * u, 1 - u * u, 1 + u * u
        if facts.score is not None:
            own, keys = positions(facts, *s.shape[2:])[:, None, :, None], np.arange(s.shape[3])
            slope = facts.score.slope(s, own, keys)
            s, self.slope = facts.score.value(s, own, keys), self.slope * slope
            self.slope_terms = self.slope_terms * np.abs(slope)
        if facts.mask is not None:
            s = s + np.where(np.isneginf(facts.mask), 0, facts.mask)
        if facts.slopes is not None:
            s = s + alibi(facts, *s.shape[2:])
        self.largest_score = float(np.abs(s).max(initial=0.0))
        s = np.where(self.seen, s, -np.inf)
        sink = np.full((1, 1, 1, 1), -np.inf) if facts.sinks is None else facts.sinks.reshape(1, -1, 1, 1)
        if facts.sinks is not None and facts.q_lengths is not None:
            sink = np.where(behind(facts, s.shape[2])[:, None, :, None], -np.inf, sink)
        top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), sink)
        finite = np.where(np.isneginf(top), 0, top)
        weights, sink = np.exp(s - finite), np.exp(sink - finite)
        total = weights.sum(-1, keepdims=True) + sink
        safe = np.where(total == 0, 1, total)
        self.p, self.p_sink = weights / safe, (sink / safe)[..., 0]
        self.lse = np.where(total == 0, -np.inf, np.log(safe) + finite)[..., 0]
        kept = 1.0 if facts.survives is None else facts.survives / (1 - facts.dropout)
        self.kept, self.dropped = kept, self.p * kept

    def _sum_to_keys(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(array.shape[0], self.key_heads, -1, *array.shape[2:]).sum(2)

    def _sum_to_mask(self, array: np.ndarray) -> np.ndarray:
        shape = self.facts.mask.shape
        padded = (1,) * (4 - len(shape)) + shape
        axes = tuple(axis for axis, extent in enumerate(padded) if extent == 1)
        return array.sum(axes, keepdims=True).reshape(shape)

    def _results(self, d_s, slope, d_p_sum, q, k, d_o, d_lse, scale) -> dict[str, np.ndarray]:
        """The results that are linear in dS. slope: of the softcap. d_p_sum: the number subtracted from dP, rowsum(P
        dP)."""
        capped = d_s * slope
        found = {
            "dQ": scale * capped @ k,
            "dK": self._sum_to_keys(scale * capped.swapaxes(-1, -2) @ q),
            "dV": self._sum_to_keys(self.dropped.swapaxes(-1, -2) @ d_o),
        }
        if self.facts.mask is not None:
            found["dM"] = self._sum_to_mask(d_s)
        if self.facts.sinks is not None:
            found["dsinks"] = (self.p_sink * (d_lse + d_p_sum)).sum((0, 2))
        return found

    def score_gradient(self) -> tuple[np.ndarray, np.ndarray]:
        """(gradient of the scores that the softmax gets [B, Hq, Lq, Lk], rowsum(P dP) [B, Hq, Lq, 1])."""
        d_p = self.kept * (self.d_o @ self.v.swapaxes(-1, -2))
        total = (self.p * d_p).sum(-1, keepdims=True)
        return self.p * (d_p - total + self.d_lse[..., None]), total

    def results(self) -> dict[str, np.ndarray]:
        """O, LSE, dQ, dK, dV, and dM and dsinks if the problem has them."""
        d_s, total = self.score_gradient()
        gradients = self._results(d_s, self.slope, -total[..., 0], self.q, self.k, self.d_o, self.d_lse, self.scale)
        return {"O": self.dropped @ self.v, "LSE": self.lse, **gradients}

    def term_magnitudes(self) -> dict[str, float]:
        """The largest sum of |terms| of an element of each result: the magnitude that cancels if the result itself
        is small."""
        q, k, v, d_o, d_lse = (np.abs(x) for x in (self.q, self.k, self.v, self.d_o, self.d_lse))
        d_p = self.kept * (d_o @ v.swapaxes(-1, -2))
        total = (self.p * d_p).sum(-1, keepdims=True)
        d_s = self.p * (d_p + total + d_lse[..., None])
        sums = self._results(d_s, self.slope_terms, total[..., 0], q, k, d_o, d_lse, abs(self.scale))
        products = float((abs(self.scale) * q @ k.swapaxes(-1, -2)).max(initial=0.0))  # terms of a score
        largest = max(products, self.largest_score)
        sums |= {"O": self.dropped @ v, "LSE": np.array(largest + math.log(1 + self.k.shape[2]))}
        return {name: float(array.max(initial=0.0)) for name, array in sums.items()}

    def moved_by_output(self, rounding: float) -> dict[str, float]:
        """The largest change of each gradient if every element of O changes by `rounding` of itself: an algorithm that
        keeps O in 16 bits computes rowsum(dO * O) from the rounded O.
        """
        moved = (np.abs(self.d_o) * np.abs(self.dropped @ self.v) * rounding).sum(-1)
        sums = self._results(
            self.p * moved[..., None], self.slope, moved, np.abs(self.q), np.abs(self.k), 0 * self.d_o,
            0 * self.d_lse, abs(self.scale),
        )  # fmt: skip
        return {name: float(array.max(initial=0.0)) for name, array in sums.items()}
