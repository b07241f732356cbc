"""PTX, compressed, in the container that drivers load ("fatbin").

MLX copies and hashes a kernel's code at every call, and a kernel has 100 to 220 KB of PTX: a third of it costs a third
of the time. NVIDIA documents no format, but its `fatbinary` has written this one since CUDA 5; whoever packs a kernel
asks the driver whether it takes it, and keeps to the PTX otherwise.
"""

from __future__ import annotations

import re
import struct

_MAGIC, _VERSION = 0xBA55ED50, 1
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all that follows
# kind and version; bytes of this header, of the payload, of what is compressed in it; where its options begin;
# PTX version (minor, major), architecture; a name's place and length; flags; nothing; bytes uncompressed; the options
_ENTRY = struct.Struct("<HHIQIIHHIIIQQQQQ")
_PTX, _PTX_VERSION, _OPTIONS_AT, _OPTIONS = 1, 0x101, 64, 72
_64_BIT, _LINUX, _LZ4, _ONE_ARCHITECTURE = 0x1, 0x10, 0x2000, 0x100000


def packed(code: bytes) -> bytes | None:
    """The PTX as a fatbin; None where the package lz4 is missing."""
    try:
        import lz4.block
    except ImportError:
        return None
    major, minor = map(int, re.search(rb"^\.version (\d+)\.(\d+)", code, re.M).groups())
    architecture, only = re.search(rb"^\.target sm_(\d+)(a?)", code, re.M).groups()
    text = code + b"\0"
    payload = lz4.block.compress(text, mode="high_compression", store_size=False)
    padded = payload + bytes(-len(payload) % 8)
    flags = _64_BIT | _LINUX | _LZ4 | (_ONE_ARCHITECTURE if only else 0)
    entry = _ENTRY.pack(
        _PTX, _PTX_VERSION, _ENTRY.size, len(padded), len(payload), _OPTIONS_AT, minor, major, int(architecture), 0, 0,
        flags, 0, len(text), _OPTIONS, 0,
    )  # fmt: skip
    return _HEADER.pack(_MAGIC, _VERSION, _HEADER.size, len(entry) + len(padded)) + entry + padded
