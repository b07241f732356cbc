"""Pictures of bench/results, drawn from committed data alone: python bench/pictures.py

apple_ginstrs.png: throughput over the head dimension on an M1 Max, as published for metal-flash-attention and as the
cost model predicts it for our rows from counted instructions; nothing of it ran on a Mac.
apple_backward.png: the same for dQ, dK and dV together, by seven products and by five.
apple_instructions.png: instructions beside each 8x8x8 product on the M1 instruction set, before and after.
scaling.png: memory and work over the length, errors over the magnitude of q and k; planned, counted and simulated.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mlx_flash.kernels.config import TileConfig, precision_of
from mlx_flash.kernels.cost import CHIPS, LANES, Work, ginstrs, own_work, pass_cycles, reads_scores
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.lookup import lookup
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, FORWARD, KEPT_KINDS

RESULTS = Path(__file__).parent / "results"
KINDS = {kind.name: kind for kind in (FORWARD, BACKWARD_QUERY, BACKWARD_KEY_VALUE)}
COUNTED = KINDS | {kind.name: kind for kind in KEPT_KINDS}
TITLES = {"forward": "forward", "backward_query": "dQ", "backward_key_value": "dK, dV"}
CHIP = CHIPS["M1 Max"]
HEAD_DIMS = (8, 16, 32, 64, 128, 256, 384)


def read(name: str) -> list[dict]:
    with open(RESULTS / name, newline="") as file:
        return list(csv.DictReader(file))


def of_table(name: str) -> list[dict]:
    """The counted lines of apple7's kernels as the table has them: the file keeps other candidates too."""
    found = []
    for line in read(name):
        kind, head_dim = COUNTED.get(line["kind"]), int(line["head_dim"])
        if line["family"] == "apple7" and kind and line["others"]:
            row = lookup(kind, line["dtype"], FAMILIES["apple7"], head_dim)
            blocks = row.parallel, row.traversal, min(row.head, head_dim), " ".join(row.cached), row.simdgroup_rows
            names = ("parallel", "traversal", "head", "cached", "simdgroup_rows")
            if [str(one) for one in blocks] == [line[name] for name in names]:
                found.append(line)
    return found


def counted(kind, dtype: str) -> dict[int, tuple[TileConfig, Work]]:
    """The table's row at each head dimension, and its work with the issue slots that were counted."""
    found = {}
    for line in of_table("apple_rows.csv"):
        if (line["kind"], line["dtype"]) != (kind.name, dtype) or not line["issue_model"]:
            continue
        head_dim = int(line["head_dim"])
        blocks = (int(line[name]) for name in ("head_dim", "parallel", "traversal", "head"))
        row = TileConfig(*blocks, tuple(line["cached"].split()), int(line["simdgroup_rows"]))
        work = own_work(kind, row, precision_of(dtype), head_dim)
        useful = (kind.matmuls * head_dim + 5 * (not reads_scores(kind))) * row.simdgroup_rows * row.traversal / LANES
        issued = useful / float(line["issue_model"])  # cycles
        slots = issued - work.products * CHIP.half - work.singles * (CHIP.single - CHIP.half)
        found[head_dim] = row, replace(work, slots=slots)
    return dict(sorted(found.items()))


def predicted(kind, dtype: str) -> dict[int, float]:
    """GINSTRS at each counted head dimension, by the cost model."""
    found = counted(kind, dtype)
    return {head_dim: ginstrs(kind, row, head_dim, work, CHIP) for head_dim, (row, work) in found.items()}


def passes(kinds, dtype: str, overlaps: bool = True) -> dict[int, float]:
    """GINSTRS of kernels that compute dQ, dK and dV, with the work of seven products whatever theirs is."""
    works = [counted(kind, dtype) for kind in kinds]
    common = sorted(set.intersection(*map(set, works)))
    times = {head_dim: pass_cycles([own[head_dim] for own in works], CHIP, overlaps) for head_dim in common}
    return {head_dim: (7 * head_dim + 10) / LANES / time * CHIP.peak for head_dim, time in times.items()}


def published(kind, precision: str) -> dict[int, float]:
    lines = [
        line for line in read("mfa_published_ginstrs.csv") if line["chip"] == "M1 Max" and line["table"] == "tuned"
    ]
    return {int(line["head_dim"]): float(line[kind.name]) for line in lines if line["precision"] == precision}


def head_dims(axis) -> None:
    """Head dimensions on a logarithmic axis: most of them are small."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(HEAD_DIMS, list(map(str, HEAD_DIMS)))
    axis.set_xlabel("head dimension (logarithmic)")
    axis.grid(alpha=0.3)


def percent(axis) -> None:
    """Beside GINSTRS their share of the chip's peak."""
    shares = axis.secondary_yaxis("right", functions=(lambda y: y / CHIP.peak * 100, lambda y: y * CHIP.peak / 100))
    shares.set_ylabel("% of the peak")


def draw_throughput() -> None:
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), sharey=True, layout="constrained")
    for row, (dtype, precision) in zip(axes, (("float16", "mixed"), ("float32", "fp32"))):
        for axis, kind in zip(row, KINDS.values()):
            theirs, ours = published(kind, precision), predicted(kind, dtype)
            axis.axhline(CHIP.peak, color="black", lw=1, label="roofline: every cycle multiplies")
            limit = CHIP.peak * 16 / (17 if dtype == "float16" else 18)
            axis.axhline(limit, color="grey", lw=1, ls=":", label="products that never wait")
            axis.plot(theirs.keys(), theirs.values(), "o-", ms=4, label="metal-flash-attention, published")
            axis.plot(ours.keys(), ours.values(), "s--", ms=5, label="this project, predicted from counts")
            axis.set(title=f"{TITLES[kind.name]}, {dtype}", ylim=(0.38 * CHIP.peak, 1.02 * CHIP.peak))
            head_dims(axis)
        row[0].set_ylabel(f"GINSTRS, {CHIP.name}")
        percent(row[-1])
    axes[0][0].legend(fontsize=9, loc="lower right")
    figure.suptitle(f"Published and predicted throughput on an {CHIP.name}; none of ours was measured there")
    figure.savefig(RESULTS / "apple_ginstrs.png", dpi=110)


def draw_backward() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), sharey=True, layout="constrained")
    seven = BACKWARD_QUERY, BACKWARD_KEY_VALUE
    for axis, (dtype, precision) in zip(axes, (("float16", "mixed"), ("float32", "fp32"))):
        both = [published(kind, precision) for kind in seven]
        theirs = {d: (7 * d + 10) / ((3 * d + 5) / both[0][d] + (4 * d + 5) / both[1][d]) for d in both[0]}
        axis.plot(theirs.keys(), theirs.values(), "o-", ms=3, label="metal-flash-attention, published")
        lines = (
            ("seven products, predicted from counts", passes(seven, dtype), "s--"),
            ("five, if P and dS move during products", passes(KEPT_KINDS, dtype), "^--"),
            ("five, if nothing overlaps", passes(KEPT_KINDS, dtype, overlaps=False), "v:"),
        )
        for label, ours, style in lines:
            axis.plot(ours.keys(), ours.values(), style, ms=5, label=label)
        limit = CHIP.peak * 16 / (17 if dtype == "float16" else 18)
        axis.axhline(limit, color="grey", lw=1, label="seven products that never wait")
        axis.set(title=f"dQ, dK and dV, {dtype}", ylim=(0.38 * CHIP.peak, 1.3 * CHIP.peak))
        head_dims(axis)
    figure.suptitle(f"Published and predicted throughput of gradients on an {CHIP.name}; ours was not measured there")
    axes[0].set_ylabel("GINSTRS of seven products, M1 Max")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / "apple_backward.png", dpi=110)


def draw_instructions() -> None:
    cases = [(kind, head_dim) for kind in KINDS for head_dim in (64, 128)]
    before, after = {}, {}
    for found, lines in ((before, read("apple_rows_before.csv")), (after, of_table("apple_rows.csv"))):
        for line in lines:
            if line["dtype"] == "float16" and line.get("family", "apple7") == "apple7" and line["others"]:
                case = line["kind"], int(line["head_dim"])
                found[case] = min(found.get(case, 99), float(line["others"]))
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    places = range(len(cases))
    for shift, found, label in ((-0.2, before, "before, commit 37f7fca"), (0.2, after, "now")):
        bars = axis.bar([x + shift for x in places], [found[case] for case in cases], 0.4, label=label)
        axis.bar_label(bars, fmt="%.1f", fontsize=9)
    axis.set_xticks(list(places), [f"{TITLES[kind]}\nD = {head_dim}" for kind, head_dim in cases])
    axis.set(title="M1 instruction set, float16, whole blocks (counted)")
    axis.set_ylabel("instructions beside each 8x8x8 product")
    axis.legend()
    figure.savefig(RESULTS / "apple_instructions.png", dpi=110)


def draw_scaling() -> None:
    told = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 3, figsize=(17, 5.5), layout="constrained")
    draw_memory(axes[0], told)
    for number, line in enumerate(told["work"]["1024"]):
        style = "s--" if "segments" in line else "o-"  # over the line of the window
        axes[1].plot(*points(told["work"], line), style, ms=4 + number, mfc="none", label=line)
    axes[1].set(title="work: 8x8 tiles of scores that the forward kernel of an M1 visits", xlabel="queries and keys")
    for line in told["error"]["1"]:
        magnitudes, errors = points(told["error"], line)
        axes[2].plot([m * m for m in magnitudes], errors, "s--" if "unfused" in line else "o-", ms=4, label=line)
    axes[2].set(title="largest error in float16, of the largest magnitude", xlabel="standard deviation of the logits")
    for axis in axes:
        axis.set(xscale="log", yscale="log")
        places = list(axis.lines[0].get_xdata())
        axis.set_xticks(places, [str(place) if axis is axes[2] else f"{place // 1024}k" for place in places])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    figure.savefig(RESULTS / "scaling.png", dpi=110)


def points(found: dict[str, dict], line: str, unit: float = 1) -> tuple[list[int], list[float]]:
    return list(map(int, found)), [one[line] * unit for one in found.values()]


def draw_memory(axis, told: dict) -> None:
    """What operations without fusion keep, what ours and the built-in plan, and what one GPU measured of both."""
    for line in told["memory"]["1024"]:
        own = line.startswith("forward")
        style = "s--" if "unfused" in line else "o-" if own else "^:"
        axis.plot(*points(told["memory"], line, 2**-20), style, ms=4, label=f"mlx_flash, {line}" if own else line)
    measured = json.loads((RESULTS / "cuda_memory.json").read_text(encoding="utf-8"))["memory"]
    for line, mark in (("mlx_flash, forward and backward", "x"), ("built-in, forward and backward", "+")):
        axis.plot(*points(measured, line, 2**-20), mark, ms=9, label=f"{line}, measured on an H200")
    axis.set(title=f"MiB beyond the operands, {told['heads']} heads of {told['head_dim']}, float16")
    axis.set(xlabel="queries and keys", ylim=(0.5, 2e8))  # with room for the legend


if __name__ == "__main__":
    draw_throughput()
    draw_backward()
    draw_instructions()
    draw_scaling()
