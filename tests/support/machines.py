"""The backends that this machine can run tests on."""

import itertools
import os

import mlx.core as mx
import pytest

METAL = [("metal", None)] if mx.metal.is_available() else []
# On an NVIDIA GPU its own kernels, and the kernels for Apple GPUs.
CUDA = [("cuda", None), ("cuda", "apple7"), ("cuda", "apple9")] if mx.cuda.is_available() else []
# One family for each set of table rows. SIMULATED_FAMILIES names others, such as apple10, whose 16-bit kernels have
# tests of their own in test_neural_kernels.py.
SIMULATED = [("simulator", name) for name in os.environ.get("SIMULATED_FAMILIES", "apple7,apple9").split(",")]
# Parametrizes `family` in tests that use the simulator directly.
each_simulated_family = pytest.mark.parametrize(
    "family", [pytest.param(family, marks=pytest.mark.simulator, id=family) for _, family in SIMULATED]
)
KERNELS = [*SIMULATED, *METAL, *CUDA]
BACKENDS = [*KERNELS, ("reference", None)]


def label(choice) -> str:
    return "-".join(filter(None, choice))


def across_backends(cases, waits=lambda index: False) -> list:
    """Parameters (backend, case): each case on one simulated family, and on every other backend.

    The families alternate every two cases, out of step with causal and dtype in cases.pairwise.

    waits: a function of a case's index. If it is true, the simulator runs the case in `pytest -m ""` only, and the
    reference runs it in the default run and not in the quick one.
    """
    turns = itertools.cycle([choice for choice in SIMULATED for _ in range(2)])
    others = [*METAL, *CUDA, ("reference", None)]
    return [
        pytest.param(
            choice, case, id=f"{label(choice)}-{case}",
            marks=[pytest.mark.slow if choice in SIMULATED else pytest.mark.long] if waits(index) else [],
        )
        for index, case in enumerate(cases)
        for choice in (*itertools.islice(turns, 1), *others)
    ]  # fmt: skip
