"""Methods declared without an address space.

In Metal such a method is called on objects in the thread's memory, and members of the object bind to references of type
`thread`. In C++ for OpenCL it is called on objects in any space, so its members are in the generic space.

Each such method gets a macro, which the compiler's driver defines as `thread` if members are bound to such references.
A constant method of the thread's space cannot be called on a temporary, which is in no address space yet. Constant
methods therefore have a macro of their own, which is defined last, and classes without data members, such as functors,
are left alone. For the same reason the `thread` of `const thread` becomes a macro, which is empty if such a method is
called on a temporary. A reference or pointer of type `thread` that a method returns is cast to that type.
"""

from collections.abc import Iterator

from .names import statement_end
from .tokens import Token, Tokens, matching

MACRO = "msl_method_space"
CONST_MACRO = "msl_const_method_space"
OWN_CONST_MACRO = "msl_own_const_method_space"
_SPACES = frozenset({"thread", "threadgroup", "device", "constant", "threadgroup_imageblock"})
_NO_MEMBERS = frozenset({"static", "using", "typedef", "friend", "template", "enum", "struct", "class", "union"})
_NO_METHOD = frozenset({"static", "friend", "using", "typedef", "static_assert"})
Edit = tuple[int, int, str]


def method_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields the edit that puts the macro behind the parameters of each such method, at its declaration and
    definition."""
    stateful = set()
    for index in tokens.where(("struct", "class"), 1):
        if tokens[index - 1].text in ("enum", "<", ","):
            continue
        name, opening = _head(tokens, index)
        if opening is None:
            continue
        statements = list(_statements(tokens, opening))
        derived = any(one.text == ":" for one in tokens[index:opening])
        if derived or any(_declares_member(tokens[start:end]) for start, end in statements):
            stateful.add(name)
            for start, end in statements:
                yield from _edit(tokens, start, end, name)
                yield from _returns(tokens, start, end)
    yield from _outside(tokens, stateful)


def _head(tokens: list[Token], index: int) -> tuple[str, int | None]:
    """(name, index of the opening brace) of the class whose keyword is at `index`; a mere declaration has no brace:
    None."""
    name = ""
    while index + 1 < len(tokens):
        index += 1
        text = tokens[index].text
        if text == "{":
            return name, index
        if text == "alignas":
            index = matching(tokens, index + 1)
        elif text in (";", ")", "(", "=", "}"):
            return name, None
        elif not name and tokens[index].kind == "word":
            name = text
    return name, None


def _statements(tokens: list[Token], opening: int) -> Iterator[tuple[int, int]]:
    """Yields [start, end) of each declaration in the class body that opens there; for a function, without its body."""
    start = index = opening + 1
    last = matching(tokens, opening)
    while index < last:
        text = tokens[index].text
        if text in ("(", "[", "[["):
            index = matching(tokens, index)
        elif text in (";", "{"):
            yield start, index
            if text == "{":
                index = matching(tokens, index)
                if tokens[index + 1].text == ";":
                    index += 1
            start = index + 1
        elif tokens[index].kind == "directive":
            start = index + 1
        elif text == ":" and tokens[index - 1].text in ("public", "private", "protected"):
            start = index + 1
        index += 1


def _declares_member(declaration: list[Token]) -> bool:
    words = [token.text for token in declaration]
    plain = words[: words.index("=")] if "=" in words else words
    return bool(words) and "(" not in plain and not _NO_MEMBERS & set(words) and words[0] != "static_assert"


def _edit(tokens: list[Token], start: int, end: int, name: str) -> Iterator[Edit]:
    """The edit of one declaration in a class called `name`, if it is a method without an address space."""
    index = start
    while tokens[index].text == "template" and tokens[index + 1].text == "<":
        index = _past_angles(tokens, index + 1)
    while index < end and tokens[index].text != "(":
        if tokens[index].text in _NO_METHOD:
            return
        if tokens[index].text == "operator":
            if tokens[index + 1].kind == "word":
                return  # conversions have rules of their own
            index = _parameters_of_operator(tokens, index)
            break
        if tokens[index].text in ("=", "~"):
            return
        index = _past_attribute(tokens, index)
    if index >= end or tokens[index].text != "(" or tokens[index - 1].text in (name, "alignas"):
        return
    yield from _behind_parameters(tokens, matching(tokens, index))


def _parameters_of_operator(tokens: list[Token], index: int) -> int:
    """The index of the bracket before the parameters of the operator whose keyword is at `index`."""
    index += 2 if tokens[index + 1].text == "(" else 1
    while tokens[index].text != "(":
        index += 1
    return index if tokens[index - 1].text != "(" else index + 1


def _returns(tokens: list[Token], start: int, end: int) -> Iterator[Edit]:
    """Casts what a method returns, if its result is a reference or pointer of type `thread`.

    tokens[start:end] is the method's declaration, and its body opens at `end`.
    """
    head = tokens[start:end]
    opening = next((at for at, token in enumerate(head) if token.text == "("), 0)
    result = [token.text for token in head[:opening]]
    closing = matching(tokens, start + opening) if opening else start
    others = _SPACES - {"thread"}
    behind = {token.text for token in tokens[closing:end]}
    if tokens[end].text != "{" or "thread" not in result or "static" in result or others & (behind | set(result)):
        return
    kind = next((kind for mark, kind in (("*", "pointer"), ("&", "reference")) if mark in result), None)
    if kind is None or result.count("*") + result.count("&") > 1:
        return
    at, last = end, matching(tokens, end)
    while at < last:
        if tokens[at].text == "return":
            stop = statement_end(tokens, at)
            yield tokens[at].end, tokens[at].end, f" msl_own_{kind}("
            yield tokens[stop].start, tokens[stop].start, ")"
            at = stop
        at += 1


def _past_attribute(tokens: list[Token], index: int) -> int:
    """The index behind a token, or behind an attribute and its arguments."""
    if tokens[index].text in ("__attribute__", "alignas") and tokens[index + 1].text == "(":
        return matching(tokens, index + 1) + 1
    if tokens[index].text in ("[[", "["):
        return matching(tokens, index) + 1
    return index + 1


def _past_angles(tokens: list[Token], index: int) -> int:
    """The index behind the template header whose < is at `index`."""
    depth = 0
    while index < len(tokens):
        depth += {"<": 1, ">": -1, ">>": -2}.get(tokens[index].text, 0)
        index += 1
        if depth <= 0:
            return index
    return index


def _behind_parameters(tokens: list[Token], closing: int) -> Iterator[Edit]:
    constant = tokens[closing + 1].text == "const"
    at = closing + 1 if constant else closing
    following = tokens[at + 1].text if at + 1 < len(tokens) else ""
    if constant and following == "thread":
        yield tokens[at + 1].start, tokens[at + 1].end, OWN_CONST_MACRO
    elif following not in _SPACES and following != "=" and "volatile" not in (following, tokens[at].text):
        yield tokens[at].end, tokens[at].end, f" {CONST_MACRO if constant else MACRO}"


def _outside(tokens: Tokens, stateful: set[str]) -> Iterator[Edit]:
    """Yields the edits of methods defined outside their classes: T S::f(...) {...} and T S<N>::f(...) {...}."""
    for index in tokens.where(("::",), 2):
        if tokens[index + 2].text != "(" or tokens[index + 1].kind != "word":
            continue
        before = index - 1
        if tokens[before].text == ">":
            depth = 1
            while depth and before > 0:
                before -= 1
                depth += (tokens[before].text == ">") - (tokens[before].text == "<")
            before -= 1
        if tokens[before].text not in stateful or tokens[index + 1].text == tokens[before].text:
            continue
        closing = matching(tokens, index + 2)
        at = closing + 2 if tokens[closing + 1].text == "const" else closing + 1
        if at < len(tokens) and tokens[at].text == "{" and before and tokens[before - 1].kind == "word":
            yield from _behind_parameters(tokens, closing)
