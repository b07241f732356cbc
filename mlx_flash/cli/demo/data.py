"""Real English text, as bytes, and the batches cut from it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...common.errors import CommandError

RULES = re.compile(r"[^\w\s]{4,}")  # underlines and table borders
LIMIT = 16 * 2**20  # bytes read of a file


def load_text(path: str | None, context: int) -> bytes:
    """The bytes of a UTF-8 file, or of the language reference that comes with Python.

    Raises CommandError when the file cannot be read, is not text or is shorter than one example.
    """
    if path is None:
        from pydoc_data.topics import topics

        joined = " ".join(text for _, text in sorted(topics.items()))
        return " ".join(RULES.sub(" ", joined).split()).encode()
    data = _read(Path(path))
    if len(data) <= context:
        raise CommandError(
            f"--text {path}: expected at least {context + 1} bytes of text, got {len(data)}. Give a longer file."
        )
    return data


def _read(path: Path) -> bytes:
    try:
        if not path.exists():
            raise CommandError(f"--text {path}: there is no such file. Check the path.")
        if not path.is_file():
            raise CommandError(f"--text {path}: expected a text file, got a folder or device. Name one file.")
        with path.open("rb") as file:
            data = file.read(LIMIT)
    except OSError as error:
        raise CommandError(f"--text {path}: cannot be read ({error.strerror}). Name a file you may read.") from error
    try:
        # Reading up to the limit may cut the last character in half.
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < LIMIT)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise CommandError(f"--text {path}: expected UTF-8 text, got binary data. Convert it or name another file.")
    return data


def batches(data: bytes, steps: int, batch: int, context: int, seed: int) -> Iterator[tuple[mx.array, mx.array]]:
    """(inputs, targets) of every step, int32 [batch, context] each; targets are one byte ahead."""
    values = np.frombuffer(data, np.uint8)
    draws = np.random.default_rng(seed)
    for _ in range(steps):
        starts = draws.integers(0, len(values) - context, (batch, 1))
        window = values[starts + np.arange(context + 1)].astype(np.int32)
        yield mx.array(window[:, :-1]), mx.array(window[:, 1:])
