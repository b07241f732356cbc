"""Text of a formula -> tokens with their places, and the error that points at one."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...common.errors import InvalidArgument

LONGEST = 4096  # characters of a text
AROUND = 60  # characters that an error shows before and behind its place
TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*)"
    r"|(?P<float>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?|\d+[eE][+-]?\d+[fF]?)"
    r"|(?P<int>\d+)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><<=|>>=|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||\+=|-=|\*=|/=|%=|&=|\|=|\^=|->|::|[-+*/%<>=!&|^~?:;,.(){}\[\]])",
    re.ASCII,
)


class Token(NamedTuple):
    """`kind`: float, int, name, sign or end; `line`, `column`: from 1 on."""

    kind: str
    text: str
    line: int
    column: int


class Source(NamedTuple):
    """A user's text, and the name of the class that it was given to."""

    owner: str
    text: str

    def error(self, token: Token, expected: str, got: str, remedy: str) -> InvalidArgument:
        """The error of one place in the text, shown with its line, or with the part of a long one around the place."""
        line, place = self.text.split("\n")[token.line - 1], token.column - 1
        begin = max(0, place - AROUND)
        shown = "".join(sign if " " <= sign <= "~" else "?" for sign in line[begin : place + AROUND])
        return InvalidArgument(
            f"[mlx_flash.{self.owner}] text, line {token.line}, column {token.column}: expected {expected}, got {got}. "
            f"{remedy}\n  {shown}\n  {' ' * (place - begin)}^"
        )


def tokens_of(source: Source) -> list[Token]:
    """The tokens of a text, an end token last. Raises InvalidArgument for signs that the language does not have."""
    found, place, line, begin = [], 0, 1, 0
    text = source.text
    while place < len(text):
        match = TOKEN.match(text, place)
        here = Token("sign", text[place], line, place - begin + 1)
        if match is None:
            remedy = "Macros, strings and letters beyond ASCII are not part of it."
            raise source.error(here, "a sign of the language", repr(text[place]), remedy)
        kind, word = match.lastgroup, match.group()
        if kind in ("int", "float") and re.match(r"\w|\.", text[match.end() : match.end() + 1]):
            raise source.error(here, "a number such as 3, 0.5 or 1e-3", f"{word}{text[match.end()]}", "Rewrite it.")
        if kind != "space":
            found.append(here._replace(kind=kind, text=word))
        if "\n" in word:
            line, begin = line + word.count("\n"), place + word.rindex("\n") + 1
        place = match.end()
    return [*found, Token("end", "the end", line, len(text) - begin + 1)]
