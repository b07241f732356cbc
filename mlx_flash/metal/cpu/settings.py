"""How strictly and in which order kernels run: the mode and the schedule."""

import os
from contextlib import contextmanager
from contextvars import ContextVar

from ..frontend.language import VERSIONS

MODES = ("check", "fast")
# Rounds of loops and, in mode "check", accesses of one threadgroup after which a kernel counts as one that never ends.
STEP_LIMIT = 1 << 31
# MLX compiles with 3.1 on macOS 14, with 3.2 on 15 and with 4.0 on 26.
LANGUAGE = "3.1"
SCHEDULES = ("forward", "reversed", "random")


def _from_environment() -> str:
    chosen = os.environ.get("MLX_FLASH_SIMULATOR", "check")
    if chosen not in MODES:
        raise ValueError(f"MLX_FLASH_SIMULATOR must be one of {', '.join(MODES)}, not {chosen!r}.")
    return chosen


_mode: ContextVar[str | None] = ContextVar("mode", default=None)
_language: ContextVar[str | None] = ContextVar("language", default=None)
_step_limit: ContextVar[int] = ContextVar("step_limit", default=STEP_LIMIT)
_schedule: ContextVar[tuple[str, int]] = ContextVar("schedule", default=("forward", 0))


@contextmanager
def mode(name: str, step_limit: int = STEP_LIMIT):
    """Runs kernels in mode "check" (every access is checked) or "fast" (none is) inside the block.

    step_limit: rounds of loops, and checked accesses, of one threadgroup before its kernel is reported as endless.
    """
    if name not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {name!r}.")
    if not 0 < step_limit < 1 << 63:
        raise ValueError(f"step_limit must be a positive number of 63 bits, not {step_limit!r}.")
    tokens = _mode.set(name), _step_limit.set(step_limit)
    try:
        yield
    finally:
        _mode.reset(tokens[0])
        _step_limit.reset(tokens[1])


@contextmanager
def schedule(name: str, seed: int = 0):
    """Runs lanes, simdgroups and threadgroups "forward", "reversed" or in a seeded "random" order inside the block."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {name!r}.")
    token = _schedule.set((name, seed))
    try:
        yield
    finally:
        _schedule.reset(token)


@contextmanager
def language(version: str):
    """Compiles kernels as Metal 3.0, 3.1 (which is the default), 3.2 or 4.0 inside the block."""
    token = _language.set(_checked_language(version))
    try:
        yield
    finally:
        _language.reset(token)


def _checked_language(version: str) -> str:
    if version not in VERSIONS:
        raise ValueError(f"The language must be one of Metal {', '.join(VERSIONS)}, not {version!r}.")
    return version


def current_language() -> str:
    """The version in force: the innermost block's, else MLX_FLASH_METAL_LANGUAGE's, else 3.1."""
    return _language.get() or _checked_language(os.environ.get("MLX_FLASH_METAL_LANGUAGE", LANGUAGE))


def current_mode() -> str:
    """The mode in force: the innermost block's, else MLX_FLASH_SIMULATOR's, else "check"."""
    return _mode.get() or _from_environment()


def current_step_limit() -> int:
    """The innermost block's."""
    return _step_limit.get()


def current_schedule() -> tuple[int, int]:
    """(number of the schedule, seed)."""
    name, seed = _schedule.get()
    return SCHEDULES.index(name), seed
