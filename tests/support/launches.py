"""Sums over the launches that the simulator's profile lists."""

from mlx_flash.problem.kinds import TRAINING


def by_step(profiled) -> dict[str, int]:
    """8x8x8 matmuls of each kernel."""
    found = {step.name: 0 for step in TRAINING}
    for launch in profiled.launches:
        name = max((name for name in found if name in launch["kernel"]), key=len)
        found[name] += launch["matmuls"]
    return found
