"""Splits Metal text into tokens that know their position, so that a rewritten text keeps every line where it was."""

import re
from dataclasses import dataclass

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


def tokenize(text: str) -> list[Token]:
    """All tokens except comments and white space, in order. `]]` is two tokens unless it closes an attribute."""
    found = []
    depth = 0
    for match in _PATTERN.finditer(text):
        kind = match.lastgroup
        if kind == "comment":
            continue
        piece, (start, end) = match.group(), match.span()
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


def macro_tokens(token: Token) -> list[Token]:
    """The tokens of a macro definition, with positions in the whole text; empty for any other token."""
    if token.kind != "directive" or not _DEFINE.match(token.text):
        return []
    start = token.start + token.text.index("#") + 1
    inside = tokenize(token.text[start - token.start :])
    return [Token(token.kind, token.text, start + token.start, start + token.end) for token in inside]


def with_macros(tokens: list[Token]) -> list[Token]:
    """The tokens, with each macro definition replaced by its own tokens."""
    found: list[Token] = []
    for token in tokens:
        if token.kind == "directive" and (inside := macro_tokens(token)):
            found += inside
        else:
            found.append(token)
    return found


def comments(text: str) -> list[tuple[int, int]]:
    """(start, end) of each comment."""
    return [match.span() for match in _COMMENT.finditer(text) if match.lastgroup == "comment"]


def line_of(text: str, position: int) -> int:
    """The line of a position in the text, counted from 1."""
    return text.count("\n", 0, position) + 1


def matching(tokens: list[Token], index: int) -> int:
    """The index of the bracket that closes the one at `index`."""
    pairs = {"(": ")", "{": "}", "[": "]", "[[": "]]"}
    opening = tokens[index].text
    closing = pairs[opening]
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
