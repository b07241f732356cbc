"""Decoding in as few steps as a launch allows, for the calls of generation: every layer of every token makes one.

They have no option but the scale and causality, and no transformation traces them. All else was decided by an earlier
call with as many queries; any other call takes the steps of vjp.py, which launch the same kernels on the same arrays.
"""

from __future__ import annotations

import mlx.core as mx

from ..common.mlx_private import CONSTANT_BELOW
from ..kernels.plan import Plan, plan_of
from ..problem.kinds import COMBINE, DECODE
from ..problem.problem import Problem
from .choice import Choice


def joining(plan: Plan, problem: Problem) -> Plan:
    """The plan of the kernel that joins parts of the keys. `plan`: of the decoding kernel, which makes them."""
    combine = plan.resources.get(COMBINE)
    if combine is None:
        combine = plan.resources[COMBINE] = plan_of(COMBINE, problem, plan.family)
    return combine


def joined_inputs(problem: Problem, parts: list[mx.array]) -> dict:
    """What that kernel reads. `parts`: the outputs of the decoding kernel."""
    return {"O_parts": parts[0], "L_parts": parts[1], "scale": problem.signature.scale}


class Decoding:
    """The decoding kernel of one signature for one number of queries, as a function of q, k and v."""

    def __init__(self, choice: Choice, queries: int, stream):
        signature = choice.plan.signature
        self.choice, self.stream, self.scale = choice, stream, signature.scale
        self.latent = "V" not in choice.plan.kernel.inputs  # values are columns of keys
        # Arrays as they are, of which none is so short that kernels need it padded: results of a row are the shortest.
        self.direct = choice.plan.kernel.gathers and signature.query_heads * queries >= CONSTANT_BELOW
        # A single query is read as it lies; an operation that MLX evaluates packs the rows of more.
        self.rows = (signature.key_heads, signature.group * queries, signature.head_dim) if queries > 1 else None

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, problem: Problem) -> mx.array:
        (_, backend, plan, _), stream = self.choice, self.stream
        launch = plan.launch(problem)
        if self.rows is not None:
            q = mx.reshape(q, (problem[1], *self.rows), stream=stream)
        start = launch.start if self.direct else None
        if start is not None:
            outputs = start([q, k] if self.latent else [q, k, v], stream)
        else:
            inputs = {"Q": q, "K": k, "V": v, "scale": self.scale, "decode_params": launch.decode_params}
            outputs = backend.run(DECODE, plan, problem, inputs, stream)
        if launch.parts > 1:
            combine = joining(plan, problem)
            start = combine.launch(problem).start if self.direct else None
            if start is not None:
                outputs = start(outputs, stream)
            else:
                outputs = backend.run(COMBINE, combine, problem, joined_inputs(problem, outputs), stream)
        return outputs[0]
