"""`python -m mlx_flash check`: attention and its gradients against a float64 computation, over a sweep of problems.

oracle.py has the criterion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ...api import attention
from ...backends import current_backend, guard, use_backend
from ...common.errors import need
from ...kernels.devices import Family
from ..console import kernel_backend, progress
from .kernels import FEW_HEAD_DIMS, Tried, common_plans, try_all
from .kernels import HEAD_DIMS as COMMON_HEAD_DIMS
from .oracle import FRACTION_BITS, TENSORS, Error, acceptable, exact_tensors, float64, unfused

DTYPES = tuple(FRACTION_BITS)
HEAD_DIMS, QUICK_HEAD_DIMS = (8, 33, 64, 80, 128, 256), (33, 64)
# (batch, query heads, key heads, queries, keys, causal): grouped and ungrouped heads, odd lengths on either side.
PROBLEMS = ((1, 4, 2, 65, 97, True), (2, 2, 2, 67, 33, False))


def results(function: Callable, q: mx.array, k: mx.array, v: mx.array, d_o: mx.array) -> list[mx.array]:
    """[O, dQ, dK, dV] of `function`, evaluated."""
    outputs, gradients = mx.vjp(function, [q, k, v], [d_o])
    mx.eval(outputs, gradients)
    return [*outputs, *gradients]


def compare(problem: tuple, head_dim: int, dtype: str, seed: int) -> dict[str, tuple[Error, Error]]:
    """Errors of (mlx_flash, unfused mx) for each tensor of one random problem."""
    batch, heads, key_heads, length, key_length, causal = problem
    draws = np.random.default_rng(seed)
    query, key = (batch, heads, length, head_dim), (batch, key_heads, key_length, head_dim)
    normal = [mx.array(draws.standard_normal(shape, np.float32)) for shape in (query, key, key, query)]
    arrays = [array.astype(getattr(mx, dtype)) for array in normal]
    wanted = exact_tensors(*map(float64, arrays), causal)
    ours = results(lambda q, k, v: attention(q, k, v, causal=causal), *arrays)
    theirs = results(lambda q, k, v: unfused(q, k, v, causal), *arrays)
    return {
        name: (Error.of(mine, want), Error.of(other, want))
        for name, mine, other, want in zip(TENSORS, ours, theirs, wanted)
    }


@dataclass(frozen=True)
class Line:
    """The worst errors of one dtype and head dimension, and the tensors that failed in any problem."""

    dtype: str
    head_dim: int
    errors: dict[str, tuple[Error, Error]]
    failed: tuple[str, ...]


def sweep(head_dims: tuple[int, ...], tick: Callable[[str], None]) -> list[Line]:
    """Compares every dtype, head dimension and problem on the current backend; calls `tick` after each problem."""
    return [line_of(dtype, head_dim, tick) for dtype in DTYPES for head_dim in head_dims]


def line_of(dtype: str, head_dim: int, tick: Callable[[str], None]) -> Line:
    """The line of a sweep about one dtype and head dimension; calls `tick` after each problem."""
    worst, failed = {}, []
    for seed, problem in enumerate(PROBLEMS):
        for name, (ours, other) in compare(problem, head_dim, dtype, seed).items():
            if not acceptable(name, dtype, ours, other):
                failed.append(name)
            before = worst.get(name, (Error(0, 0), Error(0, 0)))
            worst[name] = (before[0].worse(ours), before[1].worse(other))
        tick(f"{dtype}, head dimension {head_dim}")
    return Line(dtype, head_dim, worst, tuple(dict.fromkeys(failed)))


def check(backend: str | None = None, family: str | None = None, *, quick: bool = False) -> int:
    """Sweeps, prints the table of errors and returns 0 if all meet the criterion, else 1."""
    console = need("rich.console", "check").Console()
    head_dims = QUICK_HEAD_DIMS if quick else HEAD_DIMS
    with use_backend(backend or kernel_backend(), family), progress("check", console) as bars:
        where = current_backend()
        refused = _tried(where.family, quick, bars) if where.guard and not guard.skipped() else []
        for one in refused:
            console.print(f"[red]{one.plan.kernel.name} failed its test[/]: {one.verdict.reason}", highlight=False)
        if refused:
            console.print(f"Please report it to {guard.tracker()}", highlight=False)
            return 1
        count = len(DTYPES) * len(head_dims) * len(PROBLEMS)
        bar = bars.add_task(f"check on {where.name}", total=count, note="")
        lines = sweep(head_dims, lambda note: bars.update(bar, advance=1, note=note))
    kernels = f", kernels of {where.family.name}" if where.family else ""
    console.print(error_table(lines, f"errors over the largest magnitude, on {where.name}{kernels}"))
    failed = [line for line in lines if line.failed]
    verdict = f"[red]{len(failed)} of {len(lines)} rows fail[/]" if failed else f"[green]all {len(lines)} rows pass[/]"
    console.print(f"{count} problems, {verdict}", highlight=False)
    for line in failed:
        console.print(f"{line.dtype}, head dimension {line.head_dim}: {', '.join(line.failed)} too inaccurate")
    return 1 if failed else 0


def _tried(family: Family, quick: bool, bars) -> list[Tried]:
    """The kernels of common calls that fail on tiny problems, so that none is met for the first time by a model."""
    plans = list(common_plans(family, FEW_HEAD_DIMS if quick else COMMON_HEAD_DIMS, (False, True)))
    bar = bars.add_task("kernels", total=len(plans), note="")
    tried = try_all(plans, lambda name: bars.update(bar, advance=1, note=name))
    return [one for one in tried if not one.verdict.ok]


def error_table(lines: list[Line], title: str):
    """Largest and RMS error of every tensor, each followed by that of unfused mx."""
    table = need("rich.table", "check").Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
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
