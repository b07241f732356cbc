"""Constructors and conversions of Metal say which address space they build in; those of C++ for OpenCL build values that are in none yet."""

from collections.abc import Iterator

from .tokens import Token, matching

_SPACES = ("thread", "threadgroup", "device", "constant")


def constructor_edits(tokens: list[Token]) -> Iterator[tuple[int, int]]:
    """Spans of the text to drop: the address space behind a constructor, and whole constructors that another space's already covers."""
    enclosing: list[tuple[str, set] | None] = []
    pending = None
    for index, token in enumerate(tokens):
        if token.text == "operator" and tokens[index + 1].kind == "word":
            yield from _conversion(tokens, index)
        if token.text in ("struct", "class", "union") and tokens[index + 1].kind == "word":
            pending = tokens[index + 1].text
        elif token.text == ";":
            pending = None
        elif token.text == "{":
            enclosing.append((pending, set()) if pending else None)
            pending = None
        elif token.text == "}" and enclosing:
            enclosing.pop()
        elif enclosing and enclosing[-1] and token.text == enclosing[-1][0] and tokens[index + 1].text == "(":
            yield from _edits(tokens, index, enclosing[-1][1])


def _conversion(tokens: list[Token], index: int) -> Iterator[tuple[int, int]]:
    """operator T() const thread: without its `thread` it also converts values that are in no address space yet."""
    while tokens[index].text != "(":
        index += 1
    index = matching(tokens, index) + 1
    if tokens[index].text == "const":
        index += 1
    if tokens[index].text == "thread":
        yield tokens[index].start, tokens[index].end


def _edits(tokens: list[Token], index: int, known: set) -> Iterator[tuple[int, int]]:
    close = matching(tokens, index + 1)
    after = tokens[close + 1]
    if after.text not in _SPACES:
        known.add(_key(tokens, index, close))
        return
    key = _key(tokens, index, close)
    if key in known:
        yield tokens[_start(tokens, index)].start, tokens[_end(tokens, close + 2)].end
        return
    known.add(key)
    yield after.start, after.end


def _key(tokens: list[Token], index: int, close: int) -> tuple[str, ...]:
    """What tells one constructor from another: its template header and its parameters."""
    return tuple(token.text for token in tokens[_start(tokens, index) : close])


def _start(tokens: list[Token], index: int) -> int:
    """The first token of the declaration whose name stands at `index`."""
    while tokens[index - 1].text not in (";", "{", "}", ":") and tokens[index - 1].kind != "directive":
        index -= 1
    return index


def _end(tokens: list[Token], index: int) -> int:
    """The last token of the constructor whose initialisers, body or semicolon starts at `index`."""
    if tokens[index].text == ":":
        while tokens[index].text in (":", ","):
            index += 1
            while tokens[index].text not in ("(", "{"):
                index += 1
            index = matching(tokens, index) + 1
    if tokens[index].text == "{":
        index = matching(tokens, index)
        return index + 1 if tokens[index + 1].text == ";" else index
    while tokens[index].text != ";":
        index += 1
    return index
