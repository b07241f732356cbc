"""Explanations as rich tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from .report import Explanation


def explanation_tables(explanation: Explanation) -> Iterator[Table]:
    """A table of the call, and one of its kernels if there are any."""
    call = Table(title="mlx_flash.attention", title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    call.add_column(style="bold")
    call.add_column(overflow="fold")
    for label, value in explanation.facts():
        call.add_row(label, value)
    yield call
    if explanation.kernels:
        yield kernel_table(explanation)


def kernel_table(explanation: Explanation, labels: tuple[str, ...] = ()) -> Table:
    """A table with a column for each kernel and a row for each fact, or for those named by `labels`."""
    table = Table(title="kernels", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    for kernel in explanation.kernels:
        table.add_column(kernel.name.replace("_", " "), overflow="fold")
    columns = [dict(kernel.facts()) for kernel in explanation.kernels]
    for label in labels or tuple(columns[0]):
        table.add_row(label, *(column[label] for column in columns))
    return table
