"""tests/PROPERTIES.md and tests/REPORTS.md say what is tested where; what they name is there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
REPORTS = (TESTS / "REPORTS.md").read_text(encoding="utf-8")
PROPERTIES = (TESTS / "PROPERTIES.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in PROPERTIES.splitlines() if re.match(r"\| *\d+ *\|", line)]
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}


def test_every_property_has_a_row():
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1)) and len(ROWS) >= 30
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


def test_the_tests_of_reports_exist():
    for file, functions in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", REPORTS):
        assert file in SOURCES, file
        assert not functions or re.search(rf"^def {functions}\(", SOURCES[file], re.M), functions


def threads(heading: str) -> list[str]:
    """ "owner-number" of every thread in the list of a section."""
    section = REPORTS.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^- ([\w-]+): ([\d ]+)$", section, re.M)
    return [f"{owner}-{number}" for owner, numbers in lines for number in numbers.split()]


ELSEWHERE, ONLY_ON_A_MAC = threads("Bugs elsewhere"), threads("What only a Mac decides")
OWNERS = sorted({thread.rpartition("-")[0] for thread in ELSEWHERE}, key=len, reverse=True)
THREAD = re.compile(rf"(?<![\w-])({'|'.join(OWNERS)})((?:-\d+)+)(?![\w.])")


def named(text: str) -> set[str]:
    """Threads in the strings of a Python text: the ids of cases and the arguments of the marker `reported`."""
    nodes = ast.walk(ast.parse(text))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [match for string in strings for match in THREAD.findall(string.replace("-and-", " "))]
    return {f"{owner}-{number}" for owner, numbers in found for number in numbers[1:].split("-")}


@pytest.mark.long
def test_every_thread_is_named_by_a_test():
    found = set().union(*(named(text) for name, text in SOURCES.items() if name != Path(__file__).name))
    assert len(set(ELSEWHERE)) == len(ELSEWHERE) > 100
    assert found == set(ELSEWHERE), found ^ set(ELSEWHERE)
    assert not found & set(ONLY_ON_A_MAC)


def test_a_missing_thread_is_noticed():
    assert named('CASES = {"fla-769-1080-strides": 1, "mlx-lm-439": 2}') == {"fla-769", "fla-1080", "mlx-lm-439"}
    assert named('def test_mlx_3361(): return "mlx-33", "a-mlx-34", "mlx-35.2"') == {"mlx-33"}
