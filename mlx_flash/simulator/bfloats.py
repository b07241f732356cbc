"""Float constants that become bfloat without a cast. Where the value fits exactly the compiler has no word to say."""

import re
from collections.abc import Iterator

from .tokens import Token, matching

_TYPES = ("bfloat", "bfloat16_t")
_SKIPPED = ("*", "&", "const", "thread", "device", "threadgroup", "constant")
_FLOAT = re.compile(r"(\d+\.\d*|\.\d+)([eE][+-]?\d+)?[fF]?|\d+[eE][+-]?\d+[fF]?|\d+[fF]")
_NO_TYPE = ("return", "else", "case", "goto", "new", "delete", "operator", "typename")


def float_constants(tokens: list[Token]) -> Iterator[tuple[Token, str]]:
    """(token, reason) of each that is assigned to a name declared as bfloat, and never as something else."""
    if not any(token.text in _TYPES for token in tokens):
        return
    names = {name for name, kinds in _declared(tokens).items() if kinds == {True}}
    for index, token in enumerate(tokens[:-3]):
        if token.text not in names or tokens[index - 1].text in (".", "->"):
            continue
        at = index + 1
        while tokens[at].text == "[":
            at = matching(tokens, at) + 1
        if tokens[at].text != "=":
            continue
        at += 1 + (tokens[at + 1].text in "+-")
        if tokens[at].kind == "number" and _FLOAT.fullmatch(tokens[at].text) and tokens[at + 1].text in (";", ",", ")"):
            yield tokens[at], "a float does not convert to bfloat without a cast"


def _declared(tokens: list[Token]) -> dict[str, set[bool]]:
    """Name -> whether its declarations are of bfloat."""
    found: dict[str, set[bool]] = {}
    for index, token in enumerate(tokens[1:-1], 1):
        if token.kind != "word" or tokens[index + 1].text not in (";", "=", ",", ")", "[", "[["):
            continue
        at = index - 1
        while at > 0 and tokens[at].text in _SKIPPED:
            at -= 1
        kind = tokens[at]
        if kind.text == ">" or (kind.kind == "word" and kind.text not in _NO_TYPE):
            found.setdefault(token.text, set()).add(kind.text in _TYPES)
        elif kind.text == ",":
            found.setdefault(token.text, set())  # an argument, or one more name of a declaration
    return found
