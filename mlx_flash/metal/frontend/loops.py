"""Counts the iterations of loops, so that an endless loop is noticed even if it accesses no memory.

The count also keeps the compiler from assuming that a loop ends, which C++ allows it to. A loop whose counter rises to
a small constant always ends. It is not counted, because the count would only prevent unrolling.
"""

from collections.abc import Iterator

from .tokens import Token, Tokens, macro_tokens, matching

STEP = "msl_step()"
_WIDE = {"int", "uint", "long", "ulong", "size_t", "int32_t", "uint32_t", "int64_t", "uint64_t"}
_CHANGES = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=", "++", "--"}
Edit = tuple[int, int, str]


def loop_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text) for the conditions of all loops, in the text and in its macros."""
    for index in tokens.directives:
        yield from loop_edits(macro_tokens(tokens[index]))
    for index in tokens.where(("while", "for"), 1):
        if tokens[index + 1].text == "(":
            yield from _loop(tokens, tokens[index].text, index + 2, matching(tokens, index + 1))


def _loop(tokens: list[Token], kind: str, first: int, last: int) -> Iterator[Edit]:
    step = STEP
    if kind == "for":
        ends = _semicolons(tokens, first, last)
        if len(ends) != 2:
            return  # a loop over a range: for (x : range)
        step = _step(tokens, first, *ends, last)
        first, last = ends[0] + 1, ends[1]
    condition = tokens[first:last]
    if not condition:
        yield tokens[last].start, tokens[last].start, STEP
        return
    before = f"({step}) && ("
    if _declares(condition):
        # A declaration cannot be an operand, but its initialiser can.
        first += [token.text for token in condition].index("=") + 1
        before = f"({STEP}, "
    yield tokens[first].start, tokens[first].start, before
    yield condition[-1].end, condition[-1].end, ")"


def _step(tokens: list[Token], first: int, start: int, end: int, last: int) -> str:
    """The code that counts an iteration of a `for` loop; empty if the loop always ends.

    That is for (int i = a; i < n; i += b) where n and b are small constants and nothing else changes i.
    """
    begin, bound, onward = (
        [token.text for token in tokens[a:b]] for a, b in ((first, start), (start + 1, end), (end + 1, last))
    )
    if len(begin) < 3 or begin[0] not in _WIDE or begin[2] != "=" or bound[:2] != [begin[1], "<"]:
        return STEP
    name, by = begin[1], "1"
    if onward[:2] == [name, "+="] and not _CHANGES & set(onward[2:]):
        by = _written(tokens[end + 3 : last])
    elif sorted(onward) != sorted(("++", name)):
        return STEP
    if _changes(tokens, last + 1, name):
        return STEP
    return f"msl_ends({_written(tokens[start + 3 : end])}, {by}) || {STEP}"


def _written(tokens: list[Token]) -> str:
    """The tokens as written, on one line; >> is two tokens."""
    gaps = (" " if before.end < token.start else "" for before, token in zip(tokens, tokens[1:]))
    return "".join(token.text + gap for token, gap in zip(tokens, (*gaps, "")))


def _changes(tokens: list[Token], body: int, name: str) -> bool:
    """Whether the statement at `body` assigns to a name or takes its address, or might do so."""
    stop = matching(tokens, body) if body < len(tokens) and tokens[body].text == "{" else body
    while stop < len(tokens) and tokens[stop].text not in (";", "}"):
        stop += 1
    changed = (
        tokens[index].text == name
        and (tokens[index + 1].text in _CHANGES or tokens[index - 1].text in ("++", "--", "&"))
        for index in range(body, stop)
    )
    return stop >= len(tokens) or any(changed)


def _semicolons(tokens: list[Token], first: int, last: int) -> list[int]:
    """The indices of the semicolons between the parts of a `for`."""
    found, index = [], first
    while index < last:
        if tokens[index].text in ("(", "[", "{"):
            index = matching(tokens, index)
        elif tokens[index].text == ";":
            found.append(index)
        index += 1
    return found


def _declares(condition: list[Token]) -> bool:
    """Whether the condition is a declaration, as in while (int n = ...), which cannot be an operand."""
    names = [token.kind == "word" for token in condition[:2]]
    return names == [True, True] and any(token.text == "=" for token in condition)
