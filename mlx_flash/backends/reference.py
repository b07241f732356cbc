"""Runs a step as plain mx operations. Lazy, on any device, inside mx.compile too."""

from __future__ import annotations

from contextlib import nullcontext

import mlx.core as mx

from ..reference import steps as reference


def run(plan, inputs: dict, stream):
    with mx.stream(stream) if stream is not None else nullcontext():
        return reference.STEPS[plan.step](plan.problem, **inputs)
