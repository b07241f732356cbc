"""Backends that a test puts in the place of the current one, and a record of the kernels that they ran."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx

from mlx_flash import backends
from mlx_flash.backends import Backend


class Run(NamedTuple):
    """One kernel that a backend ran, with its lazy outputs."""

    kind: object
    plan: object
    problem: object
    outputs: list[mx.array]


@contextmanager
def chosen(backend: Backend) -> Iterator[Backend]:
    """Inside the block, in this thread, attention runs on `backend`, as with use_backend(name)."""
    token = backends._choices.set((*backends._choices.get(), (None, backend, True)))
    try:
        yield backend
    finally:
        backends._choices.reset(token)


@contextmanager
def watched(backend: Backend | None = None, run: Callable | None = None, **capabilities) -> Iterator[list[Run]]:
    """Inside the block attention runs on a copy of `backend` (default: the current one); yields the list of its runs.

    run: replaces the backend's method. capabilities: fields of Backend to change.
    """
    plain, ran = backend or backends.current_backend(), []

    def watching(kind, plan, problem, inputs, stream):
        ran.append(Run(kind, plan, problem, []))
        outputs = (run or plain.run)(kind, plan, problem, inputs, stream)
        ran[-1].outputs.extend(outputs)
        return outputs

    with chosen(replace(plain, run=watching, **capabilities)):
        yield ran


def kinds(ran: list[Run]) -> list[str]:
    """The names of the kernels that ran, in order."""
    return [one.kind.name for one in ran]
