"""One fixture runs a test on every backend of this machine; nothing here ever skips.

A machine without the simulator's compiler fails these tests with the simulator's own message: a suite that skips its
kernels would be green for no reason.
"""

import platform

import mlx.core as mx
import pytest
from cases import SEED
from machines import BACKENDS, KERNELS, label

from mlx_flash import use_backend
from mlx_flash.metal.cpu.settings import SCHEDULES
from mlx_flash.simulator import schedule

# The simulator is Linux software so far: on a Mac its own tests are not collected, and the report header says so.
ON_LINUX_ONLY = [
    "test_simulator*.py", "test_mutants.py", "test_schedules.py", "test_tensor_decode.py", "test_tensor_layers.py",
    "test_work.py",
]  # fmt: skip
collect_ignore_glob = [] if platform.system() == "Linux" else ON_LINUX_ONLY


def pytest_addoption(parser):
    parser.addoption(
        "--schedule", choices=SCHEDULES, default="forward", help="order of threads and threadgroups on the simulator"
    )


@pytest.fixture(autouse=True)
def _ordered(request):
    with schedule(request.config.getoption("--schedule"), SEED):
        yield


def pytest_report_header(config):
    left_out = f", not collected here: {', '.join(collect_ignore_glob)}" if collect_ignore_glob else ""
    backends = ", ".join(map(label, BACKENDS))
    return f"mlx {mx.__version__}, seed {SEED} (MLX_FLASH_SEED), backends: {backends}{left_out}"


@pytest.fixture(params=BACKENDS, ids=label)
def backend(request):
    """Every backend, the kernels of every table family among them."""
    with use_backend(*request.param) as chosen:
        yield chosen


@pytest.fixture(params=KERNELS, ids=label)
def kernels(request):
    """Every backend that runs the Metal text."""
    with use_backend(*request.param) as chosen:
        yield chosen


@pytest.fixture
def reference():
    with use_backend("reference") as chosen:
        yield chosen


@pytest.fixture(scope="session")
def wheel():
    """The include directory of MLX's kernel headers."""
    from metal_conformance.headers import Unavailable, include_directory

    try:
        return include_directory()
    except Unavailable as error:
        pytest.skip(str(error))
