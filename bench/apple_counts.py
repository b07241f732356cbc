"""Counts what the kernels are made of on M1, without a Mac: python bench/apple_counts.py [--family apple9]

Needs an offline compiler for the M1 instruction set. The environment variable M1_COMPILER names it: a command that is
given a file of Metal text and the threads of a threadgroup, and prints its listings (apple_listing.py shows the form),
a line `AGX-DEMAND: N of M` with the 16-bit registers that are alive at most, and a line with `B bytes` of code.

apple_rows.csv: every row of a family's table at the largest head dimension that it serves, and at 64 and 128; lines
that are there already are renewed, with --lines all of the family, of rows that lost too. M3's kernels (apple9) are
compiled for M1 as well: what they are made of counts, and spills do not. apple_hot_code.csv: the instructions on a
whole block's path on M1, and their bytes at the kernel's mean length. apple_texts.csv: users' texts beside the built-in
option that computes the same.
"""

import argparse
import csv
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import mlx.core as mx
from apple_listing import Loop, UsualPath, every, loops_of, parse
from rich.progress import track

from mlx_flash import Score, Visible
from mlx_flash.explanations.explain import explain, inner_problem
from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels.config import FULL, MIXED, TileConfig
from mlx_flash.kernels.cost import LANES, reads_scores
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import candidates, lookup
from mlx_flash.kernels.plan import Plan, plan, plan_of
from mlx_flash.kernels.split_kv import decoding_config
from mlx_flash.problem.kinds import (
    BACKWARD_KEY_VALUE,
    BACKWARD_QUERY,
    DECODE,
    FORWARD,
    KEPT_KINDS,
    KernelKind,
)

RESULTS = Path(__file__).parent / "results"
COMPILER = "M1_COMPILER"
KINDS = (FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE, *KEPT_KINDS, DECODE)
DTYPES = {MIXED: "float16", FULL: "float32"}
COMMON, LAST = (64, 128), (256, 320, 384)  # head dimensions that models have, and of the last row, which has no largest
MOST_KEPT = 256  # columns up to which P and dS are kept
HEADS, LENGTH, M1 = 8, 1024, "apple7"
# Cycles of a scheduler (cost.py has the sources): what an instruction of a class takes besides products. Waits and
# moves are the offline compiler's more than Apple's, and count nothing.
SLOTS = {"exp2": 4, "shuffle": 2, "wait": 0, "move": 0}
# The same function of scores as a built-in option and as a user's text
TEXTS = {
    "softcap": (dict(softcap=30.0), dict(score=Score("c * tanh(s / c)", c=30.0))),
    "alibi": (
        dict(alibi_slopes=mx.ones(HEADS)),
        dict(score=Score("s - slope[h] * abs(q - k)", slope=mx.ones(HEADS))),
    ),
    "window": (dict(window=(255, 0)), dict(visible=Visible("k <= q && q - k <= w", w=255))),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel at one head dimension and row. `plan`, `problem`: as the package makes them."""

    plan: Plan
    problem: object
    row: TileConfig
    head_dim: int
    dtype: str

    @property
    def kind(self) -> KernelKind:
        return self.plan.kind

    def products(self) -> list[tuple[int, bool]]:
        """The products of a block in order: their columns, and whether registers keep the simdgroup's own factor."""
        names = {
            FORWARD: "Q O", DECODE: "Q O", BACKWARD_QUERY: "Q dO dQ", BACKWARD_KEY_VALUE: "K dV V dK",
        }  # fmt: skip
        own = names.get(self.kind.table, " ".join(self.kind.cacheable))
        return [(self.head_dim, name in self.row.cached) for name in own.split()]

    def matmuls(self) -> int:
        """8x8x8 products of one simdgroup in one visit of a block."""
        fragments = self.row.simdgroup_rows // 8 * (self.row.traversal // 8)
        return sum(fragments * (-(-columns // 8)) for columns, _ in self.products())

    def head_loops(self) -> list[int]:
        """Trips of the loops over head blocks that are not unrolled, in order."""
        block = self.row.head_block(self.head_dim)
        return [columns // block for columns, kept in self.products() if not kept and columns // block > 1]


def compiler() -> list[str]:
    """The offline compiler's command. SystemExit with a sentence if there is none."""
    command = shlex.split(os.environ.get(COMPILER, ""))
    if not command:
        raise SystemExit(
            f"No offline compiler: set {COMPILER} to a command that takes a file of Metal text and a number of threads,"
            " and prints the M1 instructions of its kernel. The head of bench/apple_counts.py says what it must print."
        )
    return command


def listing_of(text: str, threads: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.metal"
        file.write_text(text, encoding="ascii")
        done = subprocess.run([*compiler(), str(file), str(threads)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{COMPILER} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def whole_blocks(code: dict, kernel: Kernel) -> tuple[Counter, Counter]:
    """Instructions by class of one visit of a whole block, and the same with each inner loop taken once."""
    path, loops = UsualPath(code), list(every(loops_of(code)))
    for loop in loops:
        inner = list(every(loop.inner))
        for one in inner:
            one.trips = 1
        once = path.counts(loop)
        passed = [step for step, _ in path.steps(loop) if isinstance(step, Loop)]
        rolled = [one for one in passed if path.counts(one)["matmul"]]
        if len(rolled) != len(kernel.head_loops()):
            continue
        for one, trips in zip(rolled, kernel.head_loops()):
            one.trips = trips
        counts = path.counts(loop)
        if round(counts["matmul"]) == kernel.matmuls():
            return counts, once
    raise SystemExit(f"no loop of {kernel.kind} {kernel.row} has its {kernel.matmuls()} products: is the text another?")


def issue_model(kernel: Kernel, counts: Counter) -> float:
    """The share of the multipliers' peak if only issue slots count."""
    rows, kind = kernel.row.simdgroup_rows, kernel.kind
    recomputed = 0 if reads_scores(kind) else 5
    half = kind is FORWARD or not recomputed
    single = 1 if kernel.dtype == "float32" else 0 if half else 1 / kind.matmuls
    slots = sum(count * SLOTS.get(name, 1) for name, count in counts.items() if name != "matmul")
    useful = (kind.matmuls * kernel.head_dim + recomputed) * kernel.row.traversal * rows / LANES
    return useful / (slots + counts["matmul"] * (17 + single))


def facts_of(kernel: Kernel) -> dict:
    """What names a kernel in the files of results, with its family."""
    row = kernel.row
    return {
        "kind": kernel.kind.name, "dtype": kernel.dtype, "head_dim": kernel.head_dim, "parallel": row.parallel,
        "traversal": row.traversal, "head": row.head_block(kernel.head_dim), "cached": " ".join(row.cached),
        "simdgroup_rows": row.simdgroup_rows,
    }  # fmt: skip


def counted(kernel: Kernel, text: str) -> tuple[dict, dict]:
    """The lines of apple_rows.csv and apple_hot_code.csv."""
    printed = listing_of(text, kernel.row.threads)
    demand = max(int(found) for found in re.findall(r"AGX-DEMAND: (\d+) of \d+\n", printed))
    size, code = int(re.search(r"(\d+) bytes", printed)[1]), parse(printed)
    counts, once = whole_blocks(code, kernel)
    products, named = counts["matmul"], facts_of(kernel)
    line = {"family": kernel.plan.family.name} | named | {
        "registers": demand,
        "spilled_in_loop": round((counts["spill_load"] + counts["spill_store"]) / products, 3),
        "others": round((sum(counts.values()) - products) / products, 3),
        "reads": round((counts["tg_load"] + counts["dev_load"]) / products, 3),
        "code_bytes": size,
        "issue_model": "" if kernel.kind is DECODE else round(issue_model(kernel, counts), 4),
    }  # fmt: skip
    whole = sum(sum(block.counts.values()) for block in code.values())
    hot = sum(once.values())
    return line, named | {"hot_instructions": hot, "hot_bytes": round(hot * size / whole), "code_bytes": size}


def kernel_of(
    kind: KernelKind, head_dim: int, dtype: str, row: TileConfig | None = None, family: str = M1, **options
) -> Kernel:
    """`row`: instead of the table's."""
    length = 1 if kind is DECODE else LENGTH
    facts = dict(head_dim=head_dim, dtype=dtype, heads=HEADS, length=length, key_length=LENGTH, family=family)
    problem = inner_problem(explain(backend="metal", **facts, **options).problem)
    chosen = plan_of(kind, problem, FAMILIES[family])
    if row:
        rows = row.parallel if kind is DECODE else 0
        chosen = plan(kind, problem.signature, FAMILIES[family], rows, config=row)
    return Kernel(chosen, problem, chosen.config, head_dim, dtype)


def kernels_of_the_table(kinds: list[str], family: str) -> list[Kernel]:
    found = []
    for kind, precision in product((one for one in KINDS if one.name in kinds), (MIXED, FULL)):
        rows, least = candidates(kind, precision, FAMILIES[family]), 0
        for row in rows:
            if kind in KEPT_KINDS:
                heads = (min(row.max_head, MOST_KEPT),)
            else:
                heads = LAST if row is rows[-1] and kind is not DECODE else (row.max_head,)
            heads = sorted({*heads, *(head for head in COMMON if least < head <= row.max_head)})
            least = row.max_head
            own = [row]
            if kind is DECODE:  # threadgroups of all rows and of the fewest
                own = [decoding_config(row, rows, FAMILIES[family]) for rows in sorted({row.parallel, 8}, reverse=True)]
            found += [
                kernel_of(kind, head, DTYPES[precision], replace(one, max_head=head), family)
                for head in heads for one in own
            ]  # fmt: skip
    return found


def kernels_of_lines(kinds: list[str], family: str) -> list[Kernel]:
    """The kernels of the lines that apple_rows.csv has of a family."""
    with open(RESULTS / "apple_rows.csv", newline="") as opened:
        lines = [line for line in csv.DictReader(opened) if line["family"] == family and line["kind"] in kinds]
    known, found = {kind.name: kind for kind in KINDS}, []
    for line in lines:
        kind, head, dtype = known[line["kind"]], int(line["head_dim"]), line["dtype"]
        table_row = lookup(kind, dtype, FAMILIES[family], head)
        numbers = {name: int(line[name]) for name in ("parallel", "traversal", "head", "simdgroup_rows")}
        row = replace(table_row, max_head=head, cached=tuple(line["cached"].split()), **numbers)
        if kind is DECODE:  # the line does not say how many simdgroups split the keys
            row = replace(row, splits=decoding_config(row, row.parallel, FAMILIES[family]).splits)
        found.append(kernel_of(kind, head, dtype, row, family))
    return found


def renew(file: Path, lines: list[dict]) -> None:
    """Writes `lines` in the place of those with the same kernel and row, and after the others."""
    with open(file, newline="") as opened:
        reader = csv.DictReader(opened)
        names, kept = reader.fieldnames, list(reader)
    own = [name for name in names if name in ("family", *FACTS)]
    known = {tuple(str(line[name]) for name in own): line for line in [*kept, *lines]}
    order = [kind.name for kind in KINDS]
    every_line = sorted(
        known.values(),
        key=lambda line: (line.get("family", ""), order.index(line["kind"]), line["dtype"], int(line["head_dim"])),
    )
    with open(file, "w", newline="") as opened:
        writer = csv.DictWriter(opened, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(every_line)


FACTS = ("kind", "dtype", "head_dim", "parallel", "traversal", "head", "cached", "simdgroup_rows")


def kernels_at(kinds: list[str], head_dims: list[int], family: str) -> list[Kernel]:
    """The kernels that serve these head dimensions."""
    found = product((kind for kind in KINDS if kind.name in kinds), DTYPES.values(), head_dims)
    wanted = (one for one in found if one[0] not in KEPT_KINDS or one[2] <= MOST_KEPT)
    return [kernel_of(kind, head, dtype, family=family) for kind, dtype, head in wanted]


def count_rows(kernels: list[Kernel]) -> None:
    for kernel in track(kernels, "Rows"):
        line, hot = counted(kernel, generated_text(kernel.plan, kernel.problem))
        renew(RESULTS / "apple_rows.csv", [line])
        if kernel.plan.family.name == M1:
            renew(RESULTS / "apple_hot_code.csv", [hot])


def given(kernel: Kernel) -> dict:
    """Operands of the options in TEXTS by their names in the kernel: shapes and types matter, not what they hold."""
    blocks = mx.zeros((1, HEADS, LENGTH // 64, LENGTH // 64), mx.int32)
    every_operand = {
        "softcap": 30.0, "window": (255, 0), "slopes": mx.zeros(HEADS), "formula_data": mx.zeros(16, mx.int32),
        "block_map": blocks, "block_lists": blocks, "block_counts": blocks[..., 0],
    }  # fmt: skip
    return {name: value for name, value in every_operand.items() if name in kernel.plan.kernel.inputs}


def count_texts() -> None:
    """Instructions of a visit, products included, of a text over those of the built-in option."""
    with open(RESULTS / "apple_texts.csv", "w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["option", "kind", "dtype", "head_dim", "built_in", "text", "ratio"])
        for name, both in track(TEXTS.items(), "Texts"):
            for kind in (FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE):
                found = []
                for options in both:
                    kernel = kernel_of(kind, 64, "float16", **options)
                    printed = listing_of(generated_text(kernel.plan, kernel.problem, given(kernel)), kernel.row.threads)
                    found.append(round(sum(whole_blocks(parse(printed), kernel)[0].values())))
                writer.writerow([name, kind.name, "float16", 64, *found, round(found[1] / found[0], 3)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=[kind.name for kind in KINDS], help="kernels whose rows to count")
    parser.add_argument("--head-dims", nargs="*", type=int, help="count the rows that serve these, and no others")
    parser.add_argument("--family", choices=("apple7", "apple9"), default=M1, help="whose rows (default: apple7, M1)")
    parser.add_argument("--lines", action="store_true", help="rows that apple_rows.csv has, in place of the table's")
    parser.add_argument("--texts", action="store_true", help="users' texts beside built-in options, and no rows")
    chosen = parser.parse_args()
    compiler()
    if chosen.texts:
        count_texts()
    elif chosen.head_dims:
        count_rows(kernels_at(chosen.kinds, chosen.head_dims, chosen.family))
    else:
        kernels = kernels_of_lines if chosen.lines else kernels_of_the_table
        count_rows(kernels(chosen.kinds, chosen.family))
    return 0


if __name__ == "__main__":
    sys.exit(main())
