"""Splits Metal text into tokens that know their position, so that a rewritten text keeps every line where it was."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_PATTERN = re.compile(
    r"""
    (?P<comment>//(?:[^\n\\]|\\.)*|/\*.*?\*/)
  | (?P<directive>^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*)
  | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
  | (?P<number>(?:0[xX](?:[0-9a-fA-F.]|'(?=\w))+(?:[pP][+-]?\d+)?|\.?\d(?:[eE][+-]|'(?=\w)|[\w.])*)[a-zA-Z]*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<mark>\[\[|\]\]|::|->|<<=|>>=|\+=|-=|\*=|/=|%=|&=|\|=|\^=|==|!=|<=|>=|&&|\|\||\+\+|--|<<|[^\s\w])
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)

# Strings are matched too, because text in a string is not a comment, whatever it looks like.
_COMMENT = re.compile(
    r"""(?P<comment>//(?:[^\n\\]|\\.)*|/\*.*?\*/)|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""", re.DOTALL
)


_DEFINE = re.compile(r"\s*#\s*define\b")


@dataclass(slots=True, eq=False)
class Token:
    """One word, number, mark, string or directive of the text, at text[start:end]."""

    kind: str
    text: str
    start: int
    end: int


_CLOSING = {"(": ")", "{": "}", "[": "]", "[[": "]]"}


class Tokens(list[Token]):
    """The tokens of a whole text, which stay as they are: tables of them are made once.

    Most rules and rewrites look for a few words. They go from one place of a word to the next, not over the whole text.
    """

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """{the text of a token: the indices where it stands}."""
        found = defaultdict(list)
        for index, token in enumerate(self):
            found[token.text].append(index)
        return dict(found)

    def where(self, texts: Iterable[str], behind: int = 0) -> list[int]:
        """The indices of the tokens with these texts, in order. behind: how many tokens have to follow."""
        found: list[int] = []
        for text in self.places.keys() & texts:
            found += self.places[text]
        found.sort()
        return found[: bisect_left(found, len(self) - behind)] if behind else found

    @cached_property
    def directives(self) -> list[int]:
        """The indices of the directives, in order."""
        return [index for index, token in enumerate(self) if token.kind == "directive"]

    @cached_property
    def closing(self) -> dict[int, int]:
        """{the index of an opening bracket: that of the one which closes it}."""
        found: dict[int, int] = {}
        for opening, closing in _CLOSING.items():
            open_brackets: list[int] = []
            for index in self.where((opening, closing)):
                if self[index].text == opening:
                    open_brackets.append(index)
                elif open_brackets:
                    found[open_brackets.pop()] = index
        return found

    @cached_property
    def with_macros(self) -> "Tokens":
        """The tokens, with each macro definition replaced by its own tokens."""
        found, behind = Tokens(), 0
        for index in self.directives:
            found += self[behind:index]
            found += macro_tokens(self[index]) or [self[index]]
            behind = index + 1
        found += self[behind:]
        return found if behind else self


def tokenize(text: str) -> Tokens:
    """All tokens except comments and white space, in order. `]]` is two tokens unless it closes an attribute."""
    found = Tokens()
    depth = 0
    for match in _PATTERN.finditer(text):
        kind = match.lastgroup
        if kind == "comment":
            continue
        start, end = match.span()
        piece = text[start:end]
        if piece == "[[":
            depth += 1
        elif piece == "]]":
            # a[b[i]] closes two brackets and not an attribute.
            if depth == 0:
                found += (Token("mark", "]", start, start + 1), Token("mark", "]", start + 1, end))
                continue
            depth -= 1
        found.append(Token(kind, piece, start, end))
    return found


def macro_tokens(token: Token) -> Tokens:
    """The tokens of a macro definition, with positions in the whole text; empty for any other token."""
    if token.kind != "directive" or not _DEFINE.match(token.text):
        return Tokens()
    start = token.start + token.text.index("#") + 1
    inside = tokenize(token.text[start - token.start :])
    return Tokens(Token(token.kind, token.text, start + token.start, start + token.end) for token in inside)


def comments(text: str) -> list[tuple[int, int]]:
    """(start, end) of each comment."""
    return [match.span() for match in _COMMENT.finditer(text) if match.lastgroup == "comment"]


def line_of(text: str, position: int) -> int:
    """The line of a position in the text, counted from 1."""
    return text.count("\n", 0, position) + 1


def matching(tokens: list[Token], index: int) -> int:
    """The index of the bracket that closes the one at `index`."""
    opening = tokens[index].text
    closing = _CLOSING[opening]
    if isinstance(tokens, Tokens):
        return tokens.closing.get(index, len(tokens) - 1)
    depth = 0
    for position in range(index, len(tokens)):
        text = tokens[position].text
        if text == opening:
            depth += 1
        elif text == closing:
            depth -= 1
            if depth == 0:
                return position
    return len(tokens) - 1


def split_arguments(tokens: list[Token]) -> list[list[Token]]:
    """Splits at the commas that are outside all brackets, template brackets included."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.text in ("(", "[", "{", "<", "[["):
            depth += 1
        elif token.text in (")", "]", "}", ">", "]]"):
            depth -= 1
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def without_alignment(tokens: list[Token]) -> tuple[list[Token], list[Token] | None]:
    """(tokens of a declaration without __attribute__((aligned(N))), tokens of N or None)."""
    for index in range(len(tokens) - 5):
        if tokens[index].text == "__attribute__" and tokens[index + 3].text in ("aligned", "__aligned__"):
            rest = [*tokens[:index], *tokens[matching(tokens, index + 1) + 1 :]]
            return without_alignment(rest)[0], tokens[index + 5 : matching(tokens, index + 4)]
    return tokens, None
