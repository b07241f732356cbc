"""Explanations as dataclasses that print themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.scalars import readable
from ..distributed.plan import SharingPlan
from ..kernels.devices import Family
from ..kernels.tile_layers import TENSOR_LAYERS
from ..problem.kinds import FORWARD
from ..problem.problem import Problem


@dataclass(frozen=True)
class KernelExplanation:
    """One kernel of a call. Sizes are in bytes.

    row, why: the table row, and the reason for it.
    blocks: rows that a threadgroup owns, rows that it traverses at a time, columns of a head block (P x T x H).
    grid: threadgroups along each axis.
    cached: operands that stay in registers.
    reread: operands that are read again in every traversal block, with tensor cores from threadgroup memory.
    paged: accumulators that are read and written in their float32 output buffer once per traversal block.
    traversed: operands that are streamed, through threadgroup memory if the kernel `uses_threadgroup_memory`.
    tiles: the tile layer: "simdgroup" for 8x8 matrices, "nax" for the neural accelerators of M5 and A19, one of
        TENSOR_LAYERS for NVIDIA's tensor cores.
    registers, live_bytes: estimates for one thread, registers of 16 bits; None where live bytes do not limit the row.
    max_threads: the value of the attribute max_total_threads_per_threadgroup, or None.
    extra_bytes: memory beyond the results in their own dtype.
    verdict: the result of the kernel's probe on this machine; "" on a backend without probes.
    """

    name: str
    kernel: str
    row: str
    why: str
    blocks: tuple[int, int, int]
    threads: int
    grid: tuple[int, ...]
    cached: tuple[str, ...]
    reread: tuple[str, ...]
    paged: tuple[str, ...]
    traversed: tuple[str, ...]
    uses_threadgroup_memory: bool
    tiles: str
    registers: int
    live_bytes: int | None
    threadgroup_bytes: int
    max_threads: int | None
    output_bytes: int
    extra_bytes: int
    verdict: str = ""

    def facts(self) -> list[tuple[str, str]]:
        """(label, value) of every fact, in the order in which they are printed."""
        path = "through threadgroup memory" if self.uses_threadgroup_memory else "direct"
        reread = _names(self.reread)
        if self.reread and self.tiles in TENSOR_LAYERS:
            reread += " in threadgroup memory"
        attribute = f"max_total_threads_per_threadgroup({self.max_threads})" if self.max_threads else "none"
        return [
            ("table row", self.row),
            ("why", self.why),
            ("matrix unit", self.tiles),
            ("blocks P x T x H", " x ".join(map(str, self.blocks))),
            ("threads", str(self.threads)),
            ("threadgroups", " x ".join(map(str, self.grid))),
            ("in registers", _names(self.cached)),
            ("re-read", reread),
            ("paged", _names(self.paged)),
            ("streamed", f"{_names(self.traversed)} {path}" if self.traversed else "none"),
            ("16-bit registers", f"about {self.registers}"),
            ("live bytes", "not limiting" if self.live_bytes is None else f"about {self.live_bytes}"),
            ("attribute", attribute),
            ("threadgroup bytes", str(self.threadgroup_bytes)),
            ("extra memory", readable(self.extra_bytes)),
            *([("test", self.verdict)] if self.verdict else []),
        ]


@dataclass(frozen=True)
class Explanation:
    """The backend and the kernels that a call would use.

    why: the reason for this backend and family.
    padding: the copies that head dimensions need which are not multiples of 8.
    forward: the kernel that computes the result, and why.
    kernels: in order; empty where none runs.
    residual_bytes: L and delta, kept for the gradients besides arguments and results.
    unfused_bytes: scores and probabilities [B, Hq, Lq, Lk], which unfused attention would hold.
    sharing: the cost of context parallelism, where `group_size` was given.
    """

    problem: Problem
    backend: str
    family: Family | None
    why: str
    padding: str
    forward: str
    kernels: tuple[KernelExplanation, ...]
    residual_bytes: int
    unfused_bytes: int
    sharing: SharingPlan | None = None

    def facts(self) -> list[tuple[str, str]]:
        """(label, value) of every fact about the whole call, in the order in which they are printed."""
        family = f"{self.family.name} ({self.family.chips})" if self.family else "none: plain mx operations"
        unfused = f"unfused, scores and probabilities: {readable(self.unfused_bytes)}"
        return [
            ("call", _describe(self.problem)),
            ("backend", self.backend),
            ("family", family),
            ("why", self.why),
            ("padding", self.padding),
            ("forward", self.forward),
            ("kept for gradients", f"L and delta, {readable(self.residual_bytes)}; {unfused}"),
            *(self.sharing.facts() if self.sharing else ()),
        ]

    def __str__(self):
        lines = _lines(self.facts(), "")
        for kernel in self.kernels:
            lines += [kernel.name, *_lines(kernel.facts(), "  ")]
        return "\n".join(lines)


def _names(operands: tuple[str, ...]) -> str:
    return ", ".join(operands) or "none"


def _lines(facts: list[tuple[str, str]], indent: str) -> list[str]:
    return [f"{indent}{label:<18} {value}" for label, value in facts]


def _describe(problem: Problem) -> str:
    query = [problem.batch, problem.query_heads, problem.query_length, problem.head_dim]
    key = [problem.batch, problem.key_heads, problem.key_length, problem.head_dim]
    value = [*key[:3], problem.value_dim]
    features = ", ".join(problem.variants.names(FORWARD))
    return f"q {query}, k {key}, v {value}, {problem.dtype}, {features}"
