"""The needs of a test beyond Python and MLX's CPU operations: found by rule, enforced, and a reason to skip if missing.

A need is a marker of the test (`@pytest.mark.simulator`). It also follows from a parameter that is a backend, as with
the fixtures `backend` and `kernels`, or from a fixture that fetches a file. A test without needs is `quick`.
"""

import subprocess
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import mlx.core as mx
from machines import BACKENDS, CUDA, KERNELS, METAL

from mlx_flash.metal.cpu import compiler, dispatch

# {name: description}
NEEDS = {
    "simulator": "runs kernels on the simulator, or compiles them for it",
    "metal": "runs kernels on an Apple GPU",
    "cuda": "runs kernels on an NVIDIA GPU",
    "ptx": "compiles kernels for NVIDIA GPUs, which takes clang and no GPU",
    "process": "starts processes of its own, which takes seconds",
    "training": "trains a model or generates with one, which takes seconds",
    "long": "takes more than half a second of its own, or is one of hundreds alike: large sizes, many examples",
    "network": "fetches a file once that is then kept in the user's cache",
}
ANY_KERNELS = "kernels: runs kernels on a backend of the test's choice among those of this machine"
# Fixtures that make every test that uses them need something; those of the network skip if a file is missing.
OF_FIXTURES = {
    "metal_headers": "network", "assembled": "network", "upstream": "network", "wheel": "process",
    "mac": "simulator",
}  # fmt: skip
_UNMET = "needs "  # the start of the reason of such a skip


def missing() -> dict[str, str]:
    """Needs that this machine cannot meet, with the reason. Whether the network is reachable shows at the first
    request."""
    found = {}
    if not mx.metal.is_available():
        found["metal"] = "no Apple GPU"
    if not mx.cuda.is_available():
        found["cuda"] = "no NVIDIA GPU"
    return found


def of(item) -> set[str]:
    """The needs of one collected test."""
    found = {mark.name for mark in item.iter_markers()} | {OF_FIXTURES.get(name) for name in item.fixturenames}
    if "kernels" in found:
        found.add(KERNELS[0][0])
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    found |= {value[0] for value in parameters if isinstance(value, tuple) and value in BACKENDS}
    return found & set(NEEDS)


def unmet(need: str, why: str) -> str:
    """The reason for skipping a test with this need."""
    return f"{_UNMET}{need}: {why}"


def skipped(reasons) -> Counter:
    """{need: how many of these skip reasons are about it}."""
    return Counter(why.partition(_UNMET)[2].partition(":")[0] for why in reasons if _UNMET in why)


@contextmanager
def enforced(item):
    """Inside the block a test fails if it uses something without declaring the need, so that quick tests stay quick."""
    needs = of(item)
    if METAL or CUDA:  # calls that choose no backend run kernels here
        yield
        return

    start = subprocess.Popen

    def refused(deed: str, *allowing: str):
        def refuse(*given, **options):
            if given and isinstance(given[0], list) and given[0][:1] == ["fc-list"]:
                return start(*given, **options)  # matplotlib, which searches for fonts once on a new machine
            raise AssertionError(f"{item.nodeid} {deed}: it needs the marker {' or '.join(allowing)}")

        return refuse

    with ExitStack() as stack:
        for owner, name, deed, *allowing in (
            (dispatch, "execute", "runs a kernel", "simulator"),
            (compiler, "compile_text", "compiles a kernel", "simulator", "ptx"),
            (subprocess, "Popen", "starts a process", "process", "simulator", "ptx", "network"),
        ):
            if not needs & set(allowing):
                stack.enter_context(patch.object(owner, name, refused(deed, *allowing)))
        yield
