"""Reads sections and symbols of compiled files: ELF libraries on Linux, Mach-O libraries and objects on macOS."""

import struct
from pathlib import Path

_MACH_O = 0xFEEDFACF
_LC_SYMTAB, _LC_SEGMENT_64 = 0x2, 0x19


def code(library: Path) -> bytes:
    """The machine code of a shared library."""
    image = library.read_bytes()
    return mach_o_section(image, b"__text") if library.suffix == ".dylib" else elf_section(image, b".text")


def elf_section(image: bytes, wanted: bytes) -> bytes:
    """The contents of a section of a 64-bit ELF file, by name; empty if there is no such section."""
    table = struct.unpack_from("<Q", image, 40)[0]
    size, count, names = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + i * size) for i in range(count)]
    names_at = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = names_at + name
        if image[start : image.index(b"\0", start)] == wanted:
            return image[offset : offset + length]
    return b""


def load_commands(image: bytes) -> list[tuple[int, int]]:
    """(kind, offset in the file) for each load command of a 64-bit Mach-O file. Raises ValueError for other files."""
    magic, _, _, _, count = struct.unpack_from("<5I", image)
    if magic != _MACH_O:
        raise ValueError(f"expected a 64-bit Mach-O file, got one that begins with {magic:#x}")
    found, at = [], 32
    for _ in range(count):
        kind, size = struct.unpack_from("<II", image, at)
        found.append((kind, at))
        at += size
    return found


def mach_o_section(image: bytes, wanted: bytes) -> bytes:
    """The contents of a section of a 64-bit Mach-O file, by name; empty if there is no such section."""
    for kind, at in load_commands(image):
        if kind != _LC_SEGMENT_64:
            continue
        for header in range(at + 72, at + 72 + 80 * struct.unpack_from("<I", image, at + 64)[0], 80):
            if image[header : header + 16].rstrip(b"\0") == wanted:
                size, offset = struct.unpack_from("<QI", image, header + 40)
                return image[offset : offset + size]
    return b""


def mach_o_symbols(image: bytes) -> dict[bytes, tuple[int, int]]:
    """{name: (type byte, address)} for the symbols of a 64-bit Mach-O file, without symbols for debuggers."""
    symbols = {}
    for kind, at in load_commands(image):
        if kind != _LC_SYMTAB:
            continue
        table, count, names, _ = struct.unpack_from("<4I", image, at + 8)
        for entry in range(table, table + 16 * count, 16):
            name, what, _, _, address = struct.unpack_from("<IBBHQ", image, entry)
            if not what & 0xE0:
                symbols[image[names + name : image.index(b"\0", names + name)]] = (what, address)
    return symbols
