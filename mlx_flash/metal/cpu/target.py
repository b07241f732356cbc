"""The system and the machine that kernels are compiled for: flags, file formats and linking."""

import functools
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..frontend.errors import ToolchainError

_MACHINES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_SYSTEMS = {"Linux": "linux-gnu", "Darwin": "apple-macosx13.0"}
_AVX2 = ("avx2", "f16c", "fma", "bmi2", "movbe")


@dataclass(frozen=True)
class Target:
    """A system ("Linux" or "Darwin"), a machine ("x86_64" or "aarch64") and further flags for its processor."""

    system: str
    machine: str
    processor: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """The compiler's arguments to generate code for the target."""
        return (f"--target={self.machine}-{_SYSTEMS[self.system]}", *self.processor)

    @property
    def mach_o(self) -> bool:
        """Whether libraries are Mach-O files, which leave the line table in the objects that they were linked from."""
        return self.system == "Darwin"

    @property
    def suffix(self) -> str:
        return ".dylib" if self.mach_o else ".so"

    def link(self, linker: tuple[str, ...], objects: list[Path], library: Path) -> subprocess.CompletedProcess:
        """Links a shared library. `linker`: the one of `toolchain()`. On macOS it is signed ad hoc, as Apple silicon
        demands."""
        command = [*linker, "-shared", *map(str, objects), "-o", str(library)]
        if self.mach_o and linker[-1] == "ld.lld":  # ziglang's lld does not link Mach-O, Zig itself does
            scratch = str(library.parent)
            command = [
                linker[0], "build-lib", "-dynamic", "-target", f"{self.machine}-macos.13.0", "-lc", *map(str, objects),
                # Zig's runtime library is not needed, and building it takes half a minute.
                "-fno-compiler-rt", "-fno-ubsan-rt", f"-femit-bin={library}", "-fsoname=@rpath/kernel.dylib",
                "--cache-dir", scratch, "--global-cache-dir", scratch,
            ]  # fmt: skip
        elif self.mach_o:
            command += ["-lSystem"]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")


@functools.cache
def here() -> Target:
    """The target for this system. Raises ToolchainError if the simulator does not run here."""
    system, machine = sys.platform.capitalize(), platform.machine()
    if system not in _SYSTEMS or machine not in _MACHINES:
        raise ToolchainError(
            f"The Metal simulator runs on Linux and macOS with x86-64 or arm64 processors, not on {system} {machine}: "
            "use the reference backend"
        )
    return Target(system, _MACHINES[machine], _machine_flags(system, _MACHINES[machine]))


def _machine_flags(system: str, machine: str) -> tuple[str, ...]:
    if system == "Darwin" and machine == "aarch64":
        return ("-mcpu=apple-m1", "-fno-stack-protector")
    if system == "Linux" and machine == "x86_64":
        try:
            features = Path("/proc/cpuinfo").read_text()
        except OSError:
            features = ""
        if all(f" {feature}" in features for feature in _AVX2):
            return ("-march=x86-64-v3",)
    return ()
