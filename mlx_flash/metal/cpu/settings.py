"""How strictly and in which order kernels run: the mode and the schedule."""

import os
from contextlib import contextmanager
from contextvars import ContextVar

from ..frontend.language import VERSIONS

MODES = ("check", "fast")
# After this many loop iterations and, in mode "check", memory accesses of one threadgroup, a kernel counts as endless.
STEP_LIMIT = 1 << 31
# MLX compiles with 3.1 on macOS 14, with 3.2 on 15, with 4.0 on 26 and with 4.1 on 27.
LANGUAGE = "3.1"
SCHEDULES = ("forward", "reversed", "random")
# How elements of cooperative tensors are distributed over lanes: as on M5, or in a way of no known GPU.
TENSOR_LAYOUTS = ("m5", "opaque")
# How the tensor unit reduces the mantissa of float factors to 10 bits in a relaxed product.
TENSOR_ROUNDINGS = ("nearest", "truncated")


def _from_environment() -> str:
    chosen = os.environ.get("MLX_FLASH_SIMULATOR", "check")
    if chosen not in MODES:
        raise ValueError(f"MLX_FLASH_SIMULATOR must be one of {', '.join(MODES)}, not {chosen!r}.")
    return chosen


_mode: ContextVar[str | None] = ContextVar("mode", default=None)
_language: ContextVar[str | None] = ContextVar("language", default=None)
_step_limit: ContextVar[int] = ContextVar("step_limit", default=STEP_LIMIT)
_tensor_unit: ContextVar[tuple[str, str] | None] = ContextVar("tensor_unit", default=None)
_schedule: ContextVar[tuple[str, int]] = ContextVar("schedule", default=("forward", 0))


@contextmanager
def mode(name: str, step_limit: int = STEP_LIMIT):
    """Runs kernels in mode "check" (every access is checked) or "fast" (no access is) inside the block.

    step_limit: loop iterations, and checked accesses, of one threadgroup before its kernel is reported as endless.
    """
    if not isinstance(name, str) or name not in MODES:
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
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {name!r}.")
    token = _schedule.set((name, seed))
    try:
        yield
    finally:
        _schedule.reset(token)


@contextmanager
def tensor_unit(layout: str = "m5", rounding: str = "nearest"):
    """Chooses the unit behind mpp::tensor_ops inside the block.

    layout: how its operands are distributed over lanes, "m5" or "opaque". "opaque" is no GPU's layout: kernels that
        rely on one, instead of asking get_multidimensional_index, fail on it.
    rounding: how the float factors of relaxed products lose their low mantissa bits, "nearest" or "truncated".
    """
    token = _tensor_unit.set(
        (_one_of("layout", layout, TENSOR_LAYOUTS), _one_of("rounding", rounding, TENSOR_ROUNDINGS))
    )
    try:
        yield
    finally:
        _tensor_unit.reset(token)


def _one_of(what: str, value: str, values: tuple[str, ...]) -> str:
    if value not in values:
        raise ValueError(f"{what} must be one of {', '.join(values)}, not {value!r}.")
    return value


@contextmanager
def language(version: str):
    """Compiles kernels as Metal 3.0, 3.1 (which is the default), 3.2, 4.0 or 4.1 inside the block."""
    token = _language.set(_checked_language(version))
    try:
        yield
    finally:
        _language.reset(token)


def _checked_language(version: str) -> str:
    if not isinstance(version, str) or version not in VERSIONS:
        raise ValueError(f"The language must be one of Metal {', '.join(VERSIONS)}, not {version!r}.")
    return version


def current_language() -> str:
    """The current version: the innermost block's, else MLX_FLASH_METAL_LANGUAGE's, else 3.1."""
    return _language.get() or _checked_language(os.environ.get("MLX_FLASH_METAL_LANGUAGE", LANGUAGE))


def current_mode() -> str:
    """The current mode: the innermost block's, else MLX_FLASH_SIMULATOR's, else "check"."""
    return _mode.get() or _from_environment()


def current_step_limit() -> int:
    """The step limit of the innermost block, or the default one."""
    return _step_limit.get()


def current_schedule() -> tuple[int, int]:
    """(number of the current schedule, seed)."""
    name, seed = _schedule.get()
    return SCHEDULES.index(name), seed


def current_tensor_unit() -> tuple[int, int]:
    """(number of the layout, number of the rounding): the innermost block's, else MLX_FLASH_TENSOR_LAYOUT's and
    "nearest"."""
    layout, rounding = _tensor_unit.get() or (os.environ.get("MLX_FLASH_TENSOR_LAYOUT", "m5"), "nearest")
    return TENSOR_LAYOUTS.index(_one_of("MLX_FLASH_TENSOR_LAYOUT", layout, TENSOR_LAYOUTS)), TENSOR_ROUNDINGS.index(
        rounding
    )
