"""The exact Metal text that MLX would compile for a plan, obtained from MLX itself, and its translation to PTX.

Inside mx.export_function MLX records a metal_kernel without running it, on any machine, and prints the generated text
with verbose=True. It prints from C++, so the output is captured at the file descriptor.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import mlx.core as mx

from ..backends.metal import kernel_object, run_with
from ..common.errors import UnsupportedProblem
from ..common.mlx_private import printed_source
from ..kernels.launch import output_shape
from ..kernels.plan import Plan
from ..problem.kinds import COMBINE, DECODE
from ..problem.problem import Problem
from ..problem.variants import Variants

TAG = "[mlx_flash.source]"


def generated_text(plan: Plan, problem: Problem, given: dict | None = None) -> str:
    """The Metal source of the plan's kernel, as MLX generates it from the plan's arguments.

    given: arrays and numbers of the options, by their names in the kernel. Raises UnsupportedProblem for a call with
    options whose operands are not given.
    """
    numbers = {name: one for name, one in (given or {}).items() if not isinstance(one, mx.array)}
    names, arrays = _operands(plan, problem, given or {})

    def call(*traced):
        inputs = dict(zip(names, traced)) | _numbers(plan, problem) | numbers
        return run_with(_verbose(plan.kernel), plan.launch(problem), inputs, mx.gpu)

    with tempfile.TemporaryDirectory() as folder:
        printed = captured(lambda: mx.export_function(os.path.join(folder, "kernel.mlxfn"), call, *arrays))
    text = printed_source(printed)
    if text is None:
        raise RuntimeError(f"{TAG} MLX {mx.__version__} printed no Metal text: use MLX 0.32.0 or later")
    return text


def assembler_text(plan: Plan, problem: Problem, values: bool = False) -> str:
    """The PTX of the plan's kernel, as it is passed to an NVIDIA driver; `values`: as in `compiled`."""
    from ..backends.cuda import compiled

    names, arrays = _operands(plan, problem)
    inputs = dict(zip(names, arrays)) | _numbers(plan, problem)
    return compiled(plan, problem, inputs, values).code.decode("ascii")


def _numbers(plan: Plan, problem: Problem) -> dict:
    return {"scale": problem.scale} | (
        {"decode_params": plan.launch(problem).decode_params} if plan.kind is DECODE else {}
    )


def _operands(plan: Plan, problem: Problem, given: dict | None = None) -> tuple[list[str], list[mx.array]]:
    given = given or {}
    if not given and replace(problem.variants, causal=False) != Variants():
        raise UnsupportedProblem(f"{TAG} only plain and causal attention can be printed. Leave out the other options.")
    numbers = {name for name, one in given.items() if not isinstance(one, mx.array)} | set(_numbers(plan, problem))
    names = [name for name in plan.kernel.inputs if name not in numbers]
    return names, [given[name] if name in given else _operand(name, problem) for name in names]


def _verbose(kernel):
    return partial(kernel_object(mx.fast.metal_kernel, kernel), verbose=True)


def _operand(name: str, problem: Problem) -> mx.array:
    """A lazy array with the operand's shape, which is the shape of its gradient."""
    same = {"Q": "dQ", "K": "dK", "V": "dV", "dO": "O"}.get(name, name)
    if name in COMBINE.inputs:
        return mx.zeros((8, *output_shape(name.removesuffix("_parts"), problem)))
    dtype = mx.float32 if name in ("L", "delta") else getattr(mx, problem.dtype)
    return mx.zeros(output_shape(same, problem), dtype)


def captured(action: Callable[[], object]) -> str:
    """The text that C++ code writes to standard output while `action` runs."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                action()
            finally:
                os.dup2(kept, 1)
            file.seek(0)
            return file.read().decode("utf-8")
    finally:
        os.close(kept)
