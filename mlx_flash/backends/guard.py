"""Whether a kernel may be used on this machine: before its first use a child process tries it on a tiny problem.

The kernels were not tested with every compiler and GPU that they will meet. Verdicts are kept on disk by chip, system,
MLX and the kernel's text, so that a machine tries each kernel once. Faults that only large problems show are not found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import threading
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..common.environment import switched_off
from ..common.errors import warn
from ..common.files import write_json
from ..common.machine import gpu_facts, macos
from ..kernels.plan import Plan
from ..kernels.source import Kernel
from ..metal.cpu.compiler import cache_directory
from .prober import PROBER, VARIABLE, Answer

LOGGER = logging.getLogger("mlx_flash")
DISTRIBUTION = "mlx-flash-attention"
_lock = threading.Lock()
_warned: list[str] = []


class Verdict(NamedTuple):
    """`reason`: why the kernel is not used, or "". `error`: the largest error, relative to the result's largest
    magnitude. `seconds`: until the first result, mostly for compilation. `tried`: False where the probe was skipped.
    `lasting`: False where the kernel could not be tried, and another process will try it again."""

    reason: str = ""
    error: float = 0.0
    seconds: float = 0.0
    tried: bool = True
    lasting: bool = True

    @property
    def ok(self) -> bool:
        return not self.reason


def verdict(plan: Plan) -> Verdict:
    """The verdict on the plan's kernel, from memory, from disk, or by a probe. Warns once, of the first that fails.

    Safe in traces and in any thread, since nothing is evaluated in this process.
    """
    found = plan.resources.get("verdict")
    if found is None:
        with _lock:
            found = known(plan)
            if found is None:
                found = Verdict(tried=False) if skipped() else _tried(plan)
            plan.resources["verdict"] = found
        if not found.ok:
            _warn(plan, found)
    return found


def known(plan: Plan) -> Verdict | None:
    """The verdict on the plan's kernel if this or another process found it before; the kernel is not tried."""
    return plan.resources.get("verdict") or (None if skipped() else _read(_file(plan.kernel), _identity(plan.kernel)))


def tried_again(plan: Plan) -> Verdict:
    """The verdict of a new probe, even where one is known; for `python -m mlx_flash check`."""
    with _lock:
        found = plan.resources["verdict"] = _tried(plan)
    return found


def describe(plan: Plan) -> str:
    """A sentence about the verdict on the plan's kernel on this machine; the kernel is not tried."""
    found = known(plan)
    if found is None:
        return "not tried, as MLX_FLASH_PROBE=0 says" if skipped() else "not tried yet: its first use will"
    if not found.tried:
        return "not tried, as MLX_FLASH_PROBE=0 said"
    if found.ok:
        return f"passed its test: off by {found.error:.1e} of the largest magnitude, {found.seconds:.1f} s"
    return f"failed its test, so that another kernel or the reference takes its place: {found.reason}"


def skipped() -> bool:
    """Whether MLX_FLASH_PROBE=0 says that kernels are used without a probe. Raises ValueError for other values."""
    return switched_off(VARIABLE, "Set 0 to use kernels that were not tried, or unset it.")


def folder() -> Path:
    """The folder of the verdicts, one file each. A user without a home folder has one that cannot be written."""
    try:
        return cache_directory().parent / "verdicts"
    except RuntimeError:
        return Path(os.devnull) / "verdicts"


def keeps() -> bool:
    """Whether verdicts can be kept. Otherwise every process tries its kernels again."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder(), os.W_OK)


@cache
def machine_facts() -> dict[str, str]:
    """The scope of a verdict: chip, system and MLX."""
    device = gpu_facts()
    chip = f"{device.get('device_name', 'unknown')} ({device.get('architecture', 'unknown')})"
    system = f"{platform.system()} {macos() or platform.release()}"
    return {"chip": chip, "system": system, "mlx": mx.__version__}


def tracker() -> str:
    """The address for reports of failures, from the metadata of the installed package; words if there is none."""
    try:
        urls = metadata.metadata(DISTRIBUTION).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = _urls_of_the_checkout()
    named = dict(url.split(", ", 1) for url in urls)
    found = next((url for name, url in named.items() if name.lower() in ("issues", "bug tracker", "tracker")), None)
    return found or "the project's issue tracker"


def _urls_of_the_checkout() -> list[str]:
    """`[project.urls]` of the pyproject.toml beside the package, in the form of installed metadata."""
    path = Path(__file__).parents[2] / "pyproject.toml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if "[project.urls]" not in lines:
        return []
    found = []
    for line in lines[lines.index("[project.urls]") + 1 :]:
        name, equals, url = line.partition("=")
        if not equals:
            break
        found.append(f"{name.strip().strip(chr(34))}, {url.strip().strip(chr(34))}")
    return found


def verdict_of(kernel: Kernel, ask: Callable[[Kernel], Answer]) -> Verdict:
    """The verdict on a kernel that belongs to no plan: from disk, or from the answer of `ask`. Where MLX_FLASH_PROBE=0
    forbids probes, it is refused."""
    with _lock:
        if skipped():
            return Verdict("it was not tried, as MLX_FLASH_PROBE=0 says", tried=False)
        return _read(_file(kernel), _identity(kernel)) or _kept(kernel, ask(kernel))


def _tried(plan: Plan) -> Verdict:
    return _kept(plan.kernel, PROBER.ask(plan))


def _kept(kernel: Kernel, answer: Answer) -> Verdict:
    """The verdict of an answer, which is written to disk if it would be found again. A kernel that did not end in time
    is tried by one more process before that counts."""
    found = Verdict(answer.reason, answer.error, answer.seconds, lasting=answer.lasting)
    LOGGER.info("tried %s: %s", kernel.name, found.reason or f"right, {found.seconds:.1f} s")
    file = _file(kernel)
    late_before = file.with_suffix(".late")
    if answer.late and not late_before.exists():
        _write(late_before, {"kernel": kernel.name})
    elif answer.lasting:
        _write(file, {**_identity(kernel), **found._asdict()})
    return found


def _identity(kernel: Kernel) -> dict[str, str]:
    text = "\0".join((kernel.name, kernel.header, kernel.body))
    return {**machine_facts(), "kernel": kernel.name, "text": hashlib.sha256(text.encode()).hexdigest()}


def _file(kernel: Kernel) -> Path:
    identity = _identity(kernel)
    return folder() / f"{hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:40]}.json"


def _read(path: Path, identity: dict[str, str]) -> Verdict | None:
    """The verdict in a file; None where the file is missing, damaged or about another kernel."""
    try:
        kept = json.loads(path.read_bytes())
        found = Verdict(kept["reason"], float(kept["error"]), float(kept["seconds"]))
        same = all(kept[name] == value for name, value in identity.items())
        return found if same and isinstance(found.reason, str) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _write(path: Path, contents: dict) -> None:
    try:
        write_json(path, contents)
    except OSError as error:
        LOGGER.info("the verdict on a kernel is not kept, and will be found again: %s", error)


def _warn(plan: Plan, found: Verdict) -> None:
    if _warned:
        LOGGER.info("kernel %s is not used: %s", plan.kernel.name, found.reason)
        return
    _warned.append(plan.kernel.name)
    if not found.lasting:
        warn(
            f"mlx_flash cannot test its kernels in this process; slower operations of MLX take the place of those that "
            f"were never tested. `python -m mlx_flash check` tests the common ones once for all processes, and "
            f"{VARIABLE}=0 uses kernels without a test. Kernel {plan.kernel.name}: {found.reason}"
        )
        return
    warn(
        f"mlx_flash does not use a kernel that failed its test on this machine; slower operations of MLX take its "
        f"place, and that of others that fail. `python -m mlx_flash check` tests it again. Please report it to "
        f"{tracker()}, with what `python -m mlx_flash check --report` prints. Kernel {plan.kernel.name} on "
        f"{machine_facts()['chip']}, {machine_facts()['system']}, MLX {machine_facts()['mlx']}: {found.reason}"
    )
