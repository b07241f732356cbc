"""Functions as template arguments, where the parameter's type is an alias that depends on another: clang takes none."""

from collections.abc import Iterator

from .tokens import Token


def function_pointer_edits(tokens: list[Token]) -> Iterator[tuple[int, int, str]]:
    """(start, end, replacement): `template <typename T, F<T> f>` with `using F = void (*)(T)` takes `auto f`."""
    aliases = {
        tokens[i + 1].text for i, token in enumerate(tokens[:-2]) if token.text == "using" and _points(tokens, i + 2)
    }
    if not aliases:
        return
    for index, token in enumerate(tokens[:-1]):
        if token.text == "template" and tokens[index + 1].text == "<":
            yield from _parameters(tokens, index + 2, aliases)


def _points(tokens: list[Token], index: int) -> bool:
    """Is this `= type (*)(...);`?"""
    if tokens[index].text != "=":
        return False
    while tokens[index].text != ";":
        if [t.text for t in tokens[index : index + 4]] == ["(", "*", ")", "("]:
            return True
        index += 1
    return False


def _parameters(tokens: list[Token], index: int, aliases: set[str]) -> Iterator[tuple[int, int, str]]:
    depth, start = 1, index
    while depth:
        text = tokens[index].text
        depth += (text == "<") - (text == ">")
        if depth == 0 or (depth == 1 and text == ","):
            if tokens[start].text in aliases and index - start > 1:
                yield tokens[start].start, tokens[index - 2].end, "auto"
            start = index + 1
        index += 1
