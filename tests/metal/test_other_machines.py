"""The simulator beyond Linux on x86-64: arm64 Linux is emulated; of macOS, what its files show without a Mac.

That a Mac loads and runs such a library only a Mac can show: all other tests of the simulator do so there.
"""

import hashlib
import re
import shutil
import struct

import bounds
import mlx.core as mx
import numpy as np
import other_machine
import pytest

import mlx_flash
from mlx_flash.metal.cpu import compiler, target
from mlx_flash.metal.cpu.report import Kind
from mlx_flash.metal.cpu.target import Target
from mlx_flash.metal.frontend import images, lines
from mlx_flash.metal.frontend.errors import SimulatorError, ToolchainError
from mlx_flash.metal.frontend.language import prefix
from mlx_flash.metal.frontend.translate import translate
from mlx_flash.simulator import metal_kernel, mode

pytestmark = pytest.mark.simulator
MAC = Target("Darwin", "aarch64", ("-mcpu=apple-m1", "-fno-stack-protector"))
EMULATOR = "qemu-aarch64"
RACE = """
threadgroup float shared[64];
uint i = thread_position_in_threadgroup.x;
shared[i] = x[i];
y[i] = shared[63 - i];
"""
BARRIERS = """
threadgroup float shared[64];
uint i = thread_position_in_threadgroup.x;
shared[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
float other = shared[63 - i];

threadgroup_barrier(mem_flags::mem_threadgroup);
shared[i] = other;
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = exp2(shared[i ^ 1]);
"""


def reversing(source):
    kernel = metal_kernel(name="reversing", input_names=["x"], output_names=["y"], source=source)
    x = mx.arange(64, dtype=mx.float32) / 64
    return kernel(
        inputs=[x], grid=(64, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32]
    )


@pytest.fixture
def emulator():
    found = shutil.which(EMULATOR)
    if not found:
        pytest.skip(f"{EMULATOR} is not installed (Debian's package qemu-user)")
    return found


def compare(recorded, emulator, folder, dtype):
    launch, buffers = other_machine.replay(recorded, emulator, folder)
    assert launch.report_count == 0
    for here, there, item, writable in zip(recorded.after, buffers, recorded.launch.buffers, recorded.writable):
        if not writable:
            assert here == there
            continue
        words = np.float32 if item.item == 4 else np.float16
        here, there = (np.frombuffer(data, words) for data in (here, there))
        if item.item == 2 and dtype == mx.bfloat16:
            here, there = ((x.view(np.uint16).astype(np.uint32) << 16).view(np.float32) for x in (here, there))
        name = "float32" if item.item == 4 else str(dtype).rpartition(".")[2]
        assert np.isfinite(here).all()
        most = bounds.OTHER_MACHINE * bounds.ulp(float(np.abs(here).max()), name)
        assert np.abs(here.astype(np.float64) - there).max() <= most


@pytest.mark.slow
@pytest.mark.parametrize("simulator_mode", ("fast", "check"))
@pytest.mark.parametrize("dtype", (mx.float32, mx.float16, mx.bfloat16), ids=str)
def test_the_kernels_of_a_call_run_on_arm64(monkeypatch, emulator, tmp_path, dtype, simulator_mode):
    q, k, v = (mx.random.normal((1, heads, 40, 64), key=mx.random.key(i)).astype(dtype)
               for i, heads in enumerate((2, 1, 1)))  # fmt: skip
    recorded = other_machine.record(monkeypatch)
    separate = simulator_mode == "fast"  # delta has a kernel of its own where the gradient of the LSE enters it

    def loss(q, k, v):
        found = mlx_flash.attention(q, k, v, causal=True, return_lse=separate)
        return sum(one.astype(mx.float32).square().sum() for one in (found if separate else [found]))

    with mode(simulator_mode), mlx_flash.use_backend("simulator", "apple7"):
        mx.eval(mx.grad(loss, (0, 1, 2))(q, k, v))
    assert len(recorded) == 3 + separate  # forward, the two of the gradients, and delta
    for number, launch in enumerate(recorded):
        folder = tmp_path / str(number)
        folder.mkdir()
        compare(launch, emulator, folder, dtype)


@pytest.mark.slow
def test_a_race_is_reported_on_arm64(monkeypatch, emulator, tmp_path):
    recorded = other_machine.record(monkeypatch)
    with mode("check"), pytest.raises(SimulatorError):
        reversing(RACE)
    launch, _ = other_machine.replay(recorded[0], emulator, tmp_path)
    report = launch.reports[0]
    assert launch.report_count and report.kind == Kind.THREADGROUP_RACE
    text = recorded[0].kernel.text.splitlines()
    places = [text[lines.line_at(tmp_path / "program", pc) - 1] for pc in (report.pc, report.other_pc)]
    assert sorted(place.strip() for place in places) == ["shared[i] = x[i];", "y[i] = shared[63 - i];"]


@pytest.fixture(scope="module", params=(False, True), ids=("fast", "check"))
def library(request):
    """(a kernel for macOS as a library, its Metal text)."""
    kernel = metal_kernel(name="reversing", input_names=["x"], output_names=["y"], source=BARRIERS)
    text, _ = kernel.text(((mx.float32, 1, 64),), [], (mx.float32,))
    translation = translate(text, 3.1)
    path = compiler.build(
        prefix("3.1") + translation.text, translation.entry(), "mlx.h", request.param, lines=True, target=MAC
    )  # fmt: skip
    return path, text


def test_a_library_for_macos_is_linked_and_exports_what_python_calls(library):
    image = library[0].read_bytes()
    kind, processor = struct.unpack_from("<I", image, 12)[0], struct.unpack_from("<I", image, 4)[0]
    assert (kind, processor) == (6, 0x0100000C)  # MH_DYLIB, CPU_TYPE_ARM64
    symbols = images.mach_o_symbols(image)
    exported = {name for name, (what, _) in symbols.items() if what & 0x11 == 0x01 and what & 0x0E}
    assert {b"_msl_run", b"_msl_create_region", b"_msl_image", b"_msl_reserve", b"_msl_forget"} <= exported
    undefined = {name.decode() for name, (what, _) in symbols.items() if not what & 0x0E}
    assert undefined <= {
        "_exp2f", "_log2f", "_expf", "_logf", "_memcpy", "_memmove", "_memset", "_bzero", "_mmap", "_munmap",
        "dyld_stub_binder",
    }  # fmt: skip


def test_a_library_for_macos_is_signed(library):
    """Ad hoc, as Apple silicon demands of all code: the signature holds the hash of each page of 4 KiB."""
    image = library[0].read_bytes()
    (at,) = (at for kind, at in images.load_commands(image) if kind == 0x1D)  # LC_CODE_SIGNATURE
    blob = struct.unpack_from("<I", image, at + 8)[0]
    assert struct.unpack_from(">I", image, blob)[0] == 0xFADE0CC0
    directory = blob + struct.unpack_from(">I", image, blob + 16)[0]
    magic, _, _, flags, hashes, _, _, pages, limit = struct.unpack_from(">9I", image, directory)
    size, kind, _, page = struct.unpack_from(">4B", image, directory + 36)
    assert magic == 0xFADE0C02 and flags & 2 and (size, kind) == (32, 2) and limit == blob
    for number in range(pages):
        start = number << page
        digest = hashlib.sha256(image[start : min(start + (1 << page), limit)]).digest()
        place = directory + hashes + 32 * number
        assert image[place : place + 32] == digest


def test_places_in_a_library_for_macos_are_lines_of_the_text(library):
    """The address after each call of the barrier, as a report would have it."""
    path, text = library
    image = path.read_bytes()
    barrier = images.mach_o_symbols(image)[b"_msl_threadgroup_barrier"][1]
    code = np.frombuffer(image[: len(image) // 4 * 4], "<u4")  # the text segment begins with the file
    found = []
    for word in range(len(code)):
        if code[word] >> 26 == 0b100101:  # BL
            offset = int(code[word] & 0x3FFFFFF)
            offset -= (offset >> 25) << 26
            if 4 * (word + offset) == barrier:
                found.append(lines.line_at(path, 4 * word + 4))
    wanted = [number for number, line in enumerate(text.splitlines(), 1) if "threadgroup_barrier(" in line]
    assert found and found == wanted * (len(found) // len(wanted))  # the kernel, and its copy in the entry point


@pytest.mark.parametrize(("system", "machine"), (("Win32", "AMD64"), ("Linux", "riscv64")))
def test_another_system_is_refused_by_name(monkeypatch, system, machine):
    monkeypatch.setattr(target.sys, "platform", system.lower())
    monkeypatch.setattr(target.platform, "machine", lambda: machine)
    with pytest.raises(ToolchainError, match=re.escape(f"not on {system} {machine}")):
        target.here.__wrapped__()
