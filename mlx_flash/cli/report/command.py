"""`python -m mlx_flash check --report`: runs every part that this machine can, and prints one block of Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

from ...backends import backend, current_backend, guard, use_backend
from ...common.errors import UnsupportedProblem, need
from ...common.machine import metal_gpu
from ..accuracy import check, oracle
from ..accuracy.kernels import FEW_HEAD_DIMS, common_plans, try_all
from ..console import kernel_backend, progress
from . import machine, measures

SECONDS, KERNEL_SECONDS = 150.0, 75.0  # after which no further part, and no further kernel, begins
HEAD_DIMS = (64, 128)  # of the errors against float64
Tick = Callable[[str], None]


class Part(NamedTuple):
    """`run(tick)`: (lines of Markdown, whether all is well); it calls `tick` with the name of its current step."""

    name: str
    run: Callable[[Tick], tuple[list[str], bool]]
    needs_metal: bool


def report() -> int:
    """Prints the report to standard output, its progress to standard error; 1 if a kernel failed or an error is too
    large, else 0."""
    console = need("rich.console", "check --report").Console(stderr=True)
    parts = [part for part in PARTS if metal_gpu() or not part.needs_metal]
    lines = ["## mlx_flash report", "", *_table(("", ""), machine.facts())]
    healthy, late, end = True, [], time.monotonic() + SECONDS
    with progress("check --report", console) as bars:
        bar = bars.add_task("report", total=len(parts), note="")
        for part in parts:
            if time.monotonic() > end:
                late.append(part.name)
                continue
            found, well = _attempted(part, lambda note, name=part.name: bars.update(bar, note=f"{name} {note}"))
            lines += ["", f"### {part.name}", "", *found]
            healthy = healthy and well
            bars.update(bar, advance=1, note="")
    absent = [part.name for part in PARTS if part not in parts]
    if absent:
        lines += ["", f"Not done, since MLX finds no Metal GPU here: {', '.join(absent)}."]
    if late:
        lines += ["", f"Not done, since the parts before took {SECONDS:.0f} s: {', '.join(late)}."]
    print("\n".join(lines))
    console.print(f"Paste this report at {guard.tracker()}", highlight=False)
    return 0 if healthy else 1


def _attempted(part: Part, tick: Tick) -> tuple[list[str], bool]:
    """The result of a part, or the reason why it has none: a part that fails does not stop the others."""
    tick("")
    try:
        return part.run(tick)
    except UnsupportedProblem as error:
        return [f"Not done: {error}"], True
    except (RuntimeError, ValueError) as error:
        return [f"Failed: {type(error).__name__}: {' '.join(str(error).split())}"], False


def kernels(tick: Tick) -> tuple[list[str], bool]:
    plans = list(common_plans(backend("metal").family, FEW_HEAD_DIMS, (True,)))
    tried, end = [], time.monotonic() + KERNEL_SECONDS
    for one in try_all(plans, True, tick):
        tried.append(one)
        if time.monotonic() > end:
            break
    rows = [
        (one.plan.kind.name, one.plan.signature.dtype, str(one.plan.head_dim), f"{one.verdict.seconds:.2g}",
         f"{one.verdict.error:.1e}", one.verdict.reason or "right")
        for one in tried
    ]  # fmt: skip
    failed = sum(not one.verdict.ok for one in tried)
    head = ("kernel", "dtype", "D", "seconds", "error", "verdict")
    late = f", no time for {len(plans) - len(tried)} others" if len(tried) < len(plans) else ""
    return [f"{len(tried)} tried, {failed} failed{late}.", "", *_table(head, rows)], not failed


def errors(tick: Tick) -> tuple[list[str], bool]:
    # Not by name on a Mac, so that what takes the place of kernels that failed is measured too.
    with nullcontext() if metal_gpu() else use_backend(kernel_backend()):
        where = current_backend().name
        lines = check.sweep(HEAD_DIMS, tick)
    rows = [
        (line.dtype, str(line.head_dim), *(f"{ours.largest:.1e} ({other.largest:.1e})"
         for ours, other in line.errors.values()), "FAIL" if line.failed else "pass")
        for line in lines
    ]  # fmt: skip
    table = _table(("dtype", "D", *oracle.TENSORS, ""), rows)
    return [f"On {where}, in brackets the errors of unfused MLX.", "", *table], not any(line.failed for line in lines)


def agreement(tick: Tick) -> tuple[list[str], bool]:
    family, rows = backend("metal").family.name, []
    for dtype in check.DTYPES:
        for head_dim in HEAD_DIMS:
            tick(f"{dtype}, D={head_dim}")
            found = measures.ulps(dtype, head_dim, family)
            rows.append((dtype, str(head_dim), *(f"{found[name]:.2f}" for name in oracle.TENSORS)))
    return _table(("dtype", "D", *oracle.TENSORS), rows), True


def speed(tick: Tick) -> tuple[list[str], bool]:
    rows = []
    for case in measures.speed_cases():
        tick(case.name)
        rates = (f"{measures.instructions(case) / ms / 1e6:.0f}" for ms in measures.speed(case))
        rows.append((case.name, case.dtype, *rates))
    return _table(("case", "dtype", "GINSTRS", "built-in"), rows), True


def decoding(tick: Tick) -> tuple[list[str], bool]:
    case = measures.decode_case()
    tick(case.name)
    ours, built_in = measures.speed(case)
    return [f"{case.name}, {case.heads} heads, {case.dtype}: {ours:.3f} ms, built-in {built_in:.3f} ms."], True


def append(tick: Tick) -> tuple[list[str], bool]:
    tick("")
    ratio = measures.append_copies()
    verdict = "copies the cache" if ratio > 0.5 else "does not copy the cache"
    return [f"One step ahead of the device, it {verdict}: {ratio:.2f} of its size beyond what stays."], True


PARTS = (
    Part("Kernels on a tiny problem", kernels, True),
    Part("Errors against float64", errors, False),
    Part("Difference from the simulator in units in the last place", agreement, True),
    Part("Speed", speed, True),
    Part("Decoding", decoding, True),
    Part("Appending to a cache", append, False),
)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    def line(cells) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]
