"""All kernels in all schedules of the simulator's strict mode: nothing is reported, and every bit is the same.

A missing barrier, a second writer or a read of what another threadgroup writes would show in one of them.
"""

import pytest
from arrays import bits
from launches import launched
from machines import each_simulated_family
from variants import VARIANTS, computed

from mlx_flash import use_backend
from mlx_flash.problem.kinds import TRAINING
from mlx_flash.simulator import mode, schedule

OTHERS = [("reversed", 0), ("random", 1)]


def in_order(name: str, family: str, *order) -> dict[str, bytes]:
    """The bytes of every result of a variant; a report of the simulator raises."""
    with use_backend("simulator", family), mode("check"), schedule(*order):
        return {tensor: bits(array) for tensor, array in computed(name).items()}


@pytest.mark.parametrize("name", VARIANTS)
@each_simulated_family
def test_every_schedule_gives_the_same_bits(family, name):
    want = in_order(name, family, "forward")
    for order in OTHERS:
        got = in_order(name, family, *order)
        assert [tensor for tensor in want if got[tensor] != want[tensor]] == [], order


@each_simulated_family
def test_the_variants_run_every_kernel(family):
    """Kernels with several threadgroups and simdgroups run more than one of each, since otherwise orders could not
    differ."""
    with launched() as counted:
        in_order("additive", family, "forward")
    for step in TRAINING:
        (launch,) = (found for found in counted.launches if f"flash_{step.name}_float32" in found["kernel"])
        assert launch["threadgroups"] > 1
