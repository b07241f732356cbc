"""Training on short sequences in as few steps as launches allow: there the host's time for a call counts most.

These calls have no option but the scale and causality, and only transformations of MLX's own trace them. The kernel of
dQ makes delta. Any other call takes the steps of vjp.py, which launch the same kernels on the same arrays.
"""

from __future__ import annotations

from operator import itemgetter

import mlx.core as mx

from ..common.mlx_private import as_bytes
from ..problem.kinds import BACKWARD_QUERY_DELTA, FORWARD
from ..problem.problem import Problem
from .choice import Choice
from .launching import run_kernel

READ = ("Q", "K", "V", "dO", "L", "delta")  # what the kernels of dK and dV may read


class ShortSteps:
    """The kernels of one set of lengths as functions of arrays. `choices`: of the forward kernel, that of dQ, and those
    of dK and dV: one for both, or one each.

    `alone`: `forward` with these gradients, where a gradient and nothing else traces. No custom function in front of
    kernels or behind them refuses other transformations, which MLX refuses itself, less clearly: each would take the
    host as long as a kernel.
    """

    def __init__(self, problem: Problem, choices: list[Choice], stream):
        self.problem, self.stream, self.scale = problem, stream, problem.signature.scale
        self.forward_plan, self.query_plan, *key_value_plans = [choice.plan for choice in choices]
        self.key_value = [(plan, itemgetter(*_read_by(plan))) for plan in key_value_plans]
        self.backend = choices[0].backend
        casts = any(choice.plan.casts for choice in choices)
        self.run = self._cast if casts else self.backend.run
        # Views as bytes are all that kernels need: with more queries than decoding serves no array is padded.
        self.direct = not casts
        self.alone = mx.custom_function(self.forward)
        self.alone.vjp(self._backward)

    def forward(self, q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        """[O, L]."""
        start = self.forward_plan.launch(self.problem).start if self.direct else None
        if start is not None:
            return start([as_bytes(q), as_bytes(k), as_bytes(v)], self.stream)
        inputs = {"Q": q, "K": k, "V": v, "scale": self.scale}
        return self.run(FORWARD, self.forward_plan, self.problem, inputs, self.stream)

    def gradients(
        self, q: mx.array, k: mx.array, v: mx.array, O: mx.array, L: mx.array, d_o: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """(dQ, [dK, dV])."""
        run, problem, stream, query = self.run, self.problem, self.stream, self.query_plan
        # A view is an operation that MLX evaluates: all kernels read the same ones.
        q, k, v, d_o = as_bytes(q), as_bytes(k), as_bytes(v), as_bytes(d_o)
        start = query.launch(problem).start if self.direct else None
        if start is not None:
            d_q, delta = start([q, k, v, as_bytes(O), d_o, L], stream)
        else:
            inputs = {"Q": q, "K": k, "V": v, "O": O, "dO": d_o, "L": L, "scale": self.scale}
            d_q, delta = run(BACKWARD_QUERY_DELTA, query, problem, inputs, stream)
        given, others = (q, k, v, d_o, L, delta), []
        for plan, read in self.key_value:
            start = plan.launch(problem).start if self.direct else None
            if start is not None:
                others += start(list(read(given)), stream)
            else:
                inputs = dict(zip(READ, given), scale=self.scale)
                others += run(plan.kind, plan, problem, inputs, stream)
        return d_q, others

    def _backward(self, primals, cotangents, outputs) -> tuple[mx.array, ...]:
        d_q, others = self.gradients(*primals, *outputs, cotangents[0])
        return (d_q, *others)

    def _cast(self, kind, plan, problem, inputs, stream) -> tuple[mx.array, ...]:
        return run_kernel(kind, problem, self.backend, stream, inputs, plan)


def _read_by(plan) -> list[int]:
    """Where the arrays that a kernel reads are in `READ`."""
    return [READ.index(name) for name in plan.kernel.inputs if name in READ]
