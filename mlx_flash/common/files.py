"""Files that several processes may read and write at the same time."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


def write_json(path: Path, contents: dict) -> None:
    """Writes a file as a whole or not at all, and makes its folder. Raises OSError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        part = Path(file.name)
    try:
        part.write_text(json.dumps(contents, indent=1), encoding="utf-8")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
