"""Vectors and matrices in the constant address space whose initialiser is a list or a number.

Clang finds the constructors of such a vector only if the initialiser is a value of its type.
"""

import re
from collections.abc import Iterator

from .casts import short_list
from .names import template_end
from .tokens import Token, Tokens, matching, split_arguments

_VECTOR = re.compile(r"(packed_)?(u?(char|short|int|long)|half|bfloat|float|bool)[234]|(half|float)[234]x[234]")
_QUALIFIERS = frozenset({"const", "constexpr", "static", "metal", "::"})
Edit = tuple[int, int, str]


def constant_vector_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text) for constant float4 k = {1, 2, 3, 4}, k{...} and k(...), and for arrays of such
    values."""
    for index in tokens.where(("constant",), 4):
        at = index + 1
        while tokens[at].text in _QUALIFIERS:
            at += 1
        kind, at = _kind(tokens, at)
        while kind and tokens[at].kind == "word":
            edits, at = _declarator(tokens, at, kind)
            yield from edits
            at += tokens[at].text == ","


def _declarator(tokens: list[Token], at: int, kind: str) -> tuple[list[Edit], int]:
    """Returns the edits of the variable whose name is at `at`, and the index of the comma or semicolon behind it."""
    name, first, axes = tokens[at], at, 0
    at += 1
    while tokens[at].text == "[":
        at, axes = matching(tokens, at) + 1, axes + 1
    edits: list[Edit] = []
    if not axes and tokens[at].text in ("{", "("):
        if tokens[at + 1].kind != "word" or tokens[matching(tokens, at) + 1].text == ";":  # not a function
            edits.append((name.end, name.end, f" = {kind}"))
            if short_list(kind, tokens, at) and tokens[first - 1].text == ",":  # list_edits knows the first variable
                edits.append((tokens[at].end, tokens[at].end, "msl_list(), "))
    elif tokens[at].text == "=" and tokens[at + 1].text == "{":
        edits += _lists(tokens, at + 1, axes, kind, outermost=tokens[first - 1].text != ",")
    while tokens[at].text not in (",", ";", ")", "}") and at < len(tokens) - 1:
        at = matching(tokens, at) + 1 if tokens[at].text in ("(", "{", "[") else at + 1
    return edits, at


def _kind(tokens: list[Token], at: int) -> tuple[str, int]:
    """Returns the vector type at `at` as it is written (empty for any other type) and the index behind it."""
    if tokens[at].text == "vec" and tokens[at + 1].text == "<":
        end = template_end(tokens, at + 1)
        return "".join(token.text for token in tokens[at : end + 1]), end + 1
    return (tokens[at].text if _VECTOR.fullmatch(tokens[at].text) else ""), at + 1


def _lists(tokens: list[Token], opening: int, axes: int, kind: str, outermost: bool = False) -> Iterator[Edit]:
    """Turns every element that is nested `axes` brackets deep into a value of the vector type."""
    closing = matching(tokens, opening)
    if axes == 0:
        yield tokens[opening].start, tokens[opening].start, kind
        if not outermost and short_list(kind, tokens, opening):  # the outermost one is list_edits' own
            yield tokens[opening].end, tokens[opening].end, "msl_list(), "
        return
    start = opening + 1
    for part in split_arguments(tokens[opening + 1 : closing]):
        if part[0].text == "{":
            yield from _lists(tokens, start, axes - 1, kind)
        elif axes == 1 and not (part[0].text == kind and matching(part, 1) == len(part) - 1):
            yield part[0].start, part[0].start, f"{kind}("
            yield part[-1].end, part[-1].end, ")"
        start += len(part) + 1
