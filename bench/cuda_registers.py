"""Registers, spills and occupancy of every table row for tensor cores, from NVIDIA's assembler; no GPU is needed:

    python bench/cuda_registers.py PTXAS [--out FILE] [--only REGEX] [--processes N]

PTXAS: the assembler's path (pip install nvidia-cuda-nvcc). Rows of sm80 are assembled for compute capability 8.0, 8.6,
8.9 and 12.0, those of sm90 for 9.0; each at its largest head dimension, dense and causal, and decoding with few rows of
a threadgroup, where simdgroups may share blocks, and with the most. `groups`: threadgroups that a core holds by
registers, threads and threadgroup memory. A kernel of Hopper with producer warps of its own moves registers from them
to its consumers: `registers` are those of the launch, which are the same for all threads. Rows for quantized keys and
values are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from mlx_flash.explanations.metal_text import assembler_text
from mlx_flash.kernels.config import FULL
from mlx_flash.kernels.devices import DEQUANTIZING, FAMILIES
from mlx_flash.kernels.nvidia import TENSOR_TABLE
from mlx_flash.kernels.plan import plan
from mlx_flash.kernels.tile_layers import LAYERS, tensor_bytes
from mlx_flash.problem.kinds import BACKWARD_KINDS, DECODE, FORWARD, SCORES, KernelKind
from mlx_flash.problem.problem import Problem, Signature
from mlx_flash.problem.variants import Variants

RESULTS = Path(__file__).parent / "results" / "cuda_registers.json"
KINDS = (FORWARD, DECODE, *BACKWARD_KINDS)
FEW_ROWS = 16  # of a threadgroup in decoding: one simdgroup's
REGISTERS, REGISTER_STEP, MOST_GROUPS = 65536, 8, 32  # of a core; of a thread; of a core


class Core(NamedTuple):
    """What a core of a GPU has. `reserved`: bytes of threadgroup memory that the system keeps for each threadgroup."""

    threads: int
    threadgroup_bytes: int
    reserved: int = 1024


GPUS = {
    "sm80": {"sm_80": Core(2048, 164 << 10), "sm_86": Core(1536, 100 << 10), "sm_89": Core(1536, 100 << 10),
             "sm_120": Core(1536, 100 << 10)},
    "sm90": {"sm_90a": Core(2048, 228 << 10)},
}  # fmt: skip


class Job(NamedTuple):
    kind: KernelKind
    dtype: str
    family: str
    row: object
    causal: bool
    rows: int  # of a threadgroup in decoding, 0 for other kinds

    @property
    def name(self) -> str:
        order = "causal" if self.causal else "dense"
        rows = f" {self.rows} rows" if self.rows else ""
        return f"{self.kind.name} {self.dtype} {self.family} D={self.row.max_head} {order}{rows}"


def jobs() -> list[Job]:
    return [
        Job(kind, "float32" if precision == FULL else "bfloat16", family, row, causal, owned)
        for (listed, precision, family), rows in TENSOR_TABLE.items()
        if family != DEQUANTIZING
        for row in rows
        for kind in KINDS
        if kind.table is listed and (LAYERS[row.tiles].kept or SCORES.isdisjoint(kind.outputs))
        for causal in (False, True)
        for owned in ((FEW_ROWS, row.parallel) if kind is DECODE else (0,))
    ]


def groups(core: Core, registers: int, threads: int, taken: int) -> int:
    """Threadgroups that a core holds at a time."""
    registers = -(-registers // REGISTER_STEP) * REGISTER_STEP
    return min(
        MOST_GROUPS, core.threads // threads, REGISTERS // (registers * threads),
        core.threadgroup_bytes // (taken + core.reserved),
    )  # fmt: skip


def assembled(ptxas: str, gpu: str, path: Path) -> tuple[int, int]:
    """Registers of a thread and the bytes that it spills."""
    command = [ptxas, "-v", f"-arch={gpu}", str(path), "-o", str(path.with_suffix("." + gpu))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill", said))
    return int(re.search(r"Used (\d+) registers", said)[1]), spilled


def measured(job: Job, ptxas: str) -> list[dict]:
    """A line for each GPU."""
    columns, queries = job.row.max_head, 1 if job.kind is DECODE else 4096
    signature = Signature(16, 16, columns, columns, job.dtype, 0.125, Variants(causal=job.causal))
    made = plan(job.kind, signature, FAMILIES[job.family], job.rows)
    taken = tensor_bytes(job.kind, made.config, columns, columns)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(assembler_text(made, Problem(signature, 1, queries, 4096, None), values=True))
        for gpu, core in GPUS[job.family].items():
            registers, spilled = assembled(ptxas, gpu, path)
            lines.append({
                "kernel": job.kind.name, "dtype": job.dtype, "D": columns, "causal": job.causal, "gpu": gpu,
                "threads": made.config.threads, "registers": registers, "spilled_bytes": spilled,
                "threadgroup_bytes": taken, "groups": groups(core, registers, made.config.threads, taken),
            })  # fmt: skip
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ptxas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default="", metavar="REGEX", help="jobs whose name matches")
    parser.add_argument("--processes", type=int, default=1, help="assemblers at a time")
    given = parser.parse_args()
    chosen = [job for job in jobs() if re.search(given.only, job.name)]
    lines = []
    with ThreadPoolExecutor(given.processes) as pool:
        for job, found in zip(chosen, pool.map(lambda job: measured(job, given.ptxas), chosen)):
            lines += found
            told = [f"{one['gpu']} {one['registers']}/{one['spilled_bytes']}/{one['groups']}" for one in found]
            Console(width=200).print(job.name, *told)
    spilling = sum(line["spilled_bytes"] > 0 for line in lines)
    given.out.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
    Console().print(f"{len(lines)} kernels, {spilling} of them spill")


if __name__ == "__main__":
    main()
