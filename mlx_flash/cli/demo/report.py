"""The demo's output before and after the run."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...backends import Backend
from ...common.scalars import readable
from ...explanations.report import Explanation
from .model import Shape

LONG = 8192  # a context length at which the difference in memory matters
KERNEL_FACTS = ("table row", "why", "blocks P x T x H", "threads", "threadgroups", "in registers", "re-read", "paged")


def asked_for_reference() -> bool:
    """Whether MLX_FLASH_BACKEND names the reference backend, which the demo would not choose by itself."""
    return os.environ.get("MLX_FLASH_BACKEND") == "reference"


def operands(shape: Shape, dtype: mx.Dtype, context: int | None = None) -> tuple[mx.array, mx.array, mx.array]:
    """Lazy q, k and v of the attention of one layer, as arguments for `explain`."""
    length = context or shape.context
    query = mx.zeros((shape.batch, shape.heads, length, shape.head_dim), dtype)
    key = mx.zeros((shape.batch, shape.key_heads, length, shape.head_dim), dtype)
    return query, key, key


def introduce(console: Console, backend: Backend, shape: Shape, arguments, size: int) -> None:
    """Prints model, data and backend before anything runs."""
    family = f", kernels of {backend.family.name} ({backend.family.chips})" if backend.family else ", no kernels"
    console.print(f"[bold]mlx_flash demo[/]: attention on [bold]{backend.name}[/]{family}, {arguments.dtype}")
    source = escape(arguments.text or "Python's language reference (pydoc_data.topics)")
    console.print(
        f"model: {shape.layers} layers, {shape.heads} query heads over {shape.key_heads} key/value heads, head "
        f"dimension {shape.head_dim}, context {shape.context}, batch {shape.batch}\n"
        f"text: {source}, {readable(size)}\n",
        highlight=False,
    )


def conclude(console: Console, outcome, explanation: Explanation, shape: Shape, picture: Path, replaced: bool) -> None:
    """Prints kernels, memory, text, plot and verdict."""
    if explanation.kernels:
        from ...explanations.tables import kernel_table

        family = explanation.family
        console.print(f"\nThe kernels that ran, on {explanation.backend} as {family.name} ({family.chips}):")
        console.print(kernel_table(explanation, KERNEL_FACTS))
    else:
        console.print("\nNo kernels ran: the reference backend is plain mx operations in blocks.")
    console.print(_memory(explanation, shape))
    console.print("; ".join(f"{phase} {seconds:.1f} s" for phase, seconds in outcome.seconds.items()), highlight=False)
    line = " ".join(outcome.text.decode("utf-8", errors="replace").split())
    console.print(f"\nthe trained model writes: [italic]{escape(repr(line))}[/]", highlight=False)
    console.print(f"plot: {escape(str(picture))}{' (replaced)' if replaced else ''}", highlight=False, soft_wrap=True)
    verdict = "[green]agree[/]" if outcome.agrees else "[red]DISAGREE[/]"
    console.print(
        f"final loss {outcome.losses[-1]:.4f}, with mx.fast {outcome.expected[-1]:.4f}; the curves {verdict}: largest "
        f"difference {outcome.difference:.2g}, limit {outcome.limit:g}",
        highlight=False,
    )


def _memory(explanation: Explanation, shape: Shape) -> Table:
    """Bytes that the attention of one layer holds between its forward and backward pass, here and at a long context."""
    from ...explanations.explain import explain

    table = Table(title="attention memory of one layer", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("context", "outputs O", "L and delta", "held in all", "scores and probabilities, unfused"):
        table.add_column(column, justify="right")
    dtype = getattr(mx, explanation.problem.dtype)
    family = explanation.family.name if explanation.family else None
    for context in (shape.context, LONG):
        here = explain(*operands(shape, dtype, context), causal=True, backend=explanation.backend, family=family)
        output = _output_bytes(here)
        table.add_row(
            str(context), readable(output), readable(here.residual_bytes), readable(output + here.residual_bytes),
            readable(here.unfused_bytes),
        )  # fmt: skip
    return table


def _output_bytes(explanation: Explanation) -> int:
    """O as the forward launch writes it; without kernels, O in its dtype."""
    if not explanation.kernels:
        problem = explanation.problem
        elements = problem.batch * problem.query_heads * problem.query_length * problem.value_dim
        return elements * getattr(mx, problem.dtype).size
    # The forward launch writes O and L; L is half of the residuals.
    return explanation.kernels[0].output_bytes - explanation.residual_bytes // 2
