"""Vectors in the constant address space with a list as initialiser.

Clang finds the constructors of such a vector only if the initialiser is a value of its type.
"""

import re
from collections.abc import Iterator

from .tokens import Token, matching

_VECTOR = re.compile(r"(u?(char|short|int|long)|half|bfloat|float|bool)[234]")
_QUALIFIERS = frozenset({"const", "constexpr", "static", "metal", "::"})
Edit = tuple[int, int, str]


def constant_vector_edits(tokens: list[Token]) -> Iterator[Edit]:
    """Yields (start, end, new text) for constant float4 k = {1, 2, 3, 4}, k{...} and k(...), and for arrays of such
    lists."""
    for index, token in enumerate(tokens[:-4]):
        if token.text != "constant":
            continue
        at = index + 1
        while tokens[at].text in _QUALIFIERS:
            at += 1
        kind, name = tokens[at], tokens[at + 1]
        if not _VECTOR.fullmatch(kind.text) or name.kind != "word":
            continue
        at, axes = at + 2, 0
        while tokens[at].text == "[":
            at, axes = matching(tokens, at) + 1, axes + 1
        if not axes and tokens[at].text in ("{", "("):
            if tokens[at + 1].kind != "word" or tokens[matching(tokens, at) + 1].text == ";":  # not a function
                yield name.end, name.end, f" = {kind.text}"
        elif tokens[at].text == "=" and tokens[at + 1].text == "{":
            yield from _lists(tokens, at + 1, axes, kind.text)


def _lists(tokens: list[Token], opening: int, axes: int, kind: str) -> Iterator[Edit]:
    """Inserts the type before every list that is nested `axes` brackets deep and so initialises one vector."""
    if axes == 0:
        yield tokens[opening].start, tokens[opening].start, kind
        return
    closing, at = matching(tokens, opening), opening + 1
    while at < closing:
        if tokens[at].text == "{" and tokens[at - 1].text in ("{", ","):
            yield from _lists(tokens, at, axes - 1, kind)
        at = matching(tokens, at) + 1 if tokens[at].text in ("{", "(", "[") else at + 1
