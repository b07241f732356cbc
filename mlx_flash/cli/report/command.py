"""`python -m mlx_flash check --report`: runs every part that this machine can, and prints one block of Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

from ...backends import backend, current_backend, guard, use_backend
from ...common.errors import UnsupportedProblem, need
from ...common.machine import metal_gpu
from ..accuracy import check, oracle
from ..accuracy.kernels import FEW_HEAD_DIMS, common_plans
from ..console import kernel_backend, progress
from . import machine, measures

SECONDS = 150.0  # of all parts: the last steps may take some of the rest of three minutes
HEAD_DIMS = (64, 128)  # of the errors against float64
Tick = Callable[[str], None]


class Found(NamedTuple):
    """A row of a part's table, or a sentence, and whether all is well with it."""

    cells: tuple[str, ...]
    well: bool = True


class Part(NamedTuple):
    """`run(tick)` finds row after row of the table below `head`, or sentences where that is empty. It calls `tick` with
    the name of every step before it begins, which ends the part where its time is up. `share`: of the time that is left
    when it begins, in the measure of the parts that are left; what it does not need is theirs."""

    name: str
    head: tuple[str, ...]
    run: Callable[[Tick], Iterator[Found]]
    needs_metal: bool
    share: float


class TimeUp(Exception):
    """No step of the part begins any more. The message names the one that was next."""


def report() -> int:
    """Prints the report to standard output, its progress to standard error; 1 if a kernel failed or an error is too
    large, else 0."""
    console = need("rich.console", "check --report").Console(stderr=True)
    parts = [part for part in PARTS if metal_gpu() or not part.needs_metal]
    lines = ["## mlx_flash report", "", *_table(("", ""), machine.facts())]
    healthy, end = True, time.monotonic() + SECONDS
    with progress("check --report", console) as bars:
        bar = bars.add_task("report", total=len(parts), note="")
        for number, part in enumerate(parts):
            left = end - time.monotonic()
            part_end = end - left * (1 - part.share / sum(one.share for one in parts[number:]))
            found, well = _attempted(part, part_end, lambda note: bars.update(bar, note=note))
            lines += ["", f"### {part.name}", "", *found]
            healthy = healthy and well
            bars.update(bar, advance=1, note="")
    absent = [part.name for part in PARTS if part not in parts]
    if absent:
        lines += ["", f"Not done, since MLX finds no Metal GPU here: {', '.join(absent)}."]
    print("\n".join(lines))
    console.print(f"Paste this report at {guard.tracker()}", highlight=False)
    return 0 if healthy else 1


def _attempted(part: Part, end: float, show: Callable[[str], None]) -> tuple[list[str], bool]:
    """(lines of Markdown, whether all is well) of a part. One that fails, or whose time is up, does not stop the
    others, and keeps what it found; its first row is found in any case."""
    rows, failed, ended = [], 0, []

    def tick(note: str) -> None:
        show(f"{part.name} {note}")
        if rows and time.monotonic() > end:
            raise TimeUp(note)

    try:
        for cells, well in part.run(tick):
            rows.append(cells)
            failed += not well
    except TimeUp as late:
        ended = [f"No time was left from {late} on."]
    except UnsupportedProblem as error:
        ended = [f"Not done: {error}"]
    except (RuntimeError, ValueError) as error:
        ended, failed = [f"Failed: {type(error).__name__}: {' '.join(str(error).split())}"], failed + 1
    lines = _table(part.head, rows) if part.head and rows else [sentence for (sentence,) in rows]
    counted = [f"{failed} of {len(rows)} failed.", ""] if failed and rows else []
    return [*counted, *lines, *([""] if rows and ended else []), *ended], not failed


def kernels(tick: Tick) -> Iterator[Found]:
    for plan in common_plans(backend("metal").family, FEW_HEAD_DIMS, (True,)):
        tick(plan.kernel.name)
        verdict = guard.tried_again(plan)
        cells = (
            plan.kind.name, plan.signature.dtype, str(plan.head_dim), f"{verdict.seconds:.2g}", f"{verdict.error:.1e}",
            verdict.reason or "right",
        )  # fmt: skip
        yield Found(cells, verdict.ok)


def errors(tick: Tick) -> Iterator[Found]:
    # Not by name on a Mac, so that what takes the place of kernels that failed is measured too.
    with nullcontext() if metal_gpu() else use_backend(kernel_backend()):
        for dtype in check.DTYPES:
            for head_dim in HEAD_DIMS:
                tick(f"{dtype}, D={head_dim}")
                line = check.line_of(dtype, head_dim, lambda _: None)
                figures = (f"{ours.largest:.1e} ({other.largest:.1e})" for ours, other in line.errors.values())
                where = current_backend().name
                yield Found((where, dtype, str(head_dim), *figures, "FAIL" if line.failed else "pass"), not line.failed)


def speed(tick: Tick) -> Iterator[Found]:
    tick("length")
    for case in measures.speed_cases(*measures.fitting()):
        tick(case.name)
        rates = (measures.instructions(case) / ms / 1e6 for ms in measures.speed(case))
        yield Found((case.name, case.dtype, *(f"{rate:.0f}" if rate > 100 else f"{rate:.3g}" for rate in rates)))


def decoding(tick: Tick) -> Iterator[Found]:
    tick("length")
    case = measures.decode_case(*measures.fitting())
    tick(case.name)
    ours, built_in = measures.speed(case)
    yield Found((f"{case.name}, {case.heads} heads, {case.dtype}: {ours:.3f} ms, built-in {built_in:.3f} ms.",))


def append(tick: Tick) -> Iterator[Found]:
    tick("one step ahead")
    ratio = measures.append_copies()
    verdict = "copies the cache" if ratio > 0.5 else "does not copy the cache"
    yield Found((f"One step ahead of the device, it {verdict}: {ratio:.2f} of its size beyond what stays.",))


def agreement(tick: Tick) -> Iterator[Found]:
    family = backend("metal").family.name
    for dtype in check.DTYPES:
        for head_dim in HEAD_DIMS:
            tick(f"{dtype}, D={head_dim}")
            found = measures.ulps(dtype, head_dim, family)
            yield Found((dtype, str(head_dim), *(f"{found[name]:.2f}" for name in oracle.TENSORS)))


# The last one compiles every kernel for the simulator, which takes longest.
PARTS = (
    Part("Kernels on a tiny problem", ("kernel", "dtype", "D", "seconds", "error", "verdict"), kernels, True, 5),
    Part(
        "Errors against float64, in brackets of unfused MLX", ("on", "dtype", "D", *oracle.TENSORS, ""), errors, False,
        3,
    ),
    Part("Decoding", (), decoding, True, 1),
    Part("Appending to a cache", (), append, False, 1),
    Part("Speed", ("case", "dtype", "GINSTRS", "built-in"), speed, True, 4),
    Part(
        "Difference from the simulator in units in the last place", ("dtype", "D", *oracle.TENSORS), agreement, True, 3,
    ),
)  # fmt: skip


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    def line(cells) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]
