"""What a new machine may lack or do otherwise: each is met with a sentence that says what to do, or with no harm."""

import errno
import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import bounds
import mlx.core as mx
import numpy as np
import oracle
import pretend_mac
import pytest
from pretend_mac.kernel import FAULT

import mlx_flash
from mlx_flash import attention, explain, quantized_attention, simulator
from mlx_flash.backends import guard, metal, prober, tuned
from mlx_flash.backends import simulator as simulated
from mlx_flash.cli import main as cli
from mlx_flash.common import machine
from mlx_flash.common.errors import CommandError, UnsupportedProblem
from mlx_flash.metal.cpu import compiler, launch
from mlx_flash.metal.frontend.errors import ToolchainError

PROJECT = Path(__file__).parents[2]
ON_CPU = getattr(machine.on_cpu, "real", machine.on_cpu)


def operands():
    return tuple(mx.random.normal((1, 1, 33, 16), key=mx.random.key(seed)) for seed in range(3))


def operands_of(head_dim):
    return tuple(mx.random.normal((1, 1, 33, head_dim), key=mx.random.key(seed)) for seed in range(2))


def check_attention():
    q, k, v = operands()
    want = oracle.forward(*(np.array(array, np.float64) for array in (q, k, v)), 0.25, False)[0]
    bounds.check("O", attention(q, k, v), want, "first hour", "float32")


@pytest.mark.reported("mlx-3428")
def test_a_metal_back_end_that_finds_no_gpu(mac, monkeypatch, capsys):
    """A virtual machine or a sandbox: "available", and every question about the GPU raises an error."""
    told = mx.device_info

    def device_info(device=None):
        if "gpu" in str(device):
            raise RuntimeError("[metal::load_device] No Metal device\navailable")
        return told(mx.cpu)

    monkeypatch.setattr(mx, "device_info", device_info)
    pretend_mac.forget()
    with pytest.warns(UserWarning, match="no GPU: .*No Metal device available. Attention runs as plain mx operations"):
        check_attention()
    with warnings.catch_warnings(action="error"):
        check_attention()
        assert "No Metal device" in str(explain(*operands()))
    with pytest.raises(UnsupportedProblem, match="no Metal GPU that MLX can use .*No Metal device available.* family"):
        mlx_flash.use_backend("metal")
    assert cli.main(["explain", "--head-dim", "64", "--backend", "metal", "--family", "apple9"]) == 0
    assert cli.main(["explain", "--head-dim", "64", "--backend", "metal"]) == 2
    assert "on a machine without it" in capsys.readouterr().err


def test_the_gpu_is_described_whatever_the_default_device_is(mac, monkeypatch):
    assert mx.default_device() == mx.cpu and mx.device_info()["architecture"] == platform.machine()
    assert metal.family_here().name == "apple7"
    assert "applegpu_g13s" in guard.machine_facts()["chip"]


@pytest.mark.parametrize(
    "stream", (mx.cpu, mx.Device(mx.cpu), mx.default_stream(mx.cpu)), ids=("type", "device", "stream")
)
def test_a_stream_of_the_cpu(mac, monkeypatch, stream):
    """Kernels do not run there: plain operations do, and under patch() the built-in."""
    monkeypatch.setattr(machine, "on_cpu", ON_CPU)
    monkeypatch.setattr(metal, "run_with", lambda *_: pytest.fail("a kernel was launched"))
    q, k, v = operands()
    want = oracle.forward(*(np.array(array, np.float64) for array in (q, k, v)), 0.25, False)[0]
    bounds.check("O", attention(q, k, v, stream=stream), want, "first hour", "float32")
    with mlx_flash.use_backend("metal"), pytest.raises(UnsupportedProblem, match="run on the GPU, and stream .*cpu"):
        attention(q, k, v, stream=stream)
    with mlx_flash.patch(policy="always") as report:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, stream=stream)
    bounds.check("O", out, want, "first hour", "float32")
    assert dict(report.built_in) == {"a stream of the CPU": 1}
    assert not machine.on_cpu(mx.gpu) and not machine.on_cpu(mx.Device(mx.gpu))


@contextmanager
def default_of_the_cpu():
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(mx.gpu)


CPU_BY_DEFAULT = {
    "default": default_of_the_cpu, "block": lambda: mx.stream(mx.cpu), "device": lambda: mx.stream(mx.Device(mx.cpu))
}  # fmt: skip


@pytest.mark.parametrize("chosen", CPU_BY_DEFAULT.values(), ids=CPU_BY_DEFAULT)
def test_the_cpu_as_default_device(mac, monkeypatch, chosen):
    """As a program loads a model on a Mac whose GPU it leaves alone: no kernel is launched, nor tried."""
    launched = []
    monkeypatch.setattr(metal, "run_with", lambda *_: launched.append(1) or pytest.fail("a kernel was launched"))
    monkeypatch.setattr(prober.Prober, "ask", lambda *_: pytest.fail("a kernel was tried"))
    q, k, v = operands()
    want = oracle.forward(*(np.array(array, np.float64) for array in (q, k, v)), 0.25, False)[0]
    cotangent = mx.ones(want.shape)
    with mlx_flash.use_backend("reference"):
        gradients = mx.vjp(lambda *qkv: attention(*qkv), [q, k, v], [cotangent])[1]
    codes = tuple(mx.quantize(one, group_size=32, bits=8) for one in operands_of(64))
    with chosen():
        bounds.check("O", attention(q, k, v), want, "first hour", "float32")
        bounds.check("O", attention(q, k, v, scale=0.25, window=(None, None)), want, "first hour", "float32")
        own = mx.vjp(lambda *qkv: attention(*qkv), [q, k, v], [cotangent])[1]
        assert all(mx.array_equal(one, other) for one, other in zip(own, gradients))
        quantized_attention(operands_of(64)[0], *codes, group_size=32, bits=8)
        told = explain(q, k, v)
        assert (told.backend, told.family) == ("reference", None) and "the default device is the CPU" in told.why
        for policy in (None, "fastest", "always"):
            with mlx_flash.patch(policy=policy) as report:
                out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25)
            bounds.check("O", out, want, "first hour", "float32")
            assert dict(report.built_in) == {"the default device is the CPU": 1} and not report.ours
    assert not launched


def test_a_gpu_that_is_named_beside_the_cpu_as_default_device(mac, monkeypatch):
    """By the stream of a call, or by the backend: then kernels run, on the GPU."""
    streams, run_with = [], metal.run_with
    monkeypatch.setattr(metal, "run_with", lambda *given: streams.append(given[-1]) or run_with(*given))
    q, k, v = operands()
    check_attention()
    assert len(streams) == 1, "the GPU is the default"
    with mx.stream(mx.cpu):
        monkeypatch.setattr(machine, "on_cpu", ON_CPU)
        attention(q, k, v, stream=mx.gpu)
        with mlx_flash.use_backend("metal"):
            attention(q, k, v)
            with mlx_flash.patch() as report:
                mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert report.ours == 1 and streams[1:] == [mx.gpu] * 3


@pytest.mark.process
@pytest.mark.parametrize(
    ("told", "system", "found"),
    (
        ("16.3", "26.3", "26.3"),
        ("10.16", "15.5", "15.5"),
        ("16.3", None, "16.3"),
        ("15.5", "26.3", "15.5"),
        ("", "1", ""),
    ),
)
@pytest.mark.reported("cpython-135675")
def test_the_true_macos_of_a_python_from_before_it(monkeypatch, tmp_path, told, system, found):
    """Such a Python is told 16 for 26, and would be refused the neural accelerators."""
    program = tmp_path / "sw_vers"
    if system:
        program.write_text(f'#!/bin/sh\n[ "$SYSTEM_VERSION_COMPAT$1" = 0-productVersion ] && echo {system}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep if system else None)
    monkeypatch.setattr(platform, "mac_ver", lambda *_: (told, ("", "", ""), "arm64"))
    assert machine.macos.__wrapped__() == found


def test_a_child_that_others_end_says_nothing_about_its_kernel(mac, monkeypatch):
    """The system ends processes when memory is short. The kernel is not used here, and tried again by the next one."""
    monkeypatch.setenv(FAULT, "killed:forward")
    with pytest.warns(RuntimeWarning, match="(?s)cannot test its kernels in this process.*PROBE=0.*signal 9") as told:
        check_attention()
    assert "report" not in str(told[0].message)
    assert not [path for path in mac.glob("*") if "forward" in path.read_text()]
    monkeypatch.delenv(FAULT)
    pretend_mac.forget()
    with warnings.catch_warnings(action="error"):
        check_attention()


def test_the_terminals_interrupt_does_not_reach_the_child(mac):
    """A program that goes on after Ctrl-C would otherwise find its kernels failed for good."""
    check_attention()
    child = prober.PROBER._process
    assert os.getpgid(child.pid) != os.getpgid(0)
    assert signal.SIGINT in prober.FROM_OUTSIDE and signal.SIGSEGV not in prober.FROM_OUTSIDE


@pytest.mark.parametrize("program", ("/usr/local/bin/uwsgi", "/Applications/Some.app/Contents/MacOS/Some", "", None))
def test_a_program_that_embeds_python_is_not_started_again(mac, monkeypatch, program):
    monkeypatch.setattr(prober.sys, "executable", program)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with pytest.warns(RuntimeWarning, match="no interpreter of its own"):
        check_attention()
    assert not mac.exists()


def test_a_child_that_does_not_start_is_waited_for_once(mac, monkeypatch):
    starts = []

    def start(self):
        starts.append(self)
        raise OSError("no greeting")

    monkeypatch.setattr(prober.Prober, "_start", start)
    with pytest.warns(RuntimeWarning, match="no greeting"):
        check_attention()
        mx.eval(mx.grad(lambda q, k, v: attention(q, k, v).sum())(*operands()))
    assert len(starts) == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the current folder")
def test_a_child_imports_nothing_from_the_current_folder(mac, monkeypatch, tmp_path):
    for name in ("json", "select", "struct", "queue"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="error"):
        check_attention()


def test_a_user_without_a_home_folder(monkeypatch):
    """Nothing is kept, and only what has to be compiled on the CPU asks for a folder."""
    for name in ("MLX_FLASH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for folder in (guard.folder(), tuned.folder()):
        assert guard._read(folder / "one.json", {}) is None
        guard._write(folder / "one.json", {})
        assert not folder.exists()
    assert "no home: set MLX_FLASH_CACHE" in simulated.ready()


@pytest.mark.parametrize("clang", ("/usr/bin/clang", "/opt/homebrew/opt/llvm/bin/clang"))
def test_apples_clang_is_not_called(monkeypatch, clang):
    """Without the developer tools it would open a window that asks for them."""
    called = []

    def run(command, **_):
        called.append(command[0])
        return subprocess.CompletedProcess(command, 0, "clang version 19.1.0", "")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setitem(sys.modules, "ziglang", None)  # importing it raises ImportError
    monkeypatch.setattr(compiler.shutil, "which", lambda name: clang if name == "clang" else None)
    monkeypatch.setattr(compiler.subprocess, "run", run)
    find = compiler.toolchain.__wrapped__
    if clang == compiler.APPLES_CLANG:
        with pytest.raises(ToolchainError, match="needs clang"):
            find()
        assert not called
    else:
        assert find()[0] == (clang,) and called == [clang]


def test_a_folder_that_cannot_be_made(monkeypatch, capsys):
    monkeypatch.setenv("MLX_FLASH_CACHE", f"{os.devnull}/below")
    assert "Set MLX_FLASH_CACHE to a folder" in simulated.ready()
    mlx_flash.backends.forget()
    assert cli.main(["check", "--backend", "simulator"]) == 2
    assert "Not a directory" in capsys.readouterr().err
    mlx_flash.backends.forget()


@pytest.mark.simulator
def test_a_kernel_that_cannot_be_kept_or_loaded(monkeypatch, tmp_path):
    """The folder is full or read-only, or programs may not run from it."""

    def copied(number):
        body = f"y[thread_position_in_grid.x] = x[thread_position_in_grid.x] + {number}.0f;"
        made = simulator.metal_kernel("first_hour", ["x"], ["y"], body)
        return made(
            inputs=[mx.ones(8)], output_shapes=[(8,)], output_dtypes=[mx.float32], grid=(8, 1, 1), threadgroup=(8, 1, 1)
        )[0]

    def refused(name, *_, **__):
        if name != "libm.so.6":
            raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as once:
        once.setattr(compiler, "build", refused)
        once.setattr(compiler, "recall", lambda *_: None)
        with pytest.raises(simulator.ToolchainError, match="Read-only file system. .*set MLX_FLASH_CACHE to another"):
            copied(1)
    with monkeypatch.context() as once:
        once.setattr(launch.ctypes, "CDLL", refused)
        with pytest.raises(simulator.ToolchainError, match="cannot be loaded: .*set MLX_FLASH_CACHE to another"):
            copied(2)
    assert copied(3).tolist() == [4.0] * 8


@pytest.mark.parametrize(
    ("number", "locked"), ((errno.EWOULDBLOCK, True), (errno.ENOTSUP, False), (errno.ENOLCK, False))
)
def test_tuning_where_files_have_no_locks(monkeypatch, tmp_path, number, locked):
    """Some network drives have none, which is no other process that tunes."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(tuned, "folder", lambda: tmp_path)
    if locked:
        with pytest.raises(CommandError, match="another tune runs"), tuned.tuning_lock():
            pass
    else:
        with tuned.tuning_lock():
            pass


# The system, the processor, what stands in MLX's place, and what the error says.
NO_MLX = {
    "missing": ("Linux", "x86_64", "raise ModuleNotFoundError(name='mlx.core')", "is not installed for .*'mlx.cpu.'"),
    "no-device": ("Linux", "x86_64", "raise ImportError('libmlx.so: no such file')", "libmlx.so: no .*'mlx.cpu.'"),
    "rosetta": ("Darwin", "x86_64", "raise ImportError('have arm64')", "have arm64.*Rosetta.*for arm64"),
    "old-macos": ("Darwin", "arm64", "raise ImportError('built for macOS 14')", "for macOS 14.*MLX needs macOS 14"),
    "old": ("Darwin", "arm64", "__version__ = '0.31.2'", "0.32 or later, and this is 0.31.2 in .*core.py.* -U mlx"),
    "newer": ("Darwin", "arm64", "__version__ = '1.0.0.dev20270101'", ""),
}


@pytest.mark.process
@pytest.mark.parametrize("case", NO_MLX)
def test_mlx_that_is_missing_or_too_old(tmp_path, case):
    system, processor, body, said = NO_MLX[case]
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    disguise = f"import platform\nplatform.system = lambda: {system!r}\nplatform.machine = lambda: {processor!r}\n"
    (tmp_path / "mlx" / "core.py").write_text(disguise + body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(PROJECT)))}
    environment.pop(pretend_mac.VARIABLE, None)
    asked = "import mlx_flash" if said else "import runpy; runpy.run_path('mlx_flash/common/requirements.py')"
    command = [sys.executable, "-c", asked]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT)
    last = done.stderr.strip().rpartition("\n")[2]
    assert re.search(f"^ImportError: mlx_flash needs MLX.*{said}", last) if said else not last, done.stderr
