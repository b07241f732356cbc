"""Runs the preprocessor over a Metal source and remembers the file and line that every line came from."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..frontend.errors import CompileError
from .compiler import toolchain

_HERE = Path(__file__).parent
_MARKER = re.compile(r'#(?:line)?\s+(\d+)\s+"([^"]*)"')
_VERSION = re.compile(r"(\d)\.(\d)")


class Origin:
    """(file, line) of every line of a preprocessed text."""

    def __init__(self, places: list[tuple[str, int]]):
        self.places = places

    def name(self, line: int) -> str:
        """`file:line` of a line of the preprocessed text."""
        if not 0 < line <= len(self.places):
            return f"line {line}"
        file, number = self.places[line - 1]
        return f"{file}:{number}" if file else f"line {number}"

    def rewrite(self, message: str) -> str:
        """A compiler's message with lines of the source files in place of lines of the preprocessed text."""
        return re.sub(r"\bline (\d+)", lambda m: self.name(int(m[1])), message)


def version_macros(language: str) -> list[str]:
    """The macros that Metal's compiler predefines for a language version such as "3.1"."""
    version = _VERSION.fullmatch(language)
    if not version:
        raise ValueError(f'language must be a version of the Metal Shading Language such as "3.1", not {language!r}.')
    number = int(version[1]) * 100 + int(version[2]) * 10
    macros = [f"-D__METAL_VERSION__={number}", "-D__METAL__=1", "-D__METAL_MACOS__=1"]
    return macros + (["-D__HAVE_BFLOAT__=1"] if number >= 310 else [])


def preprocess(source: str, include_dirs: Sequence[str | Path], language: str) -> tuple[str, Origin]:
    """(text without directives except pragmas, origin of its lines).

    Files are found below `include_dirs` only.
    """
    command, _, _ = toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "source.metal"
        path.write_text(source, encoding="utf-8")
        searched = [flag for folder in [*include_dirs, _HERE / "include"] for flag in ("-I", str(folder))]
        done = subprocess.run(
            [*command, "-E", "-x", "c++", "-nostdinc", "-undef", "-Wno-everything",
             "-fno-color-diagnostics", "-fno-caret-diagnostics",
             *version_macros(language), *searched, str(path)],
            capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        if done.returncode:
            raise CompileError(_short(done.stderr, str(path), include_dirs))
        return _without_markers(done.stdout, str(path), include_dirs)


def _short(text: str, path: str, include_dirs) -> str:
    for folder in include_dirs:
        text = text.replace(f"{folder}/", "")
    return text.replace(f"{path}:", "line ").replace(f"{_HERE}/include/", "")


def _without_markers(text: str, path: str, include_dirs) -> tuple[str, Origin]:
    lines, places = [], []
    file, number = "", 1
    for line in text.splitlines():
        marker = _MARKER.match(line)
        if marker:
            number = int(marker[1])
            file = "" if marker[2] == path else _short(marker[2], path, include_dirs)
            continue
        lines.append(line)
        places.append((file, number))
        number += 1
    return "\n".join(lines) + "\n", Origin(places)
