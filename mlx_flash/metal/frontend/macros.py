"""Expands the macros of a text, for rules that have to see through them.

The result is not meant for the compiler: conditions such as #if are not evaluated, and a macro that is defined twice,
or that pastes or quotes its arguments, is not expanded.
"""

from __future__ import annotations

from typing import NamedTuple

from .tokens import Token, Tokens, macro_tokens, matching

DEEPEST = 16  # levels of macros within macros


class Macro(NamedTuple):
    parameters: list[str] | None  # None for an object-like macro
    body: list[Token]


def expanded(tokens: Tokens) -> Tokens:
    """The tokens with each use of a macro replaced by its body; the tokens of a body keep their position in the
    definition."""
    macros = _macros(tokens)
    return Tokens(_expand(tokens, macros, frozenset(), 0)) if macros else tokens


def _macros(tokens: Tokens) -> dict[str, Macro]:
    found: dict[str, Macro] = {}
    twice = set()
    for index in tokens.directives:
        inner = macro_tokens(tokens[index])
        if len(inner) < 3:
            continue
        name, after = inner[1], inner[2]
        twice |= {name.text} if name.text in found else set()
        if after.text == "(" and after.start == name.end:
            end = matching(inner, 2)
            names = [one.text for one in inner[3:end] if one.text != ","]
            found[name.text] = Macro(names, inner[end + 1 :])
        else:
            found[name.text] = Macro(None, inner[2:])
    plain = {name: macro for name, macro in found.items() if not any(token.text == "#" for token in macro.body)}
    return {name: macro for name, macro in plain.items() if name not in twice and "." not in (macro.parameters or [])}


def _expand(tokens: list[Token], macros: dict[str, Macro], inside: frozenset[str], depth: int) -> list[Token]:
    found, index = [], 0
    while index < len(tokens):
        token = tokens[index]
        macro = macros.get(token.text) if token.kind == "word" and token.text not in inside else None
        calls = index + 1 < len(tokens) and tokens[index + 1].text == "("
        if macro is None or depth == DEEPEST or (macro.parameters is not None and not calls):
            found.append(token)
            index += 1
            continue
        body, index = macro.body, index + 1
        if macro.parameters is not None:
            end = matching(tokens, index)
            arguments = _arguments(tokens[index + 1 : end])
            given = dict(zip(macro.parameters, arguments))
            body = [inner for one in body for inner in (given.get(one.text, [one]) if one.kind == "word" else [one])]
            index = end + 1
        found += _expand(body, macros, inside | {token.text}, depth + 1)
    return found


def _arguments(tokens: list[Token]) -> list[list[Token]]:
    """The arguments of a macro. The preprocessor matches parentheses only, so a comma within <>, [] or {} separates."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text == "(") - (token.text == ")")
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
