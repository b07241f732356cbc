"""`python -m mlx_flash tune`: times the legal rows of common kernels on this GPU, and calls beside the built-in's.

It writes after every measurement and goes on where it ended; what it found serves later processes (backends/tuned.py).
Without a GPU it ranks the rows by the cost model, and writes nothing.
"""

from __future__ import annotations

import time

import mlx.core as mx

from ... import backends
from ...autodiff.call import clear_cache
from ...backends import Backend, current_backend, tuned
from ...common.errors import CommandError, need
from ...integrations import kept
from ...kernels.config import TileConfig
from ...kernels.devices import FAMILIES, Family, TunedCall
from ...kernels.plan import key_value_kinds
from ...kernels.search import predicted, ranked
from ...problem.kinds import BACKWARD_QUERY, DECODE, FORWARD
from ...problem.problem import Signature, padded
from ..benchmark import Case
from ..console import progress
from . import measure
from .measure import Bench, Kernel


def tune(dtypes: list[str], head_dims: list[int], rows: int, seconds: float, again: bool) -> int:
    """Measures what the file of this machine does not hold yet, until `seconds` have passed; prints the gains."""
    console = need("rich.console", "tune").Console()
    own = current_backend()
    head_dims = sorted({padded(head_dim) for head_dim in head_dims})
    if own.name not in measure.SIZES:
        console.print("There is no GPU here to time rows on: these are ranked by the cost model.")
        return rank("apple9", dtypes, head_dims, rows)
    with tuned.tuning_lock():
        contents, reason = tuned.read(own.family)
        if reason:
            console.print(f"What was tuned before is not used: {reason}", highlight=False)
        if again:
            contents = {**contents, "rows": [], "calls": []}
        tuned.write(contents)
        end = time.monotonic() + seconds
        with progress("tune", console) as bars:
            done = _rows(contents, own, list(kernels(dtypes, head_dims, own.family)), rows, bars, end)
            forget()
            done = _calls(contents, measure.cases(dtypes, head_dims, own.name), bars, end) and done
    forget()
    status = show()
    if not done:
        console.print(f"{seconds:.0f} s have passed: the same command goes on from here.", highlight=False)
    return status


def kernels(dtypes: list[str], head_dims: list[int], family: Family):
    """The kernels of training, prefill and decoding."""
    for head_dim in head_dims:
        for dtype in dtypes:
            signature = Signature(1, 1, head_dim, head_dim, dtype, 1.0)
            for kind in (FORWARD, BACKWARD_QUERY, *key_value_kinds(signature, family), DECODE):
                yield Kernel(kind, dtype, head_dim)


def _rows(contents: dict, own: Backend, wanted: list[Kernel], most: int, bars, end: float) -> bool:
    """Times rows; whether all were. A clock drifts by more than rows differ: those that beat the table's are timed
    again, in turns with it."""
    jobs = {kernel: ranked(*kernel[:2], own.family, kernel.head_dim, most) for kernel in wanted}
    bar = bars.add_task("rows", total=sum(map(len, jobs.values())), note="")
    timed = {(one["kind"], one["dtype"], one["head_dim"], tuned.row_of(one)) for one in contents["rows"]}
    for kernel, rows in jobs.items():
        facts, bench = (kernel.kind.name, kernel.dtype, kernel.head_dim), None
        for number, row in enumerate(rows):
            bars.update(bar, note=str(kernel))
            if (*facts, row) not in timed:
                if time.monotonic() > end:
                    return False
                if bench is None:
                    bench = Bench(kernel, own)
                    if number:  # the right results, by the table's row
                        bench.time(rows[0])
                ms, failure = bench.time(row)
                contents["rows"].append(tuned.measurement(*facts, row, number == 0, round(ms, 5), failure))
                tuned.write(contents)
            bars.update(bar, advance=1)
        rivals = tuned.rivals(contents, facts)
        if not all(one.get("in_turns") for one in rivals):
            if time.monotonic() > end:
                return False
            times = (bench or Bench(kernel, own)).in_turns([tuned.row_of(one) for one in rivals])
            for one, ms in zip(rivals, times):
                one.update(ms=round(ms, 5), in_turns=True)
            tuned.write(contents)
        mx.clear_cache()
    return True


def _calls(contents: dict, wanted: list[Case], bars, end: float) -> bool:
    bar = bars.add_task("calls", total=len(wanted), note="")
    timed = {tuple(one[name] for name in TunedCall._fields[:6]) for one in contents["calls"]}
    for case in wanted:
        bars.update(bar, note=case.name)
        mask = "causal" if case.causal else None
        facts = (case.dtype, case.head_dim, case.queries or case.length, case.length, mask, case.backward)
        if facts not in timed:
            if time.monotonic() > end:
                return False
            times = (round(ms, 5) for ms in measure.call_times(case))
            contents["calls"].append(TunedCall(*facts, *times)._asdict())
            tuned.write(contents)
            mx.clear_cache()
        bars.update(bar, advance=1)
    return True


def forget() -> None:
    """Later calls of this process read the file anew."""
    from ...backends import cuda, metal

    for found in (tuned.tuned, metal.family_here, cuda.family_here):
        found.cache_clear()
    backends.forget()
    clear_cache()
    kept.calls.clear()


def show() -> int:
    """Prints what the file of this machine holds, as tables of gains; 1 if there is no file that can be used."""
    console = need("rich.console", "tune").Console()
    own = current_backend()
    if own.name not in measure.SIZES:
        raise CommandError("there is no GPU here that could have been tuned: run it on a Mac or with MLX for CUDA")
    contents, reason = tuned.read(own.family)
    if reason or not contents["rows"]:
        told = reason or f"nothing was tuned yet: there is no {tuned.file_here()}"
        console.print(told, highlight=False, soft_wrap=True)  # a path is copied in one piece
        return 1
    found = tuned.winners(contents, own.family)
    better = {one[:3]: one for one in found.rows}
    lines = []
    for one in contents["rows"]:
        key = (one["kind"], one["dtype"], one["head_dim"])
        if one["table"]:
            best = better.get(key)
            gain = f"{best.table_ms / best.ms - 1:+.0%}" if best else "the table's is best"
            shown = words(best.row) if best else words(tuned.row_of(one))
            times = (f"{one['ms']:.3f}", f"{best.ms if best else one['ms']:.3f}")
            lines.append((key[0], key[1], str(key[2]), shown, *times, gain))
    head = ("kernel", "dtype", "D", "fastest row", "table's ms", "its ms", "gain")
    _print(console, "Rows", head, lines)
    lines = [
        ("training" if call.training else "forward", call.dtype, str(call.head_dim), f"{call.queries} x {call.keys}",
         call.mask or "none", f"{call.ms:.3f}", f"{call.built_in_ms:.3f}", f"{call.built_in_ms / call.ms - 1:+.0%}")
        for call in found.calls
    ]  # fmt: skip
    head = ("call", "dtype", "D", "queries x keys", "mask", "ms", "built-in's ms", "gain")
    if lines:
        _print(console, "Calls", head, lines)
    failed = sum(bool(one["failure"]) for one in contents["rows"])
    console.print(
        f"{len(contents['rows'])} rows timed, {failed} of them failed; {tuned.file_here()}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def rank(name: str, dtypes: list[str], head_dims: list[int], most: int) -> int:
    """Prints the rows of a family for 8x8 matrices in the order of the cost model, which knows no others."""
    console, family, lines = need("rich.console", "tune").Console(), FAMILIES[name], []
    for kernel in kernels(dtypes, [padded(head_dim) for head_dim in head_dims], family):
        rows = ranked(*kernel[:2], family, kernel.head_dim, most)
        if rows[0].tiles != "simdgroup":
            continue
        shares = {row: predicted(kernel.kind, row, kernel.dtype, family, kernel.head_dim) for row in rows}
        for row in sorted(rows, key=shares.get, reverse=True):
            place = "table" if row == rows[0] else ""
            lines.append(
                (kernel.kind.name, kernel.dtype, str(kernel.head_dim), words(row), f"{shares[row]:.2f}", place)
            )
    _print(console, f"Rows of {name} by the cost model", ("kernel", "dtype", "D", "row", "share of peak", ""), lines)
    return 0


def words(row: TileConfig) -> str:
    """A row in short: P x T x H, cached operands, rows of a simdgroup or stages of the pipeline."""
    last = f"{row.simdgroup_rows} rows" if row.tiles == "simdgroup" else f"{row.stages} stages"
    return f"{row.parallel}x{row.traversal}x{row.head} {''.join(row.cached) or '-'} {last}"


def _print(console, title: str, head: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    table = need("rich.table", "tune").Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name)
    for line in lines:
        table.add_row(*line)
    console.print(table)
