"""Casts between half and bfloat, which clang refuses, and lists with fewer values than a vector has components."""

import re
from collections.abc import Iterator

from .tokens import Token, Tokens, macro_tokens, matching, split_arguments

_HALVES = {"half", "float16_t"}
_BFLOATS = {"bfloat", "bfloat16_t"}
_UNARY = ("-", "+", "*", "~", "!", "&")
_LONGER = re.compile(r"(u?(char|short|int|long)|half|bfloat|float|bool)([234])|vec<\w+,([234])>")
Edit = tuple[int, int, str]


def cast_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text) for half(x), (half)x and so on, in a text that uses both types."""
    words = tokens.with_macros.places.keys()
    if not (words & _HALVES and words & _BFLOATS):
        return
    names = _may_be_either(tokens)
    for index in tokens.where(names, 2):
        token = tokens[index]
        before, after = tokens[index - 1], tokens[index + 1].text
        if before.text == "(" and after == ")" and not _calls(tokens, index - 1):
            end = _operand_end(tokens, index + 2)
            if end:
                at = tokens[index + 2].start
                yield at, at, f"msl_castable<{token.text}>("
                yield tokens[end - 1].end, tokens[end - 1].end, ")"
        elif after == "(" and before.text != "operator" and _is_value(tokens, index + 1):
            yield token.start, token.end, f"msl_convert<{token.text}>"


def _may_be_either(tokens: list[Token]) -> set[str]:
    """half, bfloat, template parameters that may be either of them, and other names for these types."""
    names = _HALVES | _BFLOATS
    for index, token in enumerate(tokens[:-4]):
        name, after = tokens[index + 1], tokens[index + 2]
        first = index and tokens[index - 1].text in ("<", ",")
        if first and token.text in ("typename", "class") and after.text in (",", ">", "="):
            names.add(name.text)
        elif token.text == "using" and after.text == "=" and tokens[index + 4].text == ";":
            names |= {name.text} if tokens[index + 3].text in names else set()
        elif token.text == "typedef" and tokens[index + 3].text == ";":
            names |= {after.text} if name.text in names else set()
        elif token.kind == "directive":
            words = [inner.text for inner in macro_tokens(token)]
            names |= {words[1]} if len(words) == 3 and words[2] in names else set()
    return names


def _calls(tokens: list[Token], opening: int) -> bool:
    """Whether the bracket belongs to the word before it, as in sizeof(half) and f(half)."""
    return (
        tokens[opening - 1].kind == "word" and tokens[opening - 1].text != "return" or tokens[opening - 1].text == ">"
    )


def _is_value(tokens: list[Token], opening: int) -> bool:
    """Whether the bracket holds one value; in half (&a)[4] and half (*f)(int) it belongs to a declaration."""
    end = matching(tokens, opening)
    inside = tokens[opening + 1 : end]
    if not inside or inside[0].text == "&" or len(split_arguments(inside)) != 1:
        return False
    return not (inside[0].text == "*" and tokens[end + 1].text in ("(", "["))


def _operand_end(tokens: list[Token], index: int) -> int | None:
    """The index behind the operand of a cast that ends before `index`; None if no operand starts there."""
    start = index
    while tokens[index].text in _UNARY:
        index += 1
    if tokens[index].text == "(":
        index = matching(tokens, index) + 1
    elif tokens[index].kind == "word":
        index += 1
    else:
        return None
    while tokens[index].text in ("(", "[", ".", "->", "::"):
        index = matching(tokens, index) + 1 if tokens[index].text in "([" else index + 2
        if tokens[index - 1].text == "template":
            return None
    return index if index > start else None


def list_edits(tokens: Tokens) -> Iterator[Edit]:
    """Fills short lists: uint4 v = {a, b, c} and {a} leave the other components 0, whereas uint4(a, b, c) stays an
    error."""
    for index in tokens.where(filter(_LONGER.fullmatch, tokens.places), 3):
        at = index + 1
        at += tokens[at].kind == "word"
        at += at > index + 1 and tokens[at].text == "="
        if short_list(tokens[index].text, tokens, at):
            yield tokens[at].end, tokens[at].end, "msl_list(), "


def short_list(kind: str, tokens: list[Token], opening: int) -> bool:
    """Whether a list opens there that has fewer values than a vector of this type has components."""
    vector = _LONGER.fullmatch(kind)
    if not vector or tokens[opening].text != "{":
        return False
    values = len(split_arguments(tokens[opening + 1 : matching(tokens, opening)]))
    return 0 < values < int(vector[3] or vector[4])
