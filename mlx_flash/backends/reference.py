"""Computes a kind of kernel with plain mx operations: lazy, on any device, and inside mx.compile too."""

from __future__ import annotations

from contextlib import nullcontext

import mlx.core as mx

from ..problem.problem import Problem
from ..reference import steps


def run(kind, plan: None, problem: Problem, inputs: dict, stream):
    with mx.stream(stream) if stream is not None else nullcontext():
        return steps.STEPS[kind](problem, **inputs)
