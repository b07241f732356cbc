"""Backends as fixtures, and what tests need as markers.

The fixtures run a test on every backend of this machine. Where a machine lacks what a test needs (needs.py) the test is
skipped; the header names the needs that are not met, and the summary counts the tests. The simulator is never taken as
missing: without its compiler these tests fail with its own message, for a suite that skips its kernels would be green
for no reason.
"""

import gc
import os
import platform
import sys
from pathlib import Path

# Before numpy starts: threads that wait for each other's small products take more time than the products, and the
# processes of xdist have the cores already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before anything is compiled, and before a pretended Mac: MLX finds a g++ that takes a quarter of the time.
if platform.system() == "Linux" and "support/fused" not in os.environ.get("PATH", ""):
    os.environ["PATH"] = os.pathsep.join([str(Path(__file__).with_name("support") / "fused"), *os.get_exec_path()])

import pretend_mac

if "--pretend-mac" in sys.argv or pretend_mac.VARIABLE in os.environ:
    # Before anything asks what this machine is; processes of xdist follow the variable.
    pretend_mac.pretend(os.environ.get(pretend_mac.VARIABLE) or pretend_mac.ARCHITECTURE)
    pretend_mac.adapt()

os.environ.setdefault("MLX_FLASH_TUNED", "0")  # tests are about the tables, whatever was tuned on this machine

import covering
import mlx.core as mx
import needs
import pytest
from cases import SEED
from machines import BACKENDS, KERNELS, label

from mlx_flash import use_backend
from mlx_flash.metal.cpu.settings import SCHEDULES
from mlx_flash.simulator import schedule

FEW_CORES = 4


def pytest_addoption(parser):
    parser.addoption(
        "--schedule", choices=SCHEDULES, default="forward", help="order of threads and threadgroups on the simulator"
    )
    parser.addoption("--pretend-mac", action="store_true", help="run as on a Mac, its GPU played by the simulator")


def pytest_configure(config):
    for line in (*(f"{name}: {meaning}" for name, meaning in needs.NEEDS.items()), needs.ANY_KERNELS):
        config.addinivalue_line("markers", line)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Ten thousand tests stay until the end: Python's search for garbage among them takes a quarter of collecting."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks that this adds
def pytest_collection_modifyitems(items):
    missing = needs.missing()
    waits = covering.waiting(items)
    for item in covering.seldom(items, waits):
        item.add_marker("long")
    for item in waits:
        item.add_marker("slow")
    for item in items:
        wanted = needs.of(item)
        for need in sorted(wanted & set(missing)):
            item.add_marker(pytest.mark.skip(reason=needs.unmet(need, missing[need])))
        if not wanted and not item.get_closest_marker("slow"):
            item.add_marker("quick")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """-n auto: one worker more than cores, where these are few: tests that wait for other processes leave a core idle,
    with two workers a sixth of the time of two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1 if cores <= FEW_CORES else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers keep to neighbouring tests, whose kernels and wanted values are then found, and share what is left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_report_header(config):
    backends = ", ".join(map(label, BACKENDS))
    unmet = ", ".join(f"{need} ({why})" for need, why in needs.missing().items())
    lines = [f"mlx {mx.__version__}, seed {SEED} (MLX_FLASH_SEED), backends: {backends}"]
    if pretend_mac.VARIABLE in os.environ:
        lines.append(f"pretending to be a Mac with {os.environ[pretend_mac.VARIABLE]}")
    return [*lines, f"skipped here, tests that need: {unmet}"] if unmet else lines


def pytest_terminal_summary(terminalreporter):
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    counted = needs.skipped(reasons)
    others = len(reasons) - sum(counted.values())
    parts = [f"{count} need {need}" for need, count in counted.items()] + ([f"{others} others"] if others else [])
    terminalreporter.write_line(f"{len(reasons)} tests skipped{': ' if parts else ''}{', '.join(parts)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    with needs.enforced(item):
        return (yield)


@pytest.fixture(autouse=True)
def _ordered(request):
    with schedule(request.config.getoption("--schedule"), SEED):
        yield


@pytest.fixture(params=BACKENDS, ids=label)
def backend(request):
    """Every backend, including the kernels of every table family."""
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
def metal_headers():
    """The include directory of MLX's kernel headers."""
    from metal_conformance.headers import Unavailable, include_directory

    try:
        return include_directory()
    except Unavailable as error:
        pytest.skip(needs.unmet("network", str(error)))


@pytest.fixture(scope="session")
def assembled():
    """A function of (a file of PTX, a GPU) that returns the words of NVIDIA's assembler about it."""
    import ptxas

    def assemble(path, gpu: str) -> str:
        try:
            ptxas.ptxas()
        except ptxas.Unavailable as error:
            pytest.skip(needs.unmet("network", str(error)))
        return ptxas.assembled(path, gpu)

    return assemble


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A pretended Mac that has tried no kernel yet: the folder that its verdicts go to."""
    from mlx_flash.backends import guard, prober

    disguised = [(mx.fast, "metal_kernel"), (mx.metal, "is_available"), (mx, "device_info"), (mx, "compile")]
    disguised += [(mx, "default_device"), (mx, "set_default_device"), (mx, "stream")]
    for owner, name in (*disguised, (platform, "system"), (platform, "mac_ver")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setenv(pretend_mac.VARIABLE, pretend_mac.ARCHITECTURE)
    monkeypatch.setenv("PYTHONPATH", str(pretend_mac.STARTUP))
    for name in ("MLX_FLASH_BACKEND", "MLX_FLASH_FAMILY", "MLX_FLASH_PROBE"):
        monkeypatch.delenv(name, raising=False)
    pretend_mac.report_darwin()
    pretend_mac.disguise(mx)
    monkeypatch.setattr(guard, "folder", lambda: tmp_path / "verdicts")
    monkeypatch.setattr(guard, "_warned", [])
    monkeypatch.setattr(prober, "SECONDS", pretend_mac.SECONDS)
    pretend_mac.forget()
    yield tmp_path / "verdicts"
    monkeypatch.undo()
    pretend_mac.forget()
