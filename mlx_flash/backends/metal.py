"""Runs kernels on an Apple GPU through mx.fast.metal_kernel."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import mlx.core as mx

from ..common.errors import UnsupportedProblem
from ..common.machine import gpu_facts
from ..common.mlx_private import says_no_metal
from ..kernels.devices import Family, machine_of
from ..kernels.launch import Launch
from ..kernels.plan import Plan
from ..problem.problem import Problem
from .tuned import tuned


@lru_cache
def family_here() -> Family:
    """The family of this GPU, with the rows tuned on it."""
    family = machine_of(str(gpu_facts().get("architecture", "")))
    return replace(family, tuned=tuned(family))


def run_with(compiled, launch: Launch, inputs: dict, stream) -> list[mx.array]:
    """Runs a launch: its outputs as they lie. `compiled` is a callable with the signature of MLX's metal kernels."""
    return compiled(
        inputs=launch.arguments(inputs),
        output_shapes=launch.output_shapes,
        output_dtypes=launch.output_dtypes,
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        stream=stream,
    )


# The kernels rely on -inf and NaN. "safe" is MLX's default, and is set here in case that changes.
SAFE = {"math_mode": "safe"}


def kernel_object(metal_kernel, kernel, ensure_row_contiguous=False, **more):
    """MLX's object for a kernel. Views are read through their strides without a copy, unless `ensure_row_contiguous` is
    set. `more`: further arguments of `metal_kernel`."""
    return metal_kernel(
        name=kernel.name,
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=kernel.body,
        header=kernel.header,
        ensure_row_contiguous=ensure_row_contiguous,
        compile_options=SAFE,
        **more,
    )


def run(kind, plan: Plan, problem: Problem, inputs: dict, stream, device=mx.gpu) -> list[mx.array]:
    """`device`: where no stream was given, since the default device may be the CPU when the backend is named."""
    compiled = plan.resources.get("metal")
    if compiled is None:
        compiled = plan.resources["metal"] = kernel_object(mx.fast.metal_kernel, plan.kernel)
    launch = plan.launch(problem)
    return launch.results(run_with(compiled, launch, inputs, device if stream is None else stream), stream)


def record(kind, plan: Plan, problem: Problem, inputs: dict, stream) -> list[mx.array]:
    """`run` without a GPU: MLX records kernels while mx.export_function traces, and raises an error otherwise."""
    try:
        return run(kind, plan, problem, inputs, stream, device=None)
    except RuntimeError as error:
        if not says_no_metal(error):
            raise
        raise UnsupportedProblem(
            '[mlx_flash] backend "metal": this machine has no Metal GPU, so its kernels can be exported here '
            '(mx.export_function) but not run. Use "simulator" or "reference" to run.'
        ) from None
