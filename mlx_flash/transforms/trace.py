"""The transformations of MLX that are tracing in this thread, as the wrappers report them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx


@dataclass(eq=False)
class Export:
    """A function that is being exported, traced as the only entry of a map.

    `entry`: a mapped array; None while the rules of that map run. `met`: whether it calls attention. `differentiated`:
    whether a call needed a gradient, and so left a stand-in.
    """

    entry: mx.array | None = None
    met: bool = False
    differentiated: bool = False


ASKING = 8  # gradients in a row without such a call, after which to ask costs more than it saves


class Alone:
    """A gradient that began where nothing else traced. `used`: whether a call relied on that."""

    def __init__(self):
        self.used = False


class Trace(threading.local):
    """State of the current trace, per thread.

    `batched`: an array that mx.vmap maps, or None outside of it. `export`: the export that is traced, or None.
    `gradients`: nested reverse-mode derivatives. `forward_mode`: nested mx.jvp. `beyond`: whether the built-in function
    answers for derivatives that attention does not have; `built_in`: whether it takes calls whose kernels failed.
    `kept`: whether a built-in function runs that one of ours called; calls from there are not counted. `situation`: a
    number for what decides who serves a call, so that calls can compare all of it at once.

    `alone`: the gradient that is computed, if nothing else traced when it began, else None. `asks`: how many
    gradients still find out whether they are one, since a call was met that is faster then.
    """

    def __init__(self):  # once in each thread, whose own attributes are found sooner than those of the class
        self.batched: mx.array | None = None
        self.export: Export | None = None
        self.gradients = self.forward_mode = self.situation = 0
        self.beyond = self.built_in = self.kept = False
        self.asks = 0
        self.alone: Alone | None = None

    @property
    def only_gradient(self) -> Alone | None:
        """The gradient that is computed, while it traces its function and no other transformation inside of it that the
        wrappers see; else None."""
        only = self.situation == GRADIENT and self.forward_mode == 0 and self.export is None
        return self.alone if only else None


MAPPED, KEPT, GRADIENT = 1, 2, 4  # what these facts add to the situation, the last one for each gradient
DECISIVE = ("gradients", "batched", "kept")
trace = Trace()
BUSY: deque[None] = deque()  # an element for each change of a situation that lasts; where it is empty, all are 0


def _change(facts: dict) -> None:
    vars(trace).update(facts)
    if not facts.keys().isdisjoint(DECISIVE):
        mapped = MAPPED * (trace.batched is not None)
        trace.situation = mapped + KEPT * trace.kept + GRADIENT * trace.gradients


@contextmanager
def changed(**facts) -> Iterator[None]:
    """Changes facts of the trace for a block."""
    before = {name: getattr(trace, name) for name in facts}
    decisive = not facts.keys().isdisjoint(DECISIVE)
    if decisive:
        BUSY.append(None)
    _change(facts)
    try:
        yield
    finally:
        _change(before)
        if decisive:
            BUSY.pop()


def mapped_array() -> mx.array | None:
    """An array that is certain to be mapped, where a call must leave a stand-in for the rule of a map; else None.

    In an export these are the calls that are differentiated, and all later ones, since their inputs may depend on a
    stand-in.
    """
    if trace.batched is not None:
        return trace.batched
    export = trace.export
    if export is None or export.entry is None:
        return None
    export.met = True
    if not (export.differentiated or trace.gradients):
        return None
    export.differentiated = True
    return export.entry


def unavailable(gradients: int = 1) -> str | None:
    """Why a function with this many derivatives cannot be differentiated as the current trace asks; None if it can."""
    if trace.forward_mode:
        return "a forward-mode derivative (mx.jvp)"
    if trace.gradients > gradients:
        return "a gradient of a gradient" if gradients else "a gradient"
    return None
