"""Checks that pointers and references name an address space, as Metal demands wherever their type is written.

A * or & behind a name that is known to be a type is not an operator, so this check covers the whole text.
"""

from collections.abc import Iterator

from .names import BUILTIN, Types, template_end
from .tokens import Token, Tokens, matching

SPACES = frozenset({"device", "threadgroup", "thread", "constant", "threadgroup_imageblock", "ray_data", "object_data"})
_POINTS = ("*", "&", "&&")
_QUALIFIERS = frozenset({"const", "volatile", "restrict", "__restrict"})
# Words that may precede a declaration's type, besides qualifiers. The address space is among them or missing.
_BEFORE = frozenset({"static", "constexpr", "inline", "extern", "typename", "struct", "union", "mutable", "coherent"})
Finding = tuple[Token, str]


def needs_space(part: list[Token]) -> str:
    """The error message for a pointer or reference type without an address space."""
    kind = "reference" if any(token.text in ("&", "&&") for token in part) else "pointer"
    return f"a {kind} needs an address space: device, threadgroup, thread or constant"


def names_space(words: set[str]) -> bool:
    """Whether the words name an address space; a macro such as MTL_CONST may stand for the keyword."""
    return bool(words & SPACES) or any(word.endswith("_CONST") for word in words)


def unspaced(tokens: Tokens, types: Types) -> Iterator[Finding]:
    """Yields pointers and references to known types that name no address space."""
    for index in tokens.where((*BUILTIN, *types.known, "decltype"), 2):
        token = tokens[index]
        declared = token.text == "decltype" and tokens[index + 1].text == "("
        if token.kind != "word" or not (declared or types.at(index)):
            continue
        after = matching(tokens, index + 1) + 1 if declared else _behind(tokens, index)
        words = _leading(tokens, index)
        while tokens[after].text in _QUALIFIERS or tokens[after].text in SPACES:
            words.add(tokens[after].text)
            after += 1
        if names_space(words) or words & types.macros:
            continue
        if tokens[after].text in _POINTS:
            yield token, needs_space(tokens[after : after + 1])
        elif _to_array(tokens, after):
            yield token, needs_space(tokens[after + 1 : after + 2])
        elif tokens[after].kind == "word" and _starts(tokens, index):
            yield from _later_declarators(tokens, after)


def _behind(tokens: list[Token], index: int) -> int:
    """The index behind a type's name and its template arguments."""
    if tokens[index + 1].text != "<":
        return index + 1
    end = template_end(tokens, index + 1)
    return end + 1 if tokens[end].text == ">" and end + 1 < len(tokens) else index + 1


def _leading(tokens: list[Token], index: int) -> set[str]:
    """The words of the declaration that precede the name of its type."""
    words, at = set(), index - 1
    while at >= 0 and (tokens[at].kind == "word" or tokens[at].text == "::"):
        words.add(tokens[at].text)
        at -= 1
    if at >= 3 and tokens[at].text == ")":  # as in coherent(device) device T*, alignas(16) device T*
        opening = at
        while opening > 0 and tokens[opening].text != "(":
            opening -= 1
        if tokens[opening - 1].text in ("coherent", "alignas"):
            words |= _leading(tokens, opening - 1) | {token.text for token in tokens[opening:at]}
    return words


def _to_array(tokens: list[Token], index: int) -> bool:
    """Whether this declares a pointer or reference to an array: T (&r)[4], T (*p)[4], T (*)[4]. T(*p) is a
    conversion."""
    if tokens[index].text != "(" or tokens[index + 1].text not in _POINTS:
        return False
    closing = matching(tokens, index)
    inside = tokens[index + 2 : closing]
    plain = all(token.kind == "word" and token.text not in SPACES for token in inside)
    return plain and len(inside) <= 1 and closing + 1 < len(tokens) and tokens[closing + 1].text == "["


def _starts(tokens: list[Token], index: int) -> bool:
    """Whether the type at `index` starts a declaration of variables."""
    at = index - 1
    while at >= 0 and (tokens[at].text in _QUALIFIERS or tokens[at].text in _BEFORE or tokens[at].text == "::"):
        at -= 1
    opens_loop = at > 0 and tokens[at].text == "(" and tokens[at - 1].text == "for"
    return at < 0 or opens_loop or tokens[at].text in (";", "{", "}") or tokens[at].kind == "directive"


def _later_declarators(tokens: list[Token], index: int) -> Iterator[Finding]:
    """Yields pointers among the later variables of a declaration, as p in float a = 1, *p = &a;"""
    if tokens[index + 1].text not in ("=", ",", "[", "(", "{"):
        return
    while index < len(tokens) - 1 and tokens[index].text not in (";", ")", "}"):
        if tokens[index].text in ("(", "[", "{"):
            index = matching(tokens, index)
        elif tokens[index].text == "," and tokens[index + 1].text in _POINTS:
            yield tokens[index + 1], needs_space(tokens[index + 1 : index + 2])
        index += 1
