"""Every kind of kernel in plain mx operations: the fallback, and the kernels' documentation in Python.

Queries and keys are processed in blocks, as in the kernels, so that no array of size Lq x Lk ever exists. All
arithmetic is float32. L [B, Hq, Lq, 2] holds each row's largest score, which lacks the scale unless scores are scaled
first (softmax.metal), and the base-2 logarithm of the row's sum of exponentials relative to it.
Formulas: FlashAttention-2 (Dao 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx

from ...common.mlx_private import after
from ...problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_MASK, BACKWARD_QUERY, BACKWARD_QUERY_DELTA, DELTA, FORWARD
from ...problem.problem import Problem
from .scores import Scores, product

BLOCK = 512  # rows in a block of queries and in a block of keys


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _after(done: tuple[mx.array, ...], *arrays: mx.array) -> list[mx.array]:
    """The arrays, evaluated only after `done`: otherwise MLX would hold many blocks of scores at once."""
    return after(list(done), list(arrays))


def _grouped(problem: Problem, array: mx.array) -> mx.array:
    """Reshapes [B, Hq, ...] to float32 [B, Hk, group, ...], so that key heads broadcast over their query heads."""
    shape = (problem.batch, problem.key_heads, -1, *array.shape[2:])
    return array.astype(mx.float32).reshape(shape)


def _key_rows(array: mx.array, keys: slice) -> mx.array:
    return array[:, :, None, keys].astype(mx.float32)


def _rows_of(problem: Problem, name: str, operands: dict, keys: slice, *done: mx.array) -> mx.array:
    """Rows of K or V in float32, gathered from pages and dequantized (after `done`) where needed."""
    quantization = problem.variants.quantization
    names = [name, *(quantization.inputs_of(name) if quantization else ())]
    parts = [operands[one] for one in names]
    if problem.variants.page:
        parts, keys = _gathered(problem, parts, operands, keys)
    if quantization is None:
        return _key_rows(parts[0], keys)
    values = quantization.dequantized(keys, getattr(mx, problem.dtype), *_after(done, *parts))
    return values[:, :, None].astype(mx.float32)


def _gathered(problem: Problem, parts: list[mx.array], operands: dict, keys: slice) -> tuple[list[mx.array], slice]:
    """(the pages that hold these keys, side by side; the slice of the keys in them). Entries of the table behind the
    end of a batch entry are ignored."""
    page = problem.variants.page
    first, last = keys.start // page, -(-keys.stop // page)
    exists = mx.arange(first, last) * page < operands["lengths"].reshape(-1, 2)[:, 1:]
    table = mx.where(exists, operands["pages"][:, first:last], 0)
    rows = [part[table].swapaxes(1, 2).flatten(2, 3) for part in parts]  # [B, heads, rows, columns]
    return rows, slice(keys.start - first * page, keys.stop - first * page)


def forward(problem: Problem, *, Q, K, V, scale, **extras) -> tuple[mx.array, mx.array]:
    """(O in Q's dtype, L in float32). Rows that see no key have O = 0 and L = -inf, 0."""
    scores, outputs, statistics = Scores(problem, extras), [], []
    queries, operands = _grouped(problem, Q), {"K": K, "V": V, **extras}
    for rows in _blocks(problem.query_length):
        q = queries[..., rows, :]
        m, l = scores.start((*q.shape[:-1], 1), rows)
        o = mx.zeros((*q.shape[:-1], problem.value_dim))
        for keys in _blocks(problem.key_length):
            if scores.nothing_seen(rows, keys):
                continue
            ordered = _after((o,), q)[0]
            s, _, whole = scores.of(ordered, _rows_of(problem, "K", operands, keys, o), rows, keys)
            m_new = mx.maximum(m, s.max(-1, keepdims=True))
            reference = mx.where(m_new == -math.inf, 0, m_new)
            p, correction = scores.exponential(s - reference), scores.exponential(m - reference)
            l = correction * l + p.sum(-1, keepdims=True)
            o = correction * o + product(scores.drop(p, rows, keys), _rows_of(problem, "V", operands, keys, o), whole)
            m = m_new
        outputs.append(mx.where(l == 0, 0, o / mx.where(l == 0, 1, l)).astype(Q.dtype))
        parts = (mx.where(l == 0, -math.inf, m), mx.log2(mx.where(l == 0, 1, l)))
        statistics.append(mx.concatenate(parts, -1))
    o, L = mx.concatenate(outputs, -2), mx.concatenate(statistics, -2)
    return o.reshape(problem.output_shape), L.reshape(*problem.output_shape[:3], 2)


def delta(problem: Problem, *, dO, O) -> tuple[mx.array]:
    """rowsum(dO * O), float32 [B, Hq, Lq]."""
    return ((dO.astype(mx.float32) * O.astype(mx.float32)).sum(-1),)


class _Backward:
    """P and dS of one block at a time, recomputed from the row statistics."""

    def __init__(self, problem: Problem, Q, K, V, dO, L, delta, extras, over_keys: bool = False):
        self.scores, self.K, self.V = Scores(problem, extras, over_keys), K, V
        self.Q, self.dO, self.delta = (_grouped(problem, x) for x in (Q, dO, delta))
        self.largest, self.log_sum = (_grouped(problem, L[..., n]) for n in (0, 1))

    def block(self, rows: slice, keys: slice, *done: mx.array):
        """(P, dS = P * (dP - delta), dS times the derivative of the softcap, whether every pair is surely visible).

        Computed after the sums `done`.
        """
        q, d_o = _after(done, self.Q[..., rows, :], self.dO[..., rows, :])
        s, slope, whole = self.scores.of(q, _key_rows(self.K, keys), rows, keys)
        largest, log_sum = (one[..., rows][..., None] for one in (self.largest, self.log_sum))
        # Masked elements are 0 even where L is NaN, so that a NaN stays in what the row sees.
        distance = s - mx.where(largest == -math.inf, math.inf, largest)
        p = mx.where(s == -math.inf, 0, self.scores.exponential(distance, log_sum))
        d_p = self.scores.drop(d_o @ _key_rows(self.V, keys).swapaxes(-1, -2), rows, keys)
        d_s = mx.where(p == 0, 0, p * (d_p - self.delta[..., rows][..., None]))
        return p, d_s, mx.where(d_s == 0, 0, d_s * slope), whole


def backward_query(problem: Problem, *, Q, K, V, dO, L, delta, scale, **extras) -> tuple[mx.array]:
    """dQ in Q's dtype."""
    backward, results = _Backward(problem, Q, K, V, dO, L, delta, extras), []
    for rows in _blocks(problem.query_length):
        d_q = mx.zeros_like(backward.Q[..., rows, :])
        for keys in _blocks(problem.key_length):
            if backward.scores.nothing_seen(rows, keys):
                continue
            _, _, d_s, whole = backward.block(rows, keys, d_q)
            d_q = d_q + product(d_s, _key_rows(K, keys), whole)
        results.append((scale * d_q).astype(Q.dtype))
    return (mx.concatenate(results, -2).reshape(Q.shape),)


def backward_query_delta(problem: Problem, *, O, dO, **others) -> tuple[mx.array, mx.array]:
    """dQ and delta."""
    (found,) = delta(problem, dO=dO, O=O)
    return *backward_query(problem, dO=dO, delta=found, **others), found


def backward_key_value(problem: Problem, *, Q, K, V, dO, L, delta, scale, **extras) -> tuple[mx.array, mx.array]:
    """dK and dV in K's dtype, summed over the query heads that share them."""
    backward, d_keys, d_values = _Backward(problem, Q, K, V, dO, L, delta, extras, over_keys=True), [], []
    for keys in _blocks(problem.key_length):
        length = keys.stop - keys.start
        d_k = mx.zeros((problem.batch, problem.key_heads, length, problem.head_dim))
        d_v = mx.zeros((problem.batch, problem.key_heads, length, problem.value_dim))
        for rows in _blocks(problem.query_length):
            if backward.scores.nothing_seen(rows, keys):
                continue
            p, _, d_s, whole = backward.block(rows, keys, d_k, d_v)
            p = backward.scores.drop(p, rows, keys).swapaxes(-1, -2)
            d_v = d_v + product(p, backward.dO[..., rows, :], whole).sum(2)
            d_k = d_k + product(d_s.swapaxes(-1, -2), backward.Q[..., rows, :], whole).sum(2)
        d_keys.append((scale * d_k).astype(K.dtype))
        d_values.append(d_v.astype(V.dtype))
    return mx.concatenate(d_keys, -2), mx.concatenate(d_values, -2)


def backward_mask(problem: Problem, *, Q, K, V, dO, L, delta, scale, extents, **extras) -> tuple[mx.array]:
    """The gradient of an additive mask in float32 and in the mask's own shape: dS summed over broadcast axes."""
    backward, strips = _Backward(problem, Q, K, V, dO, L, delta, extras), []
    summed = [axis for axis, extent in enumerate(extents) if extent == 1]
    which = 2 if problem.variants.seed else 1  # a score's array: dS times the derivative in it
    for rows in _blocks(problem.query_length):
        parts = []
        for keys in _blocks(problem.key_length):
            shape = (problem.batch, problem.query_heads, rows.stop - rows.start, keys.stop - keys.start)
            seen = not backward.scores.nothing_seen(rows, keys)
            d_s = backward.block(rows, keys)[which].reshape(shape) if seen else mx.zeros(shape)
            parts.append(d_s.sum(summed, keepdims=True) if summed else d_s)
        strips.append(sum(parts) if extents[3] == 1 else mx.concatenate(parts, 3))
    return ((sum(strips) if extents[2] == 1 else mx.concatenate(strips, 2)).reshape(extents),)


KERNELS = {
    FORWARD: forward,
    DELTA: delta,
    BACKWARD_QUERY: backward_query,
    BACKWARD_QUERY_DELTA: backward_query_delta,
    BACKWARD_KEY_VALUE: backward_key_value,
    BACKWARD_MASK: backward_mask,
}
