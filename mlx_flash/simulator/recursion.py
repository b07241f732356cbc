"""Recursion, which Metal has not, through whatever the compiler resolves: members, overloads, templates.

The calls of the unoptimised code, in LLVM's words, tell: nothing is inlined in it, and no tail call made a loop.
"""

import re
from pathlib import Path

# Instead of an object; with names and lines.
OUTPUT = ("-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", "-gline-tables-only")
_DEFINED = re.compile(r'define .*?@("[^"]+"|[\w.$]+)\((?:.*!dbg !(\d+))?')
_CALLED = re.compile(r'\bcall .*?@("[^"]+"|[\w.$]+)\(')
_FACTS = re.compile(r'^!(\d+) = distinct !DISubprogram\(name: "([^"]*)".*?\bline: (\d+)', re.MULTILINE)


def kept_in(folder: Path) -> tuple[str, ...]:
    """Flags: what is compiled to an object, leave as code in `folder` before the first pass over it."""
    return ("-mllvm", "-print-before=annotation2metadata", "-mllvm", f"-ir-dump-directory={folder}")


def found(code: str) -> tuple[str, int] | None:
    """(name, line) of a function that reaches itself; (mangled name, 0) in code without lines."""
    calls: dict[str, set[str]] = {}
    places, inside = {}, set()
    for row in code.splitlines():
        if row.startswith("define "):
            start = _DEFINED.match(row)
            inside = calls.setdefault(start[1], set())
            places[start[1]] = start[2]
        elif " call " in row and (call := _CALLED.search(row)):
            inside.add(call[1])
    again = _cycle(calls)
    if again is None:
        return None
    facts = {number: (name, int(line)) for number, name, line in _FACTS.findall(code)}
    return facts.get(places[again], (again, 0))


def _cycle(calls: dict[str, set[str]]) -> str | None:
    """A caller that reaches itself."""
    for caller in calls:
        reached: set[str] = set()
        new = calls[caller]
        while new:
            reached |= new
            new = set().union(*(calls.get(callee, set()) for callee in new)) - reached
        if caller in reached:
            return caller
    return None
