"""Every round of a loop counts as a step, so that a loop that never ends is noticed even if it touches no memory.

The count also keeps the compiler from assuming that the loop ends, which C++ allows it to.
"""

from collections.abc import Iterator

from .tokens import Token, matching

# True; where accesses are checked it counts.
STEP = "msl_step()"


def loop_edits(tokens: list[Token]) -> Iterator[tuple[int, int, str]]:
    """(start, end, new text): what loops' conditions become."""
    for index, token in enumerate(tokens[:-1]):
        if token.text not in ("while", "for") or tokens[index + 1].text != "(":
            continue
        first, last = index + 2, matching(tokens, index + 1)
        if token.text == "for":
            ends = _semicolons(tokens, first, last)
            if len(ends) != 2:
                continue  # for (x : range)
            first, last = ends[0] + 1, ends[1]
        condition = tokens[first:last]
        if not condition:
            yield tokens[last].start, tokens[last].start, STEP
        elif not _declares(condition):
            yield condition[0].start, condition[0].start, f"{STEP} && ("
            yield condition[-1].end, condition[-1].end, ")"


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


def _declares(condition: list[Token]) -> bool:
    """while (int n = ...): a declaration cannot be an operand."""
    names = [token.kind == "word" for token in condition[:2]]
    return names == [True, True] and any(token.text == "=" for token in condition)
