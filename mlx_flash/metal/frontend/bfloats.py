"""Float constants in a text that has bfloat: one that fits converts without loss, so the compiler says nothing.

msl_float hides from it what the constant is, but where a constant is what it needs; msl_named does so for a name, which
may be that of something else elsewhere in the text.
"""

import re
from collections.abc import Iterator

from .tokens import Token, with_macros

TYPES = frozenset({"bfloat", "bfloat16_t"})
_FLOAT = re.compile(
    r"((?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|0[xX][0-9a-fA-F.]+[pP][+-]?\d+|\d+(?=[fF]))[fF]?"
)
# Between these a name is a value and no declaration.
_BEFORE = ("=", "return", "(", "?", ":", "{", "-")
_AFTER = (";", ")", ",", "}", ":", "?")
Edit = tuple[int, int, str]


def float_edits(tokens: list[Token]) -> Iterator[Edit]:
    """(start, end, new text) of every float constant, in macros too.

    One without a suffix is a float in Metal; the compiler's option for that forgets it in instances of templates.
    """
    tokens = with_macros(tokens)
    hidden = any(token.text in TYPES for token in tokens)
    named = _named(tokens) if hidden else set()
    for index, token in enumerate(tokens):
        if token.kind == "number":
            literal = _FLOAT.fullmatch(token.text)
            if literal and hidden:
                yield token.start, token.end, f"msl_float({literal[1]}f)"
            elif literal and literal[1] == token.text:
                yield token.end, token.end, "f"
        elif token.text in named or (hidden and token.text == "float"):
            before, after = tokens[index - 1].text, tokens[index + 1].text if index + 1 < len(tokens) else ""
            if token.text in named and before in _BEFORE and after in _AFTER:
                yield token.start, token.end, f"msl_named({token.text})"
            elif token.text == "float" and after == "(":
                value, closing = tokens[index + 2 : index + 4]
                if value.kind == "number" and closing.text == ")":
                    yield token.start, token.end, "msl_float"


def _named(tokens: list[Token]) -> set[str]:
    """Names of float constants, and of nothing else: constexpr float third = 1.0f / 3;"""
    found: dict[str, set[bool]] = {}
    for index, token in enumerate(tokens[:-1]):
        if token.kind == "word" and tokens[index + 1].text == "=" and tokens[index - 1].kind == "word":
            words = {before.text for before in tokens[max(0, index - 4) : index]}
            constant = tokens[index - 1].text == "float" and bool(words & {"const", "constexpr", "constant"})
            found.setdefault(token.text, set()).add(constant)
        elif token.text in ("typename", "class", "struct"):
            found.setdefault(tokens[index + 1].text, set()).add(False)
    return {name for name, kinds in found.items() if kinds == {True}}
