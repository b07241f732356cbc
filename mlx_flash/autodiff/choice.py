"""The choice of the kernel that serves a call, where one may have failed its probe on this machine."""

from __future__ import annotations

from typing import NamedTuple

from ..backends import Backend, backend
from ..common.errors import UnsupportedProblem
from ..kernels.plan import Plan, plan_of
from ..kernels.split_kv import decodes
from ..problem.kinds import COMBINE, DECODE, FORWARD, KernelKind
from ..problem.problem import Problem


class Choice(NamedTuple):
    """The kernel that serves. `plan`: None on the reference backend. `refused`: why it takes the place of a kernel that
    failed its probe; "" where none failed."""

    kind: KernelKind
    backend: Backend
    plan: Plan | None
    refused: str = ""


def choose(kind: KernelKind, problem: Problem, own: Backend) -> Choice:
    """The kernel that serves a call on the backend `own`.

    Few queries take the decoding kernel. Where the backend guards its kernels, the forward kernel takes the place of a
    decoding kernel that failed, and the reference that of any other. Raises UnsupportedProblem instead where the
    backend was chosen by name.
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


def all_serve(kinds: tuple[KernelKind, ...], problem: Problem, own: Backend) -> bool:
    """Whether none of these kernels failed its probe. For kernels that read what others of them keep: in the place of
    one alone no other kernel could serve."""
    return not any(_refusal(plan_of(kind, problem, own.family), problem, own) for kind in kinds)


def _refusal(plan: Plan, problem: Problem, own: Backend) -> str:
    """Why a kernel must not be used, or in decoding the kernel that joins its parts; "" if both may be."""
    if own.guard is None:
        return ""
    plans = [plan, plan_of(COMBINE, problem, own.family)] if plan.kind is DECODE else [plan]
    return next((verdict.reason for verdict in map(own.guard, plans) if not verdict.ok), "")
