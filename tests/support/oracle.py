"""Attention from its definition in float64 numpy: the oracle for every backend.

It shares nothing with the package: no blocks, no online softmax, no base 2, no delta. Every query visits every key
through `visible`, and gradients are the chain rule written out. `*_by_loops` are the definition element by element;
tests use the array forms below, and test_oracle.py proves that both agree.
"""

import functools
import math

import numpy as np


def visible(i: int, j: int, query_length: int, key_length: int, causal: bool) -> bool:
    """Whether query i sees key j. Causality is aligned to the lower right: the last query sees the last key."""
    return not causal or j <= i + (key_length - query_length)


@functools.lru_cache(64)
def visibility(query_length: int, key_length: int, causal: bool) -> np.ndarray:
    table = [[visible(i, j, query_length, key_length, causal) for j in range(key_length)] for i in range(query_length)]
    return np.array(table, dtype=bool).reshape(query_length, key_length)


def _key_head(query_head: int, q: np.ndarray, k: np.ndarray) -> int:
    return query_head // (q.shape[1] // k.shape[1])


def forward_by_loops(q, k, v, scale: float, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """O [B, Hq, Lq, Dv] and the natural-log LSE [B, Hq, Lq], one query and one key at a time."""
    batches, heads, length, _ = q.shape
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -math.inf)
    for b in range(batches):
        for h in range(heads):
            g = _key_head(h, q, k)
            for i in range(length):
                seen = [j for j in range(k.shape[2]) if visible(i, j, length, k.shape[2], causal)]
                if not seen:
                    continue
                scores = [scale * sum(q[b, h, i] * k[b, g, j]) for j in seen]
                top = max(scores)
                total = sum(math.exp(s - top) for s in scores)
                lse[b, h, i] = top + math.log(total)
                for s, j in zip(scores, seen):
                    out[b, h, i] += math.exp(s - top) / total * v[b, g, j]
    return out, lse


def _repeated(array: np.ndarray, heads: int) -> np.ndarray:
    return np.repeat(array, heads // array.shape[1], axis=1)


def _summed(array: np.ndarray, key_heads: int) -> np.ndarray:
    batch, heads, length, dimension = array.shape
    return array.reshape(batch, key_heads, heads // key_heads, length, dimension).sum(2)


def _on_keys(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[B, H, Lq, Lk]: the product of each row with each key."""
    return rows @ keys.swapaxes(-1, -2)


def _over_queries(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[B, H, Lk, D]: for each key the sum of the rows of all queries with weights [B, H, Lq, Lk]."""
    return weights.swapaxes(-1, -2) @ rows


def probabilities(q, k, scale: float, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """P [B, Hq, Lq, Lk], which is zero where masked, and the natural-log LSE."""
    scores = scale * _on_keys(q, _repeated(k, q.shape[1]))
    scores = np.where(visibility(q.shape[2], k.shape[2], causal), scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + np.where(np.isneginf(top), 0.0, top))[..., 0]
    return weights / np.where(total == 0, 1.0, total), lse


def forward(q, k, v, scale: float, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    p, lse = probabilities(q, k, scale, causal)
    return p @ _repeated(v, q.shape[1]), lse


def gradients(q, k, v, d_o, scale: float, causal: bool) -> dict[str, np.ndarray]:
    """dQ, dK, dV of sum(O * d_o), by the chain rule through O = P V, P = softmax(S), S = scale Q K^T."""
    heads, key_heads = q.shape[1], k.shape[1]
    keys, values = _repeated(k, heads), _repeated(v, heads)
    p, _ = probabilities(q, k, scale, causal)
    d_p = _on_keys(d_o, values)
    d_s = p * (d_p - (p * d_p).sum(-1, keepdims=True))  # the Jacobian of softmax: diag(p) - p p^T
    return {
        "dQ": scale * d_s @ keys,
        "dK": _summed(scale * _over_queries(d_s, q), key_heads),
        "dV": _summed(_over_queries(p, d_o), key_heads),
    }


def term_magnitudes(q, k, v, d_o, scale: float, causal: bool) -> dict[str, float]:
    """The largest sum of |terms| of an element of each result: the magnitude that cancels if the result itself is
    small.

    With a single key, for example, dS is exactly 0, as the difference of two numbers that float32 rounds. No
    implementation can do better than a few roundings of these terms.
    """
    heads, key_heads = q.shape[1], k.shape[1]
    keys, values = np.abs(_repeated(k, heads)), np.abs(_repeated(v, heads))
    p, _ = probabilities(q, k, scale, causal)
    d_p = _on_keys(np.abs(d_o), values)
    d_s = p * (d_p + (p * d_p).sum(-1, keepdims=True))
    results = {
        "O": p @ values,
        "dQ": abs(scale) * d_s @ keys,
        "dK": _summed(abs(scale) * _over_queries(d_s, np.abs(q)), key_heads),
        "dV": _summed(_over_queries(p, np.abs(d_o)), key_heads),
    }
    return {name: float(array.max(initial=0.0)) for name, array in results.items()}


def largest_score(q, k, scale: float) -> float:
    return float(np.abs(scale * _on_keys(q, _repeated(k, q.shape[1]))).max(initial=0.0))


def moved_by_output(q, k, v, d_o, scale: float, causal: bool, rounding: float) -> dict[str, float]:
    """The largest change of dQ and dK if every element of O changes by `rounding` of itself.

    An algorithm that keeps O in 16 bits computes rowsum(dO * O) from the rounded O, and dS = P * (dP - rowsum(dO * O))
    cancels only in part.
    """
    heads, key_heads = q.shape[1], k.shape[1]
    p, _ = probabilities(q, k, scale, causal)
    out = p @ _repeated(v, heads)
    d_s = p * (np.abs(d_o) * np.abs(out) * rounding).sum(-1, keepdims=True)
    d_q = abs(scale) * d_s @ np.abs(_repeated(k, heads))
    d_k = _summed(abs(scale) * _over_queries(d_s, np.abs(q)), key_heads)
    return {"dQ": float(d_q.max(initial=0.0)), "dK": float(d_k.max(initial=0.0))}
