"""Float constants in a text that uses bfloat.

Metal refuses to convert a float to bfloat without a cast, whereas clang accepts a constant that converts without loss.
msl_float hides the value of a literal from clang, except where the language needs a constant. msl_named does the same
for a named constant, whose name may belong to something else elsewhere in the text.
"""

import re
from collections.abc import Iterator

from .tokens import Tokens

TYPES = frozenset({"bfloat", "bfloat16_t"})
_FLOAT = re.compile(
    r"((?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|0[xX][0-9a-fA-F.]+[pP][+-]?\d+|\d+(?=[fF]))[fF]?"
)
# Between these tokens a name is used as a value and is not being declared.
_BEFORE = ("=", "return", "(", "?", ":", "{", "-")
_AFTER = (";", ")", ",", "}", ":", "?")
Edit = tuple[int, int, str]


def float_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text) for every float constant, those in macros included.

    A literal without a suffix is a float in Metal. Clang has an option for that, which instances of templates ignore,
    so the suffix is written out.
    """
    tokens = tokens.with_macros
    hidden = bool(tokens.places.keys() & TYPES)
    named = _named(tokens) if hidden else set()
    for index in tokens.where((*filter(_FLOAT.fullmatch, tokens.places), *named, "float")):
        token = tokens[index]
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


def _named(tokens: Tokens) -> set[str]:
    """Names that the text uses for float constants only, as in constexpr float third = 1.0f / 3;"""
    found: dict[str, set[bool]] = {}
    for index, token in enumerate(tokens[:-1]):
        if token.kind == "word" and tokens[index + 1].text == "=" and tokens[index - 1].kind == "word":
            words = {before.text for before in tokens[max(0, index - 4) : index]}
            constant = tokens[index - 1].text == "float" and bool(words & {"const", "constexpr", "constant"})
            found.setdefault(token.text, set()).add(constant)
        elif token.text in ("typename", "class", "struct"):
            found.setdefault(tokens[index + 1].text, set()).add(False)
    return {name for name, kinds in found.items() if kinds == {True}}
