"""Sums over the launches in the simulator's profile."""

from mlx_flash.problem.kinds import TRAINING


def by_step(profiled) -> dict[str, int]:
    """The number of 8x8x8 matmuls of each kernel."""
    found = {step.name: 0 for step in TRAINING}
    for launch in profiled.launches:
        name = max((name for name in found if name in launch["kernel"]), key=len)
        found[name] += launch["matmuls"]
    return found
