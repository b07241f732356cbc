"""Constructors, conversions and copies of classes.

C++ for OpenCL constructs a value before the value is in any address space, and copies nothing out of the constant space
by itself. In Metal a constructor may name the space that it builds in, and values are copied from every space.
"""

from collections.abc import Iterator

from .names import template_end
from .tokens import Token, Tokens, matching

_BEFORE_BODY = (")", "const", "noexcept", "thread", "threadgroup", "device", "constant")
_CLASSES = ("struct", "class", "union")
_SPACES = ("thread", "threadgroup", "device", "constant")
# Added to a class with a constructor for threadgroup memory: target/entry.h looks for this type.
THREADGROUP = "typedef void msl_threadgroup_object;"
Edit = tuple[int, int, str]


def constructor_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text): drops the address spaces of constructors and adds copies out of the constant
    space."""
    enclosing: list[tuple[str, set] | None] = []
    aggregates: set[str] = set()
    pending, functions, access = None, 0, ""
    names = {_name(tokens, index + 1) for index in tokens.where(_CLASSES)} - {None}
    for index in tokens.where((*names, *_CLASSES, *"){};", "operator")):
        token = tokens[index]
        if token.text == "operator" and tokens[index + 1].kind == "word":
            yield from _conversion(tokens, index)
        elif token.text in _CLASSES and tokens[index - 1].text not in ("enum", "<", ","):
            pending, access = _name(tokens, index + 1), " private:" if token.text == "class" else ""
            if pending and token.text == "union":
                pending = f" {pending}"  # A union has constructors, but is not copied member by member.
        elif token.text in (";", ")"):
            pending = None
        elif token.text == "{":
            functions += bool(functions) or (not pending and tokens[index - 1].text in _BEFORE_BODY)
            if pending and not pending.startswith(" "):
                yield from _copies(tokens, index, pending, access, local=functions > 0)
                if not list(_constructors(tokens, index, pending)):
                    aggregates.add(pending)
            enclosing.append((pending.strip(), set()) if pending else None)
            pending = None
        elif token.text == "}" and enclosing:
            functions -= functions > 0
            enclosing.pop()
        elif enclosing and enclosing[-1] and token.text == enclosing[-1][0] and _opening(tokens, index):
            yield from _edits(tokens, index, enclosing[-1][1])
    yield from _lists(tokens, aggregates)


def _lists(tokens: Tokens, aggregates: set[str]) -> Iterator[Edit]:
    """Turns S({1, 2}) and S<T>({1, 2}) into S{1, 2}: with two copy constructors the call would be ambiguous."""
    for index in tokens.where(aggregates, 3):
        opening = _opening(tokens, index)
        if opening and tokens[opening + 1].text == "{" and tokens[matching(tokens, opening + 1) + 1].text == ")":
            closing = tokens[matching(tokens, opening)]
            yield tokens[opening].start, tokens[opening].end, ""
            yield closing.start, closing.end, ""


def _name(tokens: list[Token], index: int) -> str | None:
    if tokens[index].text == "alignas":
        index = matching(tokens, index + 1) + 1
    return tokens[index].text if tokens[index].kind == "word" else None


def _copies(tokens: list[Token], opening: int, name: str, access: str, local: bool) -> Iterator[Edit]:
    """Adds defaulted copies, from the constant space too, which leave an aggregate an aggregate.

    access: what restores the class's own access behind them. local: the class is defined in a function, where it may
    not have templates.
    """
    constructors = list(_constructors(tokens, opening, name))
    openings = [_opening(tokens, at) for at in constructors]
    parameters = [[t.text for t in tokens[at + 1 : matching(tokens, at)]] for at in openings]
    if any(pair == (name, "&") for texts in parameters for pair in zip(texts, texts[1:])):
        return  # The class has a copy constructor of its own.
    default = "" if constructors else f"{name}() = default; "
    copies = f"{name}(const {name}&) = default; {name}(const __constant {name}&) = default; "
    # Its type depends on a parameter, so that a structure with constant members is no error until one is assigned.
    body = "{ MslTo& to = *this; to = MslTo(from); return *this; }"
    parameters = f"template <typename MslFrom, typename MslTo = {name}>"
    assigns = f"{name}& operator=(const {name}&) = default; "
    assigns += f"{parameters} {name}& operator=(const __constant MslFrom& from) {body} "
    end = tokens[opening].end
    yield end, end, f" public: {default}{copies}{'' if local else assigns}{access}"


def _constructors(tokens: list[Token], opening: int, name: str) -> Iterator[int]:
    depth = 0
    for index in range(opening, matching(tokens, opening)):
        text = tokens[index].text
        depth += (text in "{(") - (text in "})")
        if depth == 1 and text == name and _opening(tokens, index) and tokens[index - 1].text != "~":
            yield index


def _opening(tokens: list[Token], index: int) -> int | None:
    """The index of the parenthesis in S(...) or S<T>(...), named at `index`; None for other uses of the name."""
    index += 1
    if tokens[index].text == "<":
        index = template_end(tokens, index) + 1
    return index if index < len(tokens) and tokens[index].text == "(" else None


def _conversion(tokens: list[Token], index: int) -> Iterator[Edit]:
    """Drops `thread` from `operator T() const thread`, so that it also converts values that are in no address space
    yet."""
    while tokens[index].text != "(":
        index += 1
    index = matching(tokens, index) + 1
    if tokens[index].text == "const":
        index += 1
    if tokens[index].text == "thread":
        yield tokens[index].start, tokens[index].end, ""


def _edits(tokens: list[Token], index: int, known: set) -> Iterator[Edit]:
    close = matching(tokens, _opening(tokens, index))
    after = tokens[close + 1]
    key = _key(tokens, index, close)
    if after.text == "constant":
        yield after.start, after.end, "__constant"
        return
    start = tokens[_start(tokens, index)].start
    marked = THREADGROUP if after.text == "threadgroup" and "constexpr" in key and tokens[close - 1].text == "(" else ""
    if after.text in _SPACES and key in known:
        yield start, tokens[_end(tokens, close + 2)].end, marked
        return
    known.add(key)
    if marked:
        yield start, start, f"{marked} "
    if after.text in _SPACES:
        yield after.start, after.end, ""


def _key(tokens: list[Token], index: int, close: int) -> tuple[str, ...]:
    """The signature of a constructor: its template header and its parameters."""
    return tuple(token.text for token in tokens[_start(tokens, index) : close])


def _start(tokens: list[Token], index: int) -> int:
    """The index of the first token of the declaration whose name is at `index`."""
    while tokens[index - 1].text not in (";", "{", "}", ":") and tokens[index - 1].kind != "directive":
        index -= 1
    return index


def _end(tokens: list[Token], index: int) -> int:
    """The index of the last token of the constructor whose initialisers, body or semicolon start at `index`."""
    if tokens[index].text == ":":
        while tokens[index].text in (":", ","):
            index += 1
            while tokens[index].text not in ("(", "{"):
                index += 1
            index = matching(tokens, index) + 1
    if tokens[index].text == "{":
        index = matching(tokens, index)
        return index + 1 if tokens[index + 1].text == ";" else index
    while tokens[index].text != ";":
        index += 1
    return index
