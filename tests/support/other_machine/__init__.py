"""Records launches of the simulator and runs them again on another machine, compiled for it and emulated."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_flash.metal.cpu import compiler, kernel
from mlx_flash.metal.cpu.buffers import extent
from mlx_flash.metal.cpu.dispatch import BuiltKernel
from mlx_flash.metal.cpu.launch import Launch
from mlx_flash.metal.cpu.target import Target
from mlx_flash.metal.frontend.language import prefix
from mlx_flash.metal.frontend.translate import translate

HERE = Path(__file__).parent
ARM = Target("Linux", "aarch64")
LANGUAGE = "3.1"


@dataclass
class Recorded:
    """A launch: its kernel, the initial bytes of its buffers, and the indices of buffers that it may write."""

    kernel: BuiltKernel
    launch: Launch
    before: list[bytes]
    writable: list[bool]
    after: list[bytes]


def record(monkeypatch) -> list[Recorded]:
    """Records every launch of metal_kernel from now on, in order."""
    recorded, run = [], kernel.run_bound

    def run_bound(built, launch, bindings):
        bindings = list(bindings)
        for index, array, writable, initialised in bindings:
            assert array.flags.c_contiguous, "record launches of contiguous arrays"
            buffer = launch.buffers[index]
            buffer.start, buffer.bytes = (-extent(array)[0], extent(array)[1])
            buffer.item, buffer.writable, buffer.initialised = array.itemsize, writable, initialised
            buffer.shift = min(array.itemsize, 4).bit_length() - 1
        launch.buffer_count = len(bindings)
        one = Recorded(built, Launch.from_buffer_copy(launch), [], [], [])
        one.before = [np.array(array).tobytes() for _, array, _, _ in bindings]
        one.writable = [writable for _, _, writable, _ in bindings]
        recorded.append(one)
        run(built, launch, bindings)
        one.after = [np.array(array).tobytes() for _, array, _, _ in bindings]

    monkeypatch.setattr(kernel, "run_bound", run_bound)
    return recorded


def program(text: str, folder: Path, check: bool) -> Path:
    """A kernel linked with the runtime, the harness and a C library into a program for arm64 Linux."""
    translation = translate(text, float(LANGUAGE))
    objects = compiler.objects(
        prefix(LANGUAGE) + translation.text, translation.entry(), "mlx.h", folder, ARM, check, lines=True
    )  # fmt: skip
    zig, program = compiler.toolchain()[0][0], folder / "program"
    command = [
        zig, "build-exe", "-target", "aarch64-linux-musl", "-lc", "-fno-PIE", "-O", "ReleaseFast",
        "-I", compiler._HERE / "runtime", HERE / "harness.c", *objects, f"-femit-bin={program}",
        "--cache-dir", folder, "--global-cache-dir", compiler.cache_directory() / "zig",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def replay(recorded: Recorded, emulator: str, folder: Path) -> tuple[Launch, list[bytes]]:
    """(the launch as the other machine left it, the bytes of its buffers)."""
    made = program(recorded.kernel.text, folder, bool(recorded.launch.check))
    (folder / "in").write_bytes(bytes(recorded.launch) + b"".join(recorded.before))
    done = subprocess.run(
        [emulator, str(made), str(folder / "in"), str(folder / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    answer = (folder / "out").read_bytes()
    launch, at, buffers = Launch.from_buffer_copy(answer), len(bytes(recorded.launch)), []
    for before in recorded.before:
        buffers.append(answer[at : at + len(before)])
        at += len(before)
    return launch, buffers
