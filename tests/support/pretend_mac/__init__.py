"""Makes this machine look like a Mac to Python: `pytest --pretend-mac` runs the suite through backends/metal anywhere.

Darwin is reported, Metal is "available", and kernels of `mx.fast.metal_kernel` run on the simulator: MLX checks every
call and generates its text, and the simulator compiles that text. README.md says what this cannot test.
"""

import os
import platform
import sys
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

VARIABLE = "PRETEND_MAC"  # the GPU's architecture; child processes read it in startup/sitecustomize.py
MACOS = "PRETEND_MACOS"  # the version of macOS; 15.5 if it is unset
ARCHITECTURE = "applegpu_g13s"  # an M1 Pro, whose kernels copy operands to threadgroup memory
SECONDS = 600.0  # for a kernel's first use: clang is slower than Apple's compiler, and much slower on a busy machine
ASK_MLX = (
    "mlx_flash.common.mlx_private",
    "test_mlx_private",
    "test_simulator_errors",
)  # modules whose compiled functions test traces and run no kernels of the Metal backend; below: one function
NO_KERNELS = "runs_no_kernels"
STARTUP = Path(__file__).parent / "startup"


def pretend(architecture: str = ARCHITECTURE) -> None:
    """From now on this process and its children take this machine for a Mac with a GPU of that architecture."""
    os.environ[VARIABLE] = architecture
    paths = [str(STARTUP), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    report_darwin()
    disguise(sys.modules["mlx.core"] if "mlx.core" in sys.modules else __import__("mlx.core").core)


def adapt() -> None:
    """Adapts the product to what stands for the GPU here: kernels have more time, and streams of the CPU are the
    GPU's."""
    from mlx_flash.backends import prober
    from mlx_flash.common import machine

    prober.SECONDS = SECONDS
    real = machine.on_cpu
    machine.on_cpu = lambda stream=None: stream is None and real()
    machine.on_cpu.real = real


def report_darwin() -> None:
    """Reports Darwin to MLX's packages, this project and its tests only: other packages would load libraries of
    macOS."""
    real = platform.system
    if getattr(real, "pretends", False):  # a worker process of xdist that started in disguise: one answer is enough
        return

    def system() -> str:
        asking = sys._getframe(1).f_globals
        installed = "site-packages" in asking.get("__file__", "")
        return "Darwin" if not installed or asking["__name__"].startswith("mlx") else real()

    system.pretends = True
    platform.system = system
    platform.mac_ver = lambda *_: (macos(), ("", "", ""), "arm64")


def macos() -> str:
    return os.environ.get(MACOS, "15.5")


def disguise(mx) -> None:
    """Replaces the functions of mlx.core that describe the machine, and those that need its GPU."""
    if getattr(mx.fast.metal_kernel, "pretends", False):
        return
    from .kernel import pretended

    facts, architecture = mx.device_info, os.environ[VARIABLE]
    apple = {
        "architecture": architecture, "device_name": "Apple M1 Pro (pretended)", "memory_size": 16 << 30,
        "max_buffer_length": 8 << 30, "max_recommended_working_set_size": 11 << 30, "resource_limit": 499000,
    }  # fmt: skip
    mx.metal.is_available = lambda: True
    mx.device_info = lambda device=None: dict(apple) if "gpu" in str(device or mx.default_device()) else facts(device)
    mx.fast.metal_kernel = pretended(mx.fast.metal_kernel)
    mx.compile = _compile(mx.compile)
    _pretend_devices(mx)


def _pretend_devices(mx) -> None:
    """The product takes the default device for the GPU until a program chooses the CPU, by mx.set_default_device or in
    a block of mx.stream. Streams, and everybody else's question, stay the processor's."""
    default_device, set_default_device, stream = mx.default_device, mx.set_default_device, mx.stream
    gpu, cpu_chosen = mx.Device(mx.gpu), [False]

    def answered():
        asking = sys._getframe(1).f_globals["__name__"]
        return gpu if asking == "mlx_flash.common.machine" and not cpu_chosen[-1] else default_device()

    def chosen(device):
        cpu_chosen[-1] = device == mx.cpu
        set_default_device(mx.cpu)

    @contextmanager
    def block(where):
        device = isinstance(where, (mx.Device, mx.DeviceType))
        cpu_chosen.append(where == mx.cpu if device else cpu_chosen[-1])
        try:
            with stream(mx.cpu if device else where):
                yield
        finally:
            cpu_chosen.pop()

    mx.default_device, mx.set_default_device, mx.stream = answered, chosen, block


def _compile(real):
    """An mx.compile that leaves functions unchanged on the Metal backend.

    The simulator computes at once, and arrays have no values yet inside a trace.
    """

    def compile(function, inputs=None, outputs=None, shapeless=False):
        compiled = real(function, inputs=inputs, outputs=outputs, shapeless=shapeless)
        if getattr(function, "__module__", "") in ASK_MLX or hasattr(function, NO_KERNELS):
            return compiled

        @wraps(function)
        def call(*arguments, **named):
            backends = sys.modules.get("mlx_flash.backends")
            metal = backends is not None and backends.current_backend().name == "metal"
            return (function if metal else compiled)(*arguments, **named)

        return call

    compile.real = real
    return compile


def forget() -> None:
    """Empties this process's caches about kernels and about the machine."""
    from mlx_flash import backends
    from mlx_flash.autodiff.call import clear_cache
    from mlx_flash.backends import guard, metal, prober
    from mlx_flash.common import machine
    from mlx_flash.integrations import kept

    clear_cache()
    kept.calls.clear()
    backends.forget()
    for found in (metal.family_here, guard.machine_facts, machine.macos, machine.why_no_metal):
        found.cache_clear()
    prober.PROBER.close()
