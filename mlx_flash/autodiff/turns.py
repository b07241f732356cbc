"""dQ, dK and dV by five products of matrices, some heads after the others: their P and dS are kept between kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx

from ..common.mlx_private import after
from ..problem.kinds import BACKWARD_KEY_KEPT, BACKWARD_QUERY_KEEPING, BACKWARD_VALUE_KEPT
from ..problem.problem import Signature
from .operands import contiguous

Arrays = tuple[mx.array, ...]


def in_turns(signature: Signature, heads: int, arrays: Arrays, run_of: Callable) -> Arrays:
    """`heads`: of the keys, at a time. `run_of`: the function that runs the kernels of a part's signature."""
    turns, done = [], ()
    for begin in range(0, signature.key_heads, heads):
        end = min(begin + heads, signature.key_heads)
        queries, keys = slice(begin * signature.group, end * signature.group), slice(begin, end)
        part = replace(signature, query_heads=queries.stop - queries.start, key_heads=end - begin)
        q, k, v, d_o, L, delta = arrays[:6]
        taken = [q[:, queries], k[:, keys], v[:, keys], d_o[:, queries]]
        taken += [contiguous(one[:, queries]) for one in (L, delta)]
        # One turn's memory serves the next. A host that waited for the GPU between turns would take 1 ms for each.
        taken = after(list(done), taken) if done else taken
        done = of_kept((*taken, *arrays[6:]), run_of(part))
        turns.append(done)
    return done if len(turns) == 1 else tuple(map(joined, zip(*turns)))


def joined(parts: Arrays) -> mx.array:
    """The results of all heads, which models join in rows: in memory, the heads of a row lie side by side."""
    return mx.concatenate([one.swapaxes(1, 2) for one in parts], 2).swapaxes(1, 2)


def of_kept(arrays: Arrays, run: Callable) -> Arrays:
    """dQ, dK and dV by kernels of KEPT_KINDS. `arrays`: q, k, v, dO, L, delta, and operands of all heads."""
    (q, k, _, d_o, *_), extras = arrays, arrays[6:]
    d_q, P, d_S = run(BACKWARD_QUERY_KEEPING, *arrays)
    (d_k,), (d_v,) = run(BACKWARD_KEY_KEPT, q, k, d_S, *extras), run(BACKWARD_VALUE_KEPT, q, k, d_o, P, *extras)
    return d_q, d_k, d_v
