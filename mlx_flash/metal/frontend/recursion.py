"""Finds recursion, which Metal forbids, through everything that the compiler resolves: members, overloads, templates.

It is read off the calls in unoptimised LLVM code, in which nothing is inlined and no tail call has become a loop.
"""

import re
from pathlib import Path

# Output in place of an object, with names and lines.
OUTPUT = ("-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", "-gline-tables-only")
# The same for optimised code, which omits calls that are never reached, but keeps calls without an effect.
OPTIMISED = (
    "-O2",
    "-fno-sanitize=all",
    "-mllvm",
    "-opt-disable=ipsccp,sccp,function-attrs,rpo-function-attrs,tailcallelim",
    "-S",
    "-emit-llvm",
)
_DEFINED = re.compile(r'define .*?@("[^"]+"|[\w.$]+)\((?:.*!dbg !(\d+))?')
_CALLED = re.compile(r'\bcall .*?@("[^"]+"|[\w.$]+)\(')
_JUMP = re.compile(r"br label %([\w.]+)")
_LABEL = re.compile(r"[\w.]+:")
_FACTS = re.compile(r'^!(\d+) = distinct !DISubprogram\(name: "([^"]*)".*?\bline: (\d+)', re.MULTILINE)


def kept_in(folder: Path) -> tuple[str, ...]:
    """Compiler flags that write the LLVM text before its first pass to `folder`."""
    return ("-mllvm", "-print-before=annotation2metadata", "-mllvm", f"-ir-dump-directory={folder}")


def direct(code: str) -> bool:
    """Whether a function calls itself. Metal accepts functions that call each other in a circle if optimised code does
    not: PyTorch's gamma calls log_gamma of large numbers, which calls gamma of small ones."""
    calls, _ = _calls(code)
    return any(name in called for name, called in calls.items())


def found(code: str) -> tuple[str, int] | None:
    """(name, line) of a function that reaches itself; (mangled name, 0) in code without lines."""
    calls, places = _calls(code)
    again = _cycle(calls)
    if again is None:
        return None
    facts = {number: (name, int(line)) for number, name, line in _FACTS.findall(code)}
    return facts.get(places[again], (again, 0))


def _calls(code: str) -> tuple[dict[str, set[str]], dict[str, str | None]]:
    """({function: functions that it calls}, {function: the number of its place})."""
    calls: dict[str, set[str]] = {}
    places, inside, name, rows = {}, set(), "", code.splitlines()
    for at, row in enumerate(rows):
        if row.startswith("define "):
            start = _DEFINED.match(row)
            name = start[1]
            inside = calls.setdefault(name, set())
            places[name] = start[2]
        elif " call " in row and (call := _CALLED.search(row)):
            if call[1] != name or not _ends(rows, at + 1):
                inside.add(call[1])
    return calls, places


def _ends(rows: list[str], at: int) -> bool:
    """Whether a function without a result only returns from this row on.

    A call of itself there is the same as a jump to its start. MLX's kernels have such calls, and Apple's compiler
    accepts them.
    """
    while True:
        row = rows[at].strip()
        at += 1
        if jump := _JUMP.match(row):
            while at < len(rows) and not rows[at].startswith(f"{jump[1]}:"):
                if rows[at] == "}":
                    return False  # it branches back, to a loop
                at += 1
        elif row and "@llvm." not in row and not _LABEL.match(row):
            return row.startswith("ret void")


def _cycle(calls: dict[str, set[str]]) -> str | None:
    """The name of a function that reaches itself; None if there is none."""
    for caller in calls:
        reached: set[str] = set()
        new = calls[caller]
        while new:
            reached |= new
            new = set().union(*(calls.get(callee, set()) for callee in new)) - reached
        if caller in reached:
            return caller
    return None
