"""One fixture runs a test on every backend of this machine; nothing here ever skips.

A machine without the simulator's compiler fails these tests with the simulator's own message: a suite that skips its
kernels would be green for no reason.
"""

import os
import sys

import pretend_mac

if "--pretend-mac" in sys.argv or pretend_mac.VARIABLE in os.environ:
    # Before anything asks what this machine is; processes of xdist follow the variable.
    pretend_mac.pretend(os.environ.get(pretend_mac.VARIABLE) or pretend_mac.ARCHITECTURE)

import mlx.core as mx
import pytest
from cases import SEED
from machines import BACKENDS, KERNELS, label

from mlx_flash import use_backend
from mlx_flash.metal.cpu.settings import SCHEDULES
from mlx_flash.simulator import schedule


def pytest_addoption(parser):
    parser.addoption(
        "--schedule", choices=SCHEDULES, default="forward", help="order of threads and threadgroups on the simulator"
    )
    parser.addoption("--pretend-mac", action="store_true", help="run as on a Mac, its GPU played by the simulator")


@pytest.fixture(autouse=True)
def _ordered(request):
    with schedule(request.config.getoption("--schedule"), SEED):
        yield


def pytest_report_header(config):
    backends = ", ".join(map(label, BACKENDS))
    pretended = (
        f", pretending to be a Mac with {os.environ[pretend_mac.VARIABLE]}"
        if pretend_mac.VARIABLE in os.environ
        else ""
    )
    return f"mlx {mx.__version__}, seed {SEED} (MLX_FLASH_SEED), backends: {backends}{pretended}"


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
