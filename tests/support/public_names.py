"""The table of public names in README.md."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def public_rows() -> dict[str, str]:
    """Every name of the table of public names with its stability."""
    section = README.read_text(encoding="utf-8").split("## Public names\n")[1].split("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = line[1:-1].split(" | ")
        if line.startswith("| `") and len(cells) == 3 and "python -m" not in line and "MLX_FLASH" not in line:
            owner = ""
            for name in re.findall(r"`([\w.]+)`", cells[0]):
                owner = name.split(".")[0] if not name.startswith(".") and "." in name else owner
                found[owner + name if name.startswith(".") else name] = cells[2].strip()
    return found
