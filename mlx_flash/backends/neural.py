"""The choice of kernels for neural accelerators (M5, A19): by GPU, by macOS, and by a probe of the matrix unit.

All other Macs use the kernels for 8x8 matrices, and `explain` says why.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..common.machine import gpu_facts, macos
from ..common.mlx_private import chip_letter
from ..common.scalars import dotted
from ..kernels import neural_probe
from ..kernels.devices import Family
from . import guard
from .prober import PROBER

LEAST_MACOS = (26, 2)  # compilers of earlier versions fail, or give wrong results
LEAST, LEAST_OF_PHONES = 17, 18  # generations of GPUs: M5 is g17, A19 g18p; g17p, of A18 Pro, has no accelerators


def reason_against(architecture: str, macos: str) -> str:
    """Why a GPU of that architecture under that macOS is not probed; "" if it may have neural accelerators."""
    found = re.search(r"_g(\d+)", architecture)
    least = LEAST_OF_PHONES if chip_letter(architecture) == "p" else LEAST
    if not found or int(found.group(1)) < least:
        return f"{architecture or 'this GPU'} has no neural accelerators"
    if not re.fullmatch(r"\d+(\.\d+)*", macos):
        return f"neural accelerators need macOS {dotted(LEAST_MACOS)}, and this system says {macos!r}"
    if tuple(map(int, macos.split("."))) < LEAST_MACOS:
        return f"neural accelerators need macOS {dotted(LEAST_MACOS)}, and this is {macos}"
    return ""


def available(family: Family) -> tuple[Family, str]:
    """(the family as this Mac can use it, why it cannot use neural accelerators or ""). The unit is probed once per
    machine, in a child process; the answer is kept like the verdicts on kernels."""
    if family.tensor != "nax":
        return family, ""
    reason = reason_against(str(gpu_facts().get("architecture", "")), macos())
    reason = reason or guard.verdict_of(neural_probe.kernel(), PROBER.ask_unit).reason
    return (replace(family, tensor=""), reason) if reason else (family, "")
