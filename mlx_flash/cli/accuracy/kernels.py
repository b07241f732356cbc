"""The kernels of common calls, each tried on this machine's GPU: what `check` does before it measures errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ...backends import guard
from ...kernels.devices import Family
from ...kernels.plan import Plan, key_value_kinds, plan
from ...problem.kinds import BACKWARD_QUERY, BACKWARD_QUERY_DELTA, COMBINE, DECODE, DELTA, FORWARD
from ...problem.problem import Signature
from ...problem.variants import Variants

DTYPES = ("float32", "float16", "bfloat16")
HEAD_DIMS, FEW_HEAD_DIMS = (64, 80, 96, 128, 256), (64, 128)
ROWS = 8  # rows of a decoding threadgroup: one query of up to 8 heads


class Tried(NamedTuple):
    """A kernel and the verdict on it."""

    plan: Plan
    verdict: guard.Verdict


def common_plans(family: Family, head_dims: tuple[int, ...], causal: tuple[bool, ...]) -> Iterator[Plan]:
    """Plans of training, prefill and decoding, without a mask and causal."""
    for head_dim in head_dims:
        for dtype in DTYPES:
            for one in causal:
                signature = Signature(8, 8, head_dim, head_dim, dtype, head_dim**-0.5, Variants(causal=one))
                for kind in (FORWARD, BACKWARD_QUERY, BACKWARD_QUERY_DELTA, *key_value_kinds(signature, family)):
                    yield plan(kind, signature, family)
                yield plan(DECODE, signature, family, ROWS)
            yield plan(DELTA, signature, family)  # this and the next do not depend on the mask
            yield plan(COMBINE, signature, family, ROWS)


def try_all(plans: list[Plan], tick: Callable[[str], None]) -> Iterator[Tried]:
    """The verdict on each kernel. Kernels that failed before are tried anew."""
    for one in plans:
        known = guard.known(one)
        found = known if known and known.ok else guard.tried_again(one)
        tick(one.kernel.name)
        yield Tried(one, found)
