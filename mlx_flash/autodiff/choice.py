"""Which kernel serves, where one may have failed its test on this machine."""

from __future__ import annotations

from typing import NamedTuple

from ..backends import Backend, backend
from ..common.errors import UnsupportedProblem
from ..kernels.plan import Plan, plan_of
from ..kernels.split_kv import decodes
from ..problem.kinds import COMBINE, DECODE, FORWARD, KernelKind
from ..problem.problem import Problem


class Choice(NamedTuple):
    """`plan`: None on the reference. `refused`: why it, or the forward kernel in decoding, takes the place of a kernel
    that failed its test; "" if none did."""

    kind: KernelKind
    backend: Backend
    plan: Plan | None
    refused: str = ""


def choose(kind: KernelKind, problem: Problem, own: Backend) -> Choice:
    """The kernel that serves a call on the backend `own`: decoding's where it can, which gives way to the forward
    kernel, and every kernel to the reference, where `own` guards its kernels and one of them failed.

    Raises UnsupportedProblem for a kernel that failed on a backend that was chosen by name.
    """
    if own.family is None:
        return Choice(kind, own, None)
    kinds = [DECODE, FORWARD] if kind is FORWARD and own.decodes and decodes(problem) else [kind]
    refused = ""
    for one in kinds:
        plan = plan_of(one, problem, own.family)
        reason = _refusal(plan, problem, own)
        if not reason:
            return Choice(one, own, plan, refused)
        refused = refused or reason
    if not own.falls_back:
        raise UnsupportedProblem(
            f'[mlx_flash] backend "{own.name}": kernel {plan.kernel.name} failed its test on this machine: {reason}. '
            'Name no backend, or "reference".'
        )
    return Choice(kind, backend("reference"), None, refused)


def _refusal(plan: Plan, problem: Problem, own: Backend) -> str:
    """Why a kernel, or the one that joins its parts, must not be used; "" if it may be."""
    if own.guard is None:
        return ""
    plans = [plan, plan_of(COMBINE, problem, own.family)] if plan.kind is DECODE else [plan]
    return next((verdict.reason for verdict in map(own.guard, plans) if not verdict.ok), "")
