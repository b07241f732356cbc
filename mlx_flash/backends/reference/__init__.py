"""The mathematics of attention in plain mx operations, in blocks: the fallback, and the kernels' documentation."""

from __future__ import annotations

from contextlib import nullcontext

import mlx.core as mx

from ...problem.problem import Problem
from ...problem.shards import in_order, traversed_operands
from . import kernels


def run(kind, plan: None, problem: Problem, inputs: dict, stream):
    """Computes a kind of kernel: lazy, on any device, and inside mx.compile too."""
    with mx.stream(stream) if stream is not None else nullcontext():
        if problem.variants.pieces:
            shards = {name: in_order(inputs[name], problem.variants.pieces[1], 2) for name in traversed_operands(kind)}
            inputs = inputs | shards
        return kernels.KERNELS[kind](problem, **inputs)
