"""tests/README.md says what is tested where; what it names is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = (TESTS / "README.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in README.splitlines() if re.match(r"\| *\d+ *\|", line)]
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}


def test_every_property_has_a_row():
    assert [int(row[0]) for row in ROWS] == list(range(1, 31))
    assert all(len(row) == 5 and all(cell.strip() for cell in row) for row in ROWS)


def test_the_named_tests_exist():
    """`test_file.py`, or `test_file.py::test_one`; several functions follow one file with commas."""
    for number, name, _, where, _ in ROWS:
        named = re.findall(r"`(test_\w+\.py)(?:::([\w, ]+))?`", where)
        assert named or "only a Mac" in where, name
        for file, functions in named:
            assert file in SOURCES, f"row {number}: {file}"
            for function in filter(None, functions.split(", ")):
                assert re.search(rf"^def {function}\(", SOURCES[file], re.M), f"row {number}: {file}::{function}"


def threads(heading: str) -> list[tuple[str, str]]:
    """(owner, number) of the section's list."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^- ([\w-]+): ([\d ]+)$", section, re.M)
    return [(owner, number) for owner, numbers in lines for number in numbers.split()]


def named(owner: str, number: str) -> bool:
    """In the name of a test, or of a case that is its id: the owner, and the number right behind it or another's."""
    thread = owner.replace("-", "[-_]") + rf"(?:[-_]\d+)*[-_]{number}(?!\d)"
    names = re.compile(rf'^def test_(?:\w+_)?{thread}|"[\w-]*{thread}[\w-]*"', re.M)
    return any(names.search(text) for text in SOURCES.values())


def test_every_bug_elsewhere_has_a_test_named_after_it():
    listed = threads("Bugs elsewhere")
    assert len(set(listed)) == len(listed) > 100
    assert [thread for thread in listed if not named(*thread)] == []


def test_a_thread_without_a_test_would_be_missed():
    assert not named("mlx", "31186") and not named("burn", "448") and not named("mlx-lm", "4484")
    assert {thread for thread in threads("What only a Mac decides") if named(*thread)} == set()
