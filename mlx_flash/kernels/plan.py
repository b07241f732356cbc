"""How one step of one problem runs on one GPU family: its table row, Metal text and launch, each made when asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd

from ..problem.kinds import BACKWARD_KEY, BACKWARD_KEY_VALUE, BACKWARD_VALUE, DECODE, Step
from ..problem.problem import Problem
from .apple import Row, apart, lookup, max_threads, precision_of
from .devices import Family
from .launch import Launch, launch
from .nvidia import joint_rows
from .source import Kernel, build
from .split_kv import packed_rows, part_count, part_length


@dataclass(frozen=True)
class Plan:
    """`problem`: head dimensions already multiples of 8. `family`: None on a backend that runs no kernels."""

    step: Step
    problem: Problem
    family: Family | None

    @property
    def head_dim(self) -> int:
        """The dimension that picks the row: the larger of q's and v's."""
        return max(self.problem.head_dim, self.problem.value_dim)

    @cached_property
    def machine(self) -> Family:
        return machine(self.problem, self.family)

    @cached_property
    def table_row(self) -> Row:
        return lookup(self.step, self.problem.dtype, self.machine, self.head_dim)

    @cached_property
    def row(self) -> Row:
        """The table's, as the problem needs it: a threadgroup's rows lie in one block of a block mask."""
        if self.step is DECODE:
            return self.table_row.fitted(packed_rows(self.problem))
        block = self.problem.options.block
        return replace(self.table_row, parallel=gcd(self.table_row.parallel, block)) if block else self.table_row

    @cached_property
    def parts(self) -> int:
        """Of the keys; several in decoding only."""
        return part_count(self.problem, self.row, self.family) if self.step is DECODE else 1

    @property
    def packing(self) -> tuple[int, int, int]:
        """What the decoding kernel is told: queries, keys of a part, parts."""
        return self.problem.query_length, part_length(self.problem, self.row, self.family), self.parts

    @cached_property
    def max_threads(self) -> int | None:
        return max_threads(self.step, self.row, precision_of(self.problem.dtype), self.family, self.head_dim)

    @cached_property
    def kernel(self) -> Kernel:
        problem = self.problem
        return build(
            self.step, self.row, self.machine, problem.dtype, problem.head_dim, problem.value_dim, problem.features,
            self.max_threads,
        )  # fmt: skip

    @cached_property
    def launch(self) -> Launch:
        return launch(self.step, self.row, self.kernel, self.problem, self.parts)


@lru_cache(maxsize=1024)
def plan(step: Step, problem: Problem, family: Family | None) -> Plan:
    return Plan(step, problem, family)


def machine(problem: Problem, family: Family | None) -> Family | None:
    """The family as the problem uses it. Quantized operands are dequantized in threadgroup memory, everywhere; rows
    that multiply together have to lie in one block of a block mask, else Hopper does as the GPUs before it."""
    if family is None:
        return None
    if problem.options.quantization is not None:
        return replace(family, staged=True, tensor="")
    block = problem.options.block
    return replace(family, tensor="sm80") if block and block % joint_rows(family) else family


def key_value_steps(problem: Problem, family: Family | None) -> tuple[Step, ...]:
    """The steps that give dK and dV: one, or one each where the family's rows have them apart."""
    head_dim, used = max(problem.head_dim, problem.value_dim), machine(problem, family)
    split = used is not None and apart(problem.dtype, used, head_dim)
    return (BACKWARD_KEY, BACKWARD_VALUE) if split else (BACKWARD_KEY_VALUE,)
