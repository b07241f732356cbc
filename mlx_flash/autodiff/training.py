"""Training on short sequences in as few steps as launches allow: there the host's time for a call counts most.

These calls have no option but the scale and causality, and only transformations of MLX's own trace them. The kernel of
dQ makes delta, and one kernel makes dK and dV. Any other call takes the steps of vjp.py, which launch the same kernels
on the same arrays.
"""

from __future__ import annotations

import mlx.core as mx

from ..common.mlx_private import as_bytes
from ..problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY_DELTA, FORWARD
from ..problem.problem import Problem
from .choice import Choice
from .launching import run_kernel


class ShortSteps:
    """The kernels of one set of lengths as functions of arrays. `choices`: of the forward kernel, that of dQ, and that
    of dK and dV."""

    def __init__(self, problem: Problem, choices: list[Choice], stream):
        self.problem, self.stream, self.scale = problem, stream, problem.signature.scale
        self.plans = [choice.plan for choice in choices]
        self.backend = choices[0].backend
        casts = any(plan.casts for plan in self.plans)
        self.run = self._cast if casts else self.backend.run
        # Views as bytes are all that kernels need: with more queries than decoding serves no array is padded.
        self.direct = not casts

    def forward(self, q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        """[O, L]."""
        start = self.plans[0].launch(self.problem).start if self.direct else None
        if start is not None:
            return start([as_bytes(q), as_bytes(k), as_bytes(v)], self.stream)
        inputs = {"Q": q, "K": k, "V": v, "scale": self.scale}
        return self.run(FORWARD, self.plans[0], self.problem, inputs, self.stream)

    def gradients(
        self, q: mx.array, k: mx.array, v: mx.array, O: mx.array, L: mx.array, d_o: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """(dQ, [dK, dV])."""
        run, problem, stream, (_, query, key_value) = self.run, self.problem, self.stream, self.plans
        # A view is an operation that MLX evaluates: both kernels read the same ones.
        q, k, v, d_o = as_bytes(q), as_bytes(k), as_bytes(v), as_bytes(d_o)
        if self.direct:
            start, then = query.launch(problem).start, key_value.launch(problem).start
            if start is not None and then is not None:
                d_q, delta = start([q, k, v, as_bytes(O), d_o, L], stream)
                return d_q, then([q, k, v, d_o, L, delta], stream)
        inputs = {"Q": q, "K": k, "V": v, "O": O, "dO": d_o, "L": L, "scale": self.scale}
        d_q, inputs["delta"] = run(BACKWARD_QUERY_DELTA, query, problem, inputs, stream)
        return d_q, run(BACKWARD_KEY_VALUE, key_value, problem, inputs, stream)

    def _cast(self, kind, plan, problem, inputs, stream) -> tuple[mx.array, ...]:
        return run_kernel(kind, problem, self.backend, stream, inputs, plan)
