"""Recursion, which Metal has not, through whatever the compiler resolves: members, overloads, templates.

Names tell which texts may recurse; the calls of the unoptimised code, in LLVM's words, tell which do.
"""

import functools
import re

from .rules import defined_functions
from .tokens import Token, tokenize

# Code as the language means it: nothing inlined, no tail call made a loop.
OUTPUT = ("-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", "-gline-tables-only")
_DEFINED = re.compile(r'^define .*?@("[^"]+"|[\w.$]+)\(.*!dbg !(\d+)')
_CALLED = re.compile(r'\bcall .*?@("[^"]+"|[\w.$]+)\(')
_FACTS = re.compile(r'^!(\d+) = distinct !DISubprogram\(name: "([^"]*)".*?\bline: (\d+)')


@functools.lru_cache(maxsize=4)  # the kernels of one library come one after the other
def possible(text: str) -> bool:
    """Does a function call one of a name that leads back to its own? Overloads share a name, so this is no proof."""
    tokens = tokenize(text)
    calls: dict[str, set[str]] = {}
    functions = [(_name(tokens, name, opening), body, end) for name, opening, _, body, end in defined_functions(tokens)]
    names = {name for name, *_ in functions}
    for name, body, end in functions:
        words = {tokens[i].text for i in range(body, end) if tokens[i + 1].text in ("(", "<")}
        marks = {f"operator{tokens[i].text}" for i in range(body + 1, end) if tokens[i].kind == "mark"}
        calls.setdefault(name, set()).update((words | marks) & names)
    return _cycle(calls) is not None


def _name(tokens: list[Token], name: int, opening: int) -> str:
    """A function's name; of operators with their mark, the first half of a bracket."""
    for index in range(opening - 1, max(0, opening - 4), -1):
        if tokens[index].text == "operator":
            return f"operator{tokens[index + 1].text}"
    return tokens[name].text


def found(code: str) -> tuple[str, int] | None:
    """(name, line) of a function that reaches itself."""
    calls: dict[str, set[str]] = {}
    places, facts, inside = {}, {}, set()
    for row in code.splitlines():
        if start := _DEFINED.match(row):
            inside = calls.setdefault(start[1], set())
            places[start[1]] = start[2]
        elif call := _CALLED.search(row):
            inside.add(call[1])
        elif fact := _FACTS.match(row):
            facts[fact[1]] = (fact[2], int(fact[3]))
    again = _cycle(calls)
    return None if again is None else facts.get(places[again], (again, 0))


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
