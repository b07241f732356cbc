"""Ranges in an array's initialiser, as in { [0 ... 3] = 1 }.

Clang parses them in every language and generates code for them in C only.
"""

from collections.abc import Iterator

from .tokens import Token, Tokens, matching, split_arguments

Edit = tuple[int, int, str]


def designator_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text): T a[4] = { [0 ... 3] = 1 }; becomes an empty list followed by a loop."""
    for index in tokens.where("=", 2):
        if index < 2 or tokens[index - 1].text != "]" or tokens[index + 1].text != "{":
            continue
        closing = matching(tokens, index + 1)
        parts = split_arguments(tokens[index + 2 : closing])
        ranges = [_range(part) for part in parts]
        if not any(ranges) or tokens[closing + 1].text != ";":
            continue
        name = _array(tokens, index - 1)
        if name is None or not all(ranges):
            continue
        loops = "".join(
            f" for (int msl_i = {first}; msl_i <= {last}; ++msl_i) {name}[msl_i] = {value};"
            for first, last, value in ranges
        )
        yield tokens[index + 1].end, tokens[closing].start, ""
        yield tokens[closing + 1].end, tokens[closing + 1].end, loops


def _range(part: list[Token]) -> tuple[str, str, str] | None:
    """The parts (first, last, value) of `[first ... last] = value`; None for any other initialiser."""
    if part[0].text != "[":
        return None
    closing = matching(part, 0)
    inside = [token.text for token in part[1:closing]]
    dots = next((at for at in range(len(inside) - 2) if inside[at : at + 3] == ["."] * 3), None)
    value = [token.text for token in part[closing + 1 :]]
    if dots is None or value[:1] != ["="] or value[1:2] == ["{"]:
        return None
    return " ".join(inside[:dots]), " ".join(inside[dots + 3 :]), " ".join(value[1:])


def _array(tokens: list[Token], closing: int) -> str | None:
    """The name of the one-dimensional array whose closing bracket is at `closing`; None if it has more dimensions."""
    opening = closing
    while opening > 0 and tokens[opening].text != "[":
        opening -= 1
    return tokens[opening - 1].text if tokens[opening - 1].kind == "word" else None
