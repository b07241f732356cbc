"""Functions as arguments of templates and of functions.

Clang's C++ for OpenCL puts pointers to functions in an address space that holds no function. msl_function (types.h of
the shim) names the type of a function's address instead. The address of a static member function has yet another space:
in a text that passes such a function to a template, the parameter's type becomes `auto`.
"""

from collections.abc import Iterator

from .names import statement_end, template_end
from .tokens import Token, Tokens, matching

_NO_FUNCTION = ("decltype", "sizeof", "alignof")
Edit = tuple[int, int, str]


def function_pointer_edits(tokens: Tokens) -> Iterator[Edit]:
    """Yields (start, end, new text): `template <R (*F)(A)>`, `R F(A)` or an alias become msl_function<R (A)>::type
    F."""
    known = set(aliases(tokens))
    for name in parameters(tokens):
        yield from _named(tokens, _type_start(tokens, name - 2), name - 2, name + 1, matching(tokens, name + 2) + 1)
    found = []
    for index in tokens.where(("template",), 1):
        if tokens[index + 1].text == "<":
            found += _parameters(tokens, index + 2, template_end(tokens, index + 1), known)
    members = bool(found) and _passes_members(tokens)
    for parameter in found:
        yield from _untyped(parameter) if members else parameter


def parameters(tokens: Tokens) -> Iterator[int]:
    """Yields the indices of the names of parameters that are functions, as in void f(R (*name)(A)) {...}."""
    open_brackets: list[str] = []
    for index in tokens.where("(){}[]", 5):
        token = tokens[index]
        if token.text in ("(", "{", "["):
            named = tokens[index + 1].text == "*" and tokens[index + 2].kind == "word"
            named = named and (tokens[index + 3].text, tokens[index + 4].text) == (")", "(")
            typed = tokens[index - 1].kind == "word" or tokens[index - 1].text in (">", "*", "&")
            behind = tokens[matching(tokens, index + 4) + 1].text if named else ""
            if named and typed and open_brackets[-1:] == ["("] and behind in (",", ")"):
                yield index + 2
            open_brackets.append(token.text)
        elif token.text in (")", "}", "]") and open_brackets:
            open_brackets.pop()


def _type_start(tokens: list[Token], index: int) -> int:
    """The index of the first token of the parameter whose declarator is at `index`."""
    depth = 0
    while depth or tokens[index - 1].text not in ("(", ","):
        index -= 1
        depth += (tokens[index].text == ">") - (tokens[index].text == "<")
    return index


def _untyped(parameter: list[Edit]) -> Iterator[Edit]:
    """The edits that declare the same parameter with the type `auto`."""
    (start, _, _), (_, _, last) = parameter[0], parameter[-1]
    end = max(end for _, end, _ in parameter)
    yield start, end, "auto " + last.removeprefix(">::type ")


def _passes_members(tokens: list[Token]) -> bool:
    """Whether a static member function is an argument of a template, as in <S::f> or <T, &S::f<int>>."""
    classes, functions = set(), set()
    for index, token in enumerate(tokens[:-1]):
        if token.text in ("struct", "class"):
            classes.add(tokens[index + 1].text)
        elif token.text == "static":
            opening = next((at for at in range(index, len(tokens)) if tokens[at].text in ("(", "=", ";", "{")), index)
            functions.add(tokens[opening - 1].text)
    return any(
        one.text in classes and colons.text == "::" and name.text in functions and after.text in (",", ">", "<")
        for one, colons, name, after in zip(tokens, tokens[1:], tokens[2:], tokens[3:])
    )


def aliases(tokens: Tokens) -> Iterator[str]:
    """Yields the names declared by using F = R (*)(A); and typedef R (*F)(A);"""
    for index in tokens.where(("using", "typedef"), 2):
        token = tokens[index]
        for at in range(index, statement_end(tokens, index)):
            if tokens[at].text == "(" and tokens[at + 1].text in ("*", "&"):
                if token.text == "using" and tokens[index + 2].text == "=" and tokens[at + 2].text == ")":
                    yield tokens[index + 1].text
                elif token.text == "typedef" and tokens[at + 3].text == ")":
                    yield tokens[at + 2].text


def _parameters(tokens: list[Token], start: int, end: int, aliases: set[str]) -> Iterator[list[Edit]]:
    """Yields the edits of each template parameter between two angle brackets that is a function."""
    depth, index = 0, start
    while index <= end:
        if tokens[index].text in ("(", "["):
            index = matching(tokens, index) + 1
            continue
        if index == end or (depth == 0 and tokens[index].text == ","):
            edits = list(_parameter(tokens, start, index, aliases))
            if edits:
                yield edits
            start = index + 1
        depth += (tokens[index].text == "<") - (tokens[index].text == ">")
        index += 1


def _parameter(tokens: list[Token], start: int, end: int, aliases: set[str]) -> Iterator[Edit]:
    """The edits of one template parameter, which is tokens[start:end]."""
    last = next((at for at in range(start, end) if tokens[at].text == "="), end)
    if last - start < 2:
        return
    if tokens[start].text in aliases:
        yield _type_at(tokens[start])
        yield tokens[last - 1].start, tokens[last - 1].start, ">::type "
        return
    for at in range(start + 1, last - 1):
        if tokens[at + 1].text == "(" and tokens[at].kind == "word" and tokens[at].text not in _NO_FUNCTION:
            if matching(tokens, at + 1) == last - 1:  # declared as a function, without a pointer
                yield from _named(tokens, start, at, at, last)
            return
        pointer = [token.text for token in tokens[at : at + 2]] in (["(", "*"], ["(", "&"])
        if pointer and tokens[at + 3].text == ")" and tokens[at + 4].text == "(":  # a pointer or a reference
            yield from _named(tokens, start, at, at + 3, last)
            return


def _named(tokens: list[Token], start: int, first: int, closing: int, last: int) -> Iterator[Edit]:
    """The edits of a parameter whose declarator is made of the tokens from `first` to `closing`."""
    name = tokens[first] if first == closing else tokens[first + 2]
    yield _type_at(tokens[start])
    yield tokens[first].start, tokens[closing].end, " "
    yield tokens[last - 1].end, tokens[last - 1].end, f">::type {name.text}"


def _type_at(token: Token) -> Edit:
    return token.start, token.start, "typename msl_function<"
