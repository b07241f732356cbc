"""The steps of attention in plain mx operations: the fallback, and the kernels' documentation in Python.

Queries and keys are walked in blocks, as the kernels do, so no array of size Lq x Lk ever exists. All arithmetic is
float32; L is the base-2 logarithm of each row's sum of exponentials. Formulas: FlashAttention-2 (Dao 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from typing import TYPE_CHECKING

import mlx.core as mx

from .steps import BACKWARD_KEY_VALUE, BACKWARD_QUERY, DELTA, FORWARD

if TYPE_CHECKING:
    from .problem import Problem

BLOCK = 512  # rows of a block of queries, and of keys


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _after(done: tuple[mx.array, ...], *arrays: mx.array) -> list[mx.array]:
    """The arrays, to be read only once `done` exists: without an order MLX holds many blocks of scores at once."""
    return mx.depends(list(arrays), list(done))


def _grouped(problem: Problem, array: mx.array) -> mx.array:
    """[B, Hq, ...] as float32 [B, Hk, group, ...], so that key heads broadcast over the queries that share them."""
    shape = (problem.batch, problem.key_heads, -1, *array.shape[2:])
    return array.astype(mx.float32).reshape(shape)


def _key_rows(array: mx.array, keys: slice) -> mx.array:
    return array[:, :, None, keys].astype(mx.float32)


def _sees_nothing(problem: Problem, rows: slice, keys: slice) -> bool:
    return problem.causal and keys.start > rows.stop - 1 + problem.key_length - problem.query_length


def _scores(problem: Problem, q: mx.array, k: mx.array, rows: slice, keys: slice, scale: float) -> mx.array:
    """S = scale log2(e) Q K^T for one block of rows and keys; -inf where masked."""
    s = (q @ k.swapaxes(-1, -2)) * (scale * math.log2(math.e))
    offset = problem.key_length - problem.query_length
    if problem.causal and keys.stop - 1 > rows.start + offset:
        visible = mx.arange(keys.start, keys.stop) <= mx.arange(rows.start, rows.stop)[:, None] + offset
        s = mx.where(visible, s, -math.inf)
    return s


def forward(problem: Problem, *, Q, K, V, scale) -> tuple[mx.array, mx.array]:
    """O in Q's dtype and L float32. Rows that see no key: O = 0, L = -inf."""
    outputs, statistics = [], []
    queries = _grouped(problem, Q)
    for rows in _blocks(problem.query_length):
        q = queries[..., rows, :]
        m = mx.full((*q.shape[:-1], 1), -math.inf)
        l, o = mx.zeros_like(m), mx.zeros((*q.shape[:-1], problem.value_dim))
        for keys in _blocks(problem.key_length):
            if _sees_nothing(problem, rows, keys):
                break
            q, k, v = _after((o,), q, _key_rows(K, keys), _key_rows(V, keys))
            s = _scores(problem, q, k, rows, keys, scale)
            m_new = mx.maximum(m, s.max(-1, keepdims=True))
            reference = mx.where(m_new == -math.inf, 0, m_new)
            p, correction = _exp2(s - reference), _exp2(m - reference)
            l = correction * l + p.sum(-1, keepdims=True)
            o = correction * o + p @ v
            m = m_new
        outputs.append(mx.where(l == 0, 0, o / mx.where(l == 0, 1, l)).astype(Q.dtype))
        statistics.append(mx.where(l == 0, -math.inf, m + mx.log2(mx.where(l == 0, 1, l)))[..., 0])
    o, L = mx.concatenate(outputs, -2), mx.concatenate(statistics, -1)
    return o.reshape(problem.output_shape), L.reshape(problem.output_shape[:3])


def delta(problem: Problem, *, dO, O) -> tuple[mx.array]:
    """rowsum(dO * O), float32 [B, Hq, Lq]."""
    return ((dO.astype(mx.float32) * O.astype(mx.float32)).sum(-1),)


def _exp2(x: mx.array) -> mx.array:
    return mx.exp(x * math.log(2))


def _gradients(problem: Problem, rows: slice, keys: slice, scale, q, k, v, d_o, L, delta):
    """P and dS = P * (dP - delta) of one block, recomputed from the row statistics."""
    s = _scores(problem, q, k, rows, keys, scale)
    reference = mx.where(L == -math.inf, math.inf, L)[..., None]
    p = _exp2(s - reference)
    return p, p * (d_o @ v.swapaxes(-1, -2) - delta[..., None])


def backward_query(problem: Problem, *, Q, K, V, dO, L, delta, scale) -> tuple[mx.array]:
    """dQ in Q's dtype."""
    results = []
    queries, d_outputs, statistics, deltas = (_grouped(problem, x) for x in (Q, dO, L, delta))
    for rows in _blocks(problem.query_length):
        q, d_o = queries[..., rows, :], d_outputs[..., rows, :]
        d_q = mx.zeros_like(q)
        for keys in _blocks(problem.key_length):
            if _sees_nothing(problem, rows, keys):
                break
            k, v = _key_rows(K, keys), _key_rows(V, keys)
            row = (statistics[..., rows], deltas[..., rows])
            q, k, v = _after((d_q,), q, k, v)
            _, d_s = _gradients(problem, rows, keys, scale, q, k, v, d_o, *row)
            d_q = d_q + d_s @ k
        results.append((scale * d_q).astype(Q.dtype))
    return (mx.concatenate(results, -2).reshape(Q.shape),)


def backward_key_value(problem: Problem, *, Q, K, V, dO, L, delta, scale) -> tuple[mx.array, mx.array]:
    """dK and dV in K's dtype, summed over the query heads that share them."""
    d_keys, d_values = [], []
    queries, d_outputs, statistics, deltas = (_grouped(problem, x) for x in (Q, dO, L, delta))
    for keys in _blocks(problem.key_length):
        k, v = _key_rows(K, keys), _key_rows(V, keys)
        d_k, d_v = mx.zeros(k[:, :, 0].shape), mx.zeros(v[:, :, 0].shape)
        for rows in _blocks(problem.query_length):
            if _sees_nothing(problem, rows, keys):
                continue
            q, d_o = queries[..., rows, :], d_outputs[..., rows, :]
            row = (statistics[..., rows], deltas[..., rows])
            q, d_o = _after((d_k, d_v), q, d_o)
            p, d_s = _gradients(problem, rows, keys, scale, q, k, v, d_o, *row)
            d_v = d_v + (p.swapaxes(-1, -2) @ d_o).sum(2)
            d_k = d_k + (d_s.swapaxes(-1, -2) @ q).sum(2)
        d_keys.append((scale * d_k).astype(K.dtype))
        d_values.append(d_v.astype(V.dtype))
    return mx.concatenate(d_keys, -2), mx.concatenate(d_values, -2)


STEPS = {
    FORWARD: forward,
    DELTA: delta,
    BACKWARD_QUERY: backward_query,
    BACKWARD_KEY_VALUE: backward_key_value,
}
