"""Loops that end only from within: each round counts as a step, so that one without any access is noticed too.

To C++, a loop whose condition is a constant may run forever; the compiler would make nothing of it that could be watched.
"""

from collections.abc import Iterator

from .tokens import Token, matching

STEP = "msl_step()"  # true; where accesses are checked it counts as one
_ALWAYS = ([], ["true"], ["1"])


def endless_conditions(tokens: list[Token]) -> Iterator[tuple[int, int]]:
    """Where the conditions of loops stand that are always true, as spans of the text."""
    for index, token in enumerate(tokens[:-1]):
        if token.text not in ("while", "for") or tokens[index + 1].text != "(":
            continue
        first, last = index + 2, matching(tokens, index + 1)
        if token.text == "for":
            ends = _semicolons(tokens, first, last)
            if len(ends) != 2:
                continue  # for (x : range)
            first, last = ends[0] + 1, ends[1]
        if [part.text for part in tokens[first:last]] in _ALWAYS:
            yield tokens[first - 1].end, tokens[last].start


def _semicolons(tokens: list[Token], first: int, last: int) -> list[int]:
    """Those between the parts of a `for`."""
    found, index = [], first
    while index < last:
        if tokens[index].text in ("(", "[", "{"):
            index = matching(tokens, index)
        elif tokens[index].text == ";":
            found.append(index)
        index += 1
    return found
