"""Finds the Metal line of an address in a loaded kernel, from the DWARF 4 line table of its library."""

import bisect
import functools
import struct
from pathlib import Path

from . import images

_METAL = b"metal"


class _Reader:
    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def number(self, form: str) -> int:
        value = struct.unpack_from("<" + form, self.data, self.at)[0]
        self.at += struct.calcsize("<" + form)
        return value

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.number("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def signed(self) -> int:
        start = self.at
        value = self.unsigned()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> (bits - 1) else value

    def string(self) -> bytes:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end]
        self.at = end + 1
        return text


def _unit(reader: _Reader) -> list[tuple[int, int]]:
    """(address, line) for each row of one compilation unit; the line is 0 for code that is not from the Metal text."""
    end = reader.number("I") + reader.at
    if reader.number("H") != 4:
        reader.at = end
        return []
    program = reader.number("I")
    program += reader.at
    minimum, _, _, line_base, line_range, opcode_base = (reader.number(form) for form in "BBBbBB")
    lengths = [0] + [reader.number("B") for _ in range(opcode_base - 1)]
    while reader.string():
        pass  # skips the names of directories
    files = [b""]
    while name := reader.string():
        files.append(name)
        for _ in range(3):
            reader.unsigned()
    reader.at = program
    rows, address, line, file = [], 0, 1, 1

    def emit():
        rows.append((address, line if files[file] == _METAL else 0))

    while reader.at < end:
        opcode = reader.number("B")
        if opcode >= opcode_base:
            step = opcode - opcode_base
            address += step // line_range * minimum
            line += line_base + step % line_range
            emit()
        elif opcode == 0:
            length = reader.unsigned()
            next_at = reader.at + length
            kind = reader.number("B")
            if kind == 1:  # the end of a sequence
                rows.append((address, 0))
                address, line, file = 0, 1, 1
            elif kind == 2:
                address = reader.number("Q")
            reader.at = next_at
        elif opcode == 1:
            emit()
        elif opcode == 2:
            address += reader.unsigned() * minimum
        elif opcode == 3:
            line += reader.signed()
        elif opcode == 4:
            file = reader.unsigned()
        elif opcode == 8:
            address += (255 - opcode_base) // line_range * minimum
        elif opcode == 9:
            address += reader.number("H")
        else:
            for _ in range(lengths[opcode]):
                reader.unsigned()
    return rows


# The first function of every kernel's object. Its address locates the object's code in the library.
_LANDMARK = b"_msl_kernel_entry"


def _table_of(path: Path) -> tuple[bytes, int]:
    """(line table of a library, what to add to its addresses)."""
    if path.suffix != ".dylib":
        return images.elf_section(path.read_bytes(), b".debug_line"), 0
    # On macOS the table stays in the object beside the library, and holds addresses of the object.
    kernel, library = path.with_suffix(".o").read_bytes(), path.read_bytes()
    found = [images.mach_o_symbols(image)[_LANDMARK][1] for image in (kernel, library)]
    return images.mach_o_section(kernel, b"__debug_line"), found[1] - found[0]


@functools.lru_cache(maxsize=64)
def line_table(path: Path) -> list[tuple[int, int]]:
    """(address in the file, line) for each entry of a library's line table, sorted by address."""
    data, shift = _table_of(Path(path))
    reader, rows = _Reader(data), []
    while reader.at < len(data):
        rows += [(address + shift, line) for address, line in _unit(reader)]
    return sorted(rows)


def line_at(path: Path, address: int) -> int:
    """The Metal line of a return address, counted from the load address of the library; 0 if no line is known."""
    rows = line_table(path)
    position = bisect.bisect_right(rows, (address - 1, 1 << 60)) - 1
    return rows[position][1] if position >= 0 else 0
