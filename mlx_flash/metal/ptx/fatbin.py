"""Compressed PTX in the container format of drivers, a "fatbin".

MLX copies and hashes a kernel's code at every call, and a kernel has 100 to 220 KB of PTX; a third of the bytes take a
third of the time. NVIDIA does not document the format, but its `fatbinary` has written it since CUDA 5. The caller asks
the driver whether it loads a compressed kernel, and uses the PTX otherwise.
"""

from __future__ import annotations

import re
import struct

_MAGIC, _VERSION = 0xBA55ED50, 1
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all that follows
# kind, version; bytes of this header, of the payload, of the compressed part; offset of the options; PTX version
# (minor, major), architecture; offset and length of a name; flags; zero; bytes uncompressed; options
_ENTRY = struct.Struct("<HHIQIIHHIIIQQQQQ")
_PTX, _PTX_VERSION, _OPTIONS_AT, _OPTIONS = 1, 0x101, 64, 72
_64_BIT, _LINUX, _LZ4, _ONE_ARCHITECTURE = 0x1, 0x10, 0x2000, 0x100000


def compressed(code: bytes) -> bytes | None:
    """The PTX as a fatbin, or None if the package lz4 is not installed."""
    try:
        import lz4.block
    except ImportError:
        return None
    major, minor = map(int, re.search(rb"^\.version (\d+)\.(\d+)", code, re.M).groups())
    architecture, only_this = re.search(rb"^\.target sm_(\d+)(a?)", code, re.M).groups()
    text = code + b"\0"
    payload = lz4.block.compress(text, mode="high_compression", store_size=False)
    padded = payload + bytes(-len(payload) % 8)
    flags = _64_BIT | _LINUX | _LZ4 | (_ONE_ARCHITECTURE if only_this else 0)
    entry = _ENTRY.pack(
        _PTX, _PTX_VERSION, _ENTRY.size, len(padded), len(payload), _OPTIONS_AT, minor, major, int(architecture), 0, 0,
        flags, 0, len(text), _OPTIONS, 0,
    )  # fmt: skip
    return _HEADER.pack(_MAGIC, _VERSION, _HEADER.size, len(entry) + len(padded)) + entry + padded
