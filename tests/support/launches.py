"""Launches of the simulator: a record of them, and sums over it."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from mlx_flash.metal.cpu.profile import Profile, record
from mlx_flash.problem.kinds import TRAINING
from mlx_flash.simulator import profile


@contextmanager
def launched() -> Iterator[Profile]:
    """Records launches as profile() does, of kernels as they are built without it, which other tests have compiled.

    Threadgroups, products and steps are those that profile() counts. Exponentials are not counted, and bytes are those
    of code that reads again in a loop what does not change there: a test of these takes profile().
    """
    with patch.object(record, "counting", lambda: False), profile() as found:
        yield found


def by_step(profiled) -> dict[str, int]:
    """The number of 8x8x8 matmuls of each kernel."""
    found = {step.name: 0 for step in TRAINING}
    for launch in profiled.launches:
        name = max((name for name in found if name in launch["kernel"]), key=len)
        found[name] += launch["matmuls"]
    return found
