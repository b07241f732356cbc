"""One launch of a built kernel: the part that metal_kernel and MetalLibrary share."""

import ctypes
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from ..frontend.images import code
from ..frontend.lines import line_at
from . import buffers, settings
from .launch import Launch, Library, execute
from .profile import record
from .report import raise_reports, unwritten_outputs

_TAG = "[metal_kernel]"
_MAX_THREADS = 1024
THREADGROUP_BYTES = 32768  # of threadgroup memory, on every Apple GPU


class BuiltKernel:
    """A kernel that is compiled and loaded.

    text: the Metal text that reports quote. buffer_names, variable_names: the names of buffers and threadgroup
    variables in the text, by their numbers in a launch. with_lines: a function that builds the kernel again with a line
    table.
    """

    def __init__(
        self,
        name: str,
        text: str,
        path: Path,
        buffer_names: list[str],
        variable_names: list[str],
        with_lines: Callable[[], Path],
        max_threads: int = _MAX_THREADS,
    ):
        self.name, self.text, self.path, self.buffer_names = name, text, path, buffer_names
        self.variable_names, self.max_threads = variable_names, max_threads
        self.library, self._with_lines = Library(path), with_lines

    def line(self, number: int) -> str:
        """A line of the Metal text, by its number."""
        lines = self.text.splitlines()
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""

    def line_of(self, pc: int) -> int:
        """The line that an address of the loaded code belongs to; 0 if it is unknown."""
        return line_at(self._lines, pc - self.library.base) if self._lines else 0

    @cached_property
    def _lines(self) -> Path | None:
        """A library with the same code and a line table; None if the compiler generated different code for it."""
        path = self._with_lines()
        return path if code(path) == code(self.path) else None


def check_grid(grid, threadgroup):
    """Raises ValueError for a grid or a threadgroup that no GPU accepts."""
    for name, triple in (("grid", grid), ("threadgroup", threadgroup)):
        if len(triple) != 3:
            raise TypeError(f"{_TAG} `{name}` must be three integers, not {triple!r}.")
        if min(triple) < 1:
            raise ValueError(f"{_TAG} Every entry of `{name}` must be at least 1, not {tuple(triple)}.")
    check_threads(threadgroup, _MAX_THREADS)


def check_threads(threadgroup, limit: int):
    """Raises ValueError, in MLX's words, if the threadgroup has more threads than the limit."""
    threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
    if threads > limit:
        raise ValueError(
            f"Thread group size ({threads}) is greater than  the maximum allowed threads per threadgroup ({limit})."
        )


def new_launch(grid, threadgroup, threadgroup_bytes: int = THREADGROUP_BYTES) -> Launch:
    """A launch of `grid` threads with the current mode and schedule, and without buffers yet.

    threadgroup_bytes: the memory that the GPU grants to a threadgroup.
    """
    launch = Launch()
    launch.arena_limit = threadgroup_bytes
    launch.total = 1
    for axis in range(3):
        group = min(threadgroup[axis], grid[axis])
        launch.grid[axis], launch.group[axis] = grid[axis], group
        launch.groups[axis] = -(-grid[axis] // group)
        launch.total *= launch.groups[axis]
    launch.check = settings.current_mode() == "check"
    launch.schedule, launch.seed = settings.current_schedule()
    launch.tensor_layout, launch.tensor_rounding = settings.current_tensor_unit()
    launch.stride = _coprime(launch.total)
    launch.step_limit = settings.current_step_limit()
    return launch


def _coprime(total: int) -> int:
    """A step that visits every threadgroup once, in an order far from the usual one."""
    stride = int(total * 0.618) | 1
    while np.gcd(stride, total) != 1:
        stride += 2
    return stride


def run_bound(kernel: BuiltKernel, launch: Launch, bindings):
    """Runs a launch.

    bindings: (index, memory, whether it may be written, whether it holds values beforehand) of each buffer.
    """
    bindings = list(bindings)
    launch.buffer_count = max((index for index, *_ in bindings), default=-1) + 1
    fetch, findings, window = [], [], None
    if launch.check:
        window = buffers.Window(kernel.library, launch.buffer_count)
        launch.window, launch.window_bits = window.base, window.bits
    try:
        for index, array, writable, initialised in bindings:
            fetch.append(buffers.bind(launch, index, array, writable, initialised, window))
        execute(kernel.library, launch)
        for place in fetch:
            if place:
                ctypes.memmove(*place[:3])
        if window and not launch.report_count:
            findings = unwritten_outputs(kernel, launch)
    finally:
        if window:
            window.close()
    record.add(kernel, launch)
    raise_reports(kernel, launch, findings)
