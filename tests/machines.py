"""What this machine can run the tests on."""

import itertools

import mlx.core as mx
import pytest

METAL = [("metal", None)] if mx.metal.is_available() else []
SIMULATED = [("simulator", "apple7"), ("simulator", "apple9")]  # one family per set of table rows
KERNELS = [*SIMULATED, *METAL]
BACKENDS = [*KERNELS, ("reference", None)]


def label(choice) -> str:
    return "-".join(filter(None, choice))


def shared_out(cases) -> list:
    """Parameters (backend, case): each case on one simulated family, and on every other backend.

    The families take turns two by two, out of step with the turns of causal and dtype in cases.pairwise.
    """
    turns = itertools.cycle([SIMULATED[0], SIMULATED[0], SIMULATED[1], SIMULATED[1]])
    others = [*METAL, ("reference", None)]
    return [
        pytest.param(choice, case, id=f"{label(choice)}-{case}")
        for case, turn in zip(cases, turns)
        for choice in (turn, *others)
    ]
