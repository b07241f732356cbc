"""This machine: its GPU and its macOS, where MLX and Python do not simply tell."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache

import mlx.core as mx

# A Python that was built with an SDK from before macOS 11, or before macOS 26, is told these in place of 11 and 26.
FORMER_NUMBERS = ("10", "16")
CPU = mx.DeviceType.cpu


def gpu_facts() -> dict:
    """MLX's facts about the GPU, or about the CPU where there is none.

    Asked without a device, MLX describes the default device, which users may set to the CPU.
    """
    try:
        return mx.device_info(mx.gpu) or mx.device_info(mx.cpu)
    except RuntimeError:
        return mx.device_info(mx.cpu)


def metal_gpu() -> bool:
    """Whether kernels of Metal can run: MLX has a Metal back-end, and that finds a GPU."""
    return mx.metal.is_available() and not why_no_metal()


def on_cpu(stream=None) -> bool:
    """Whether a stream or device that a user passed is the CPU's; None stands for MLX's default device. MLX's kernels
    on it raise an error."""
    if stream is None:  # asked in every call: the device's type is compared in half of the device's time
        return mx.default_device().type is CPU
    return getattr(stream, "device", stream) == mx.cpu


@cache
def why_no_metal() -> str:
    """Why MLX's Metal back-end finds no GPU; "" if it finds one. In virtual machines, sandboxes and sessions without a
    screen there may be none, and the back-end is "available" all the same."""
    try:
        mx.device_info(mx.gpu)
    except RuntimeError as error:
        return " ".join(str(error).split()) or "no GPU was found"
    return ""


@cache
def macos() -> str:
    """The version of macOS, "" on other systems."""
    told = platform.mac_ver()[0]
    if told.partition(".")[0] not in FORMER_NUMBERS:
        return told
    # The system answers a program of its own with the true number.
    environment = {**os.environ, "SYSTEM_VERSION_COMPAT": "0"}
    try:
        done = subprocess.run(
            ["sw_vers", "-productVersion"], capture_output=True, text=True, timeout=20, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return told
    return done.stdout.strip() or told
