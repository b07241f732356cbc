"""Explanations and errors as rich tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from .explanation import Explanation

if TYPE_CHECKING:
    from .check import Line


def explanation_tables(explanation: Explanation) -> Iterator[Table]:
    """One table about the call, one about its kernels."""
    call = Table(title="mlx_flash.attention", title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    call.add_column(style="bold")
    call.add_column(overflow="fold")
    for label, value in explanation.facts():
        call.add_row(label, value)
    yield call
    if explanation.steps:
        yield kernel_table(explanation)


def kernel_table(explanation: Explanation, labels: tuple[str, ...] = ()) -> Table:
    """A column a kernel, a row a fact; `labels` picks facts."""
    table = Table(title="kernels", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    for step in explanation.steps:
        table.add_column(step.name.replace("_", " "), overflow="fold")
    columns = [dict(step.facts()) for step in explanation.steps]
    for label in labels or tuple(columns[0]):
        table.add_row(label, *(column[label] for column in columns))
    return table


def error_table(lines: list[Line], title: str) -> Table:
    """Largest and RMS error of every tensor, each followed by that of unfused mx."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    names = tuple(lines[0].errors)
    for column in ("dtype", "D", ""):
        table.add_column(column)
    for name in names:
        table.add_column(f"{name}   unfused", justify="right", no_wrap=True)
    table.add_column("")
    for line in lines:
        pairs = [line.errors[name] for name in names]
        largest = [f"{_short(ours.largest)} {_short(other.largest)}" for ours, other in pairs]
        rms = [f"{_short(ours.rms)} {_short(other.rms)}" for ours, other in pairs]
        table.add_row(line.dtype, str(line.head_dim), "max", *largest, "[red]FAIL[/]" if line.failed else "pass")
        table.add_row("", "", "rms", *rms, "")
    return table


def _short(number: float) -> str:
    return f"{number:.1e}".replace("e-0", "e-").replace("e+0", "e+")
