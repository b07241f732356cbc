"""The launch of one kind of kernel, with what it needs beside it: the join of parts, the map of a mask, casts."""

from __future__ import annotations

import mlx.core as mx

from ..backends import Backend
from ..kernels import mask_map
from ..kernels.plan import Plan, plan_of
from ..problem.kinds import COMBINE, DECODE, MASK_MAP, KernelKind
from ..problem.problem import Problem
from .decoding import joined_inputs, joining
from .vmap import output_dtype


def run_kernel(
    kind: KernelKind, problem: Problem, backend: Backend, stream, inputs: dict, plan: Plan | None = None
) -> tuple[mx.array, ...]:
    """The outputs of one kind of kernel: O, dQ, dK and dV in the problem's dtype, the others float32. Where decoding
    splits the keys into several parts, they are those of `combine`. `plan`: None to look it up."""
    if plan is None and backend.family:
        plan = plan_of(kind, problem, backend.family)
    if kind is DECODE:
        launch = plan.launch(problem)
        inputs["decode_params"] = launch.decode_params
    if problem.signature.variants.mask and plan is not None and "mask_map" in plan.kernel.inputs:
        inputs["mask_map"] = map_of_mask(kind, problem, backend, stream, inputs["attention_mask"])
    outputs = backend.run(kind, plan, problem, inputs, stream)
    if kind is DECODE and launch.parts > 1:
        outputs = backend.run(COMBINE, joining(plan, problem), problem, joined_inputs(problem, outputs), stream)
    if plan is not None and not plan.casts:
        return tuple(outputs)
    # Kernels write float32 where they page an accumulator.
    dtypes = [output_dtype(name, problem) for name in kind.outputs]
    return tuple([one if one.dtype == to else one.astype(to, stream=stream) for one, to in zip(outputs, dtypes)])


def map_of_mask(kind: KernelKind, problem: Problem, backend: Backend, stream, mask: mx.array) -> mx.array:
    """The map by which a kernel for tensor cores leaves out blocks that its array mask hides; in short calls, where it
    would cost more than it saves, a map that leaves out none."""
    if not mask_map.pays(kind, problem):
        return mask_map.unknown(problem)
    own = mask[tuple(slice(extent) for extent in problem.mask_shape)]
    return mask_map.spread(problem, run_kernel(MASK_MAP, problem, backend, stream, {"attention_mask": own})[0])
