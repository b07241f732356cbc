"""References and pointers whose type `auto` leaves open: a component of a vector, v[1] or m[0][1], has no address.

Where the type is written, none that a kernel can write leads to a component; here the compiler is asked.
"""

from collections.abc import Iterator

from .tokens import Token, matching

_BEFORE_UNARY = frozenset("( , = { ; return ? : + - * / == != < > && || !".split())
_ENDS = (";", ",", ")", "}")
Edit = tuple[int, int, str]


def address_edits(tokens: list[Token]) -> Iterator[Edit]:
    """(start, end, new text): auto& r = a[1], auto p = &a[1] and f(&a[1]) with the element in msl_addressed(...)."""
    kept = set()
    for index, token in enumerate(tokens[:-4]):
        if token.text == "auto":
            start = _value_of(tokens, index)
            if start is not None:
                kept.add(start - 1)
                yield from _wrapped(tokens, start, _value_end(tokens, start), "msl_addressed")
        elif token.text == "&" and index not in kept and tokens[index - 1].text in _BEFORE_UNARY:
            yield from _wrapped(tokens, index + 1, _operand_end(tokens, index + 1), "msl_pointed")


def _wrapped(tokens: list[Token], start: int, end: int, function: str) -> Iterator[Edit]:
    """The operand in tokens[start:end], if it is an element of something."""
    last = end - 1
    while last > start and tokens[last].text == ")":
        last -= 1
    if last > start and tokens[last].text == "]" and tokens[start].text != "[":
        yield tokens[start].start, tokens[start].start, f"{function}("
        yield tokens[end - 1].end, tokens[end - 1].end, ")"


def _value_of(tokens: list[Token], auto: int) -> int | None:
    """Where the lvalue starts that `auto& r =`, `auto&& r =`, `decltype(auto) r =` or `auto p = &` names, if it does.
    What a const reference binds to may be a copy."""
    at = auto + 1
    if tokens[at].text == ")":  # of decltype(auto)
        refers, at = True, at + 1
    else:
        refers = tokens[at].text in ("&", "&&")
        at += refers or tokens[at].text == "*"
    if tokens[at].kind != "word" or tokens[at + 1].text != "=":
        return None
    before = {token.text for token in tokens[max(0, auto - 2) : auto]}
    if tokens[at + 2].text == "&" and not refers:
        return at + 3
    return at + 2 if refers and "const" not in before else None


def _value_end(tokens: list[Token], index: int) -> int:
    while index < len(tokens) - 1 and tokens[index].text not in _ENDS:
        index = matching(tokens, index) + 1 if tokens[index].text in ("(", "[", "{") else index + 1
    return index


def _operand_end(tokens: list[Token], index: int) -> int:
    """The index behind a name or a bracket and all that is applied to it."""
    if tokens[index].text == "(":
        index = matching(tokens, index) + 1
    elif tokens[index].kind == "word":
        index += 1
    else:
        return index
    while index < len(tokens) - 1 and tokens[index].text in ("(", "[", ".", "->", "::"):
        index = matching(tokens, index) + 1 if tokens[index].text in "([" else index + 2
    return index
