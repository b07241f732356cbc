"""References and pointers declared with `auto` that are bound to one element, such as a[1] or m[0][1].

A component of a vector has no address. Where a declaration spells its type out, no type that a kernel can write leads
to a component. Behind `auto` only the compiler knows the type, so the translation has it checked there.
"""

from collections.abc import Iterator

from .tokens import Token, Tokens, matching

_BEFORE_UNARY = frozenset("( , = { ; return ? : + - * / == != < > && || !".split())
_ENDS = (";", ",", ")", "}")
Edit = tuple[int, int, str]


def address_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text): auto& r = a[1], auto p = &a[1] and f(&a[1]) get a check around the element."""
    kept = set()
    for index in tokens.where(("auto", "&"), 4):
        if tokens[index].text == "auto":
            start = _value_of(tokens, index)
            if start is not None:
                kept.add(start - 1)
                yield from _wrapped(tokens, start, _value_end(tokens, start), "msl_addressed")
        elif index not in kept and tokens[index - 1].text in _BEFORE_UNARY:
            yield from _wrapped(tokens, index + 1, _operand_end(tokens, index + 1), "msl_pointed")


def _wrapped(tokens: list[Token], start: int, end: int, function: str) -> Iterator[Edit]:
    """Wraps the operand in tokens[start:end] in a call of `function` if the operand is an element of an array or
    vector."""
    last = end - 1
    while last > start and tokens[last].text == ")":
        last -= 1
    if last > start and tokens[last].text == "]" and tokens[start].text != "[":
        yield tokens[start].start, tokens[start].start, f"{function}("
        yield tokens[end - 1].end, tokens[end - 1].end, ")"


def _value_of(tokens: list[Token], auto: int) -> int | None:
    """Returns the index at which the lvalue behind `auto& r =`, `auto&& r =`, `decltype(auto) r =` or `auto p = &`
    starts.

    None for other declarations, and for a const reference, which may be bound to a copy.
    """
    at = auto + 1
    if tokens[at].text == ")":  # the closing bracket of decltype(auto)
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
    """The index behind an operand: a name or a bracket with its subscripts, calls and members."""
    if tokens[index].text == "(":
        index = matching(tokens, index) + 1
    elif tokens[index].kind == "word":
        index += 1
    else:
        return index
    while index < len(tokens) - 1 and tokens[index].text in ("(", "[", ".", "->", "::"):
        index = matching(tokens, index) + 1 if tokens[index].text in "([" else index + 2
    return index
