"""The names that a Metal text gives to types and to whole numbers, and the scope of each name."""

import ast
import operator
from typing import NamedTuple

from .tokens import Token, Tokens, macro_tokens, matching, split_arguments

_SCALARS = ("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "half", "bfloat")
BUILTIN = frozenset(
    [*_SCALARS, "size_t", "bfloat16_t", "float16_t", "void", "unsigned", "signed", "ptrdiff_t"]
    + [f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    + [f"{packed}{scalar}{n}" for scalar in _SCALARS for n in (2, 3, 4) for packed in ("", "packed_")]
    + [f"{scalar}{c}x{r}" for scalar in ("float", "half") for c in (2, 3, 4) for r in (2, 3, 4)]
    + ["vec", "packed_vec", "matrix", "simdgroup_matrix", "simdgroup_float8x8", "simdgroup_half8x8"]
    + ["simdgroup_bfloat8x8", "atomic", "atomic_int", "atomic_uint", "atomic_float", "atomic_bool", "atomic_ulong"]
)
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitOr: operator.or_, ast.BitAnd: operator.and_,
}  # fmt: skip


_CLASSES = ("struct", "class", "union", "enum")
_NAMING = frozenset({"using", "typedef", "template", *_CLASSES})


class Known(NamedTuple):
    """A name of a type, known in tokens [start, end). `meaning`: the tokens it abbreviates; empty for a class."""

    start: int
    end: int
    meaning: list[Token]
    parameter: bool = False  # whether it is a template parameter


class Types:
    """The types of a text: `at(i)` tells whether token i names a type."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self.known: dict[str, list[Known]] = {}
        directives = (tokens[index] for index in tokens.directives)
        self.macros = {inner[1].text for token in directives if len(inner := macro_tokens(token)) > 1}
        ends = _ends_of_blocks(tokens)
        for index in tokens.where(_NAMING):
            token = tokens[index]
            if token.text == "using" and index + 2 < len(tokens) and tokens[index + 2].text == "=":
                end = statement_end(tokens, index)
                self._add(tokens[index + 1], Known(index, ends[index], tokens[index + 3 : end]))
            elif token.text == "typedef":
                end = statement_end(tokens, index)
                if tokens[end - 1].kind == "word":
                    self._add(tokens[end - 1], Known(end, ends[index], tokens[index + 1 : end - 1]))
            elif token.text == "template":
                if index + 1 < len(tokens) and tokens[index + 1].text == "<":
                    self._parameters(index + 1)
            elif token.text in _CLASSES and not self._in_brackets(index):
                name = self._tag(index + 1)
                if name is not None:
                    self._add(tokens[name], Known(name, ends[index], []))

    def _add(self, name: Token, known: Known):
        if name.kind == "word":
            self.known.setdefault(name.text, []).append(known)

    def _in_brackets(self, index: int) -> bool:
        """Whether the keyword is in a template header or follows `enum`: template <class T>, enum class."""
        return index > 0 and self.tokens[index - 1].text in ("<", ",", "enum")

    def _tag(self, index: int) -> int | None:
        while self.tokens[index].text in ("class", "struct", "alignas"):
            index = matching(self.tokens, index + 1) + 1 if self.tokens[index].text == "alignas" else index + 1
        return index if self.tokens[index].kind == "word" else None

    def _parameters(self, opening: int):
        """Records `typename T` of a template header, known to the end of the function or struct behind it."""
        closing = template_end(self.tokens, opening)
        end = closing
        while end < len(self.tokens) and self.tokens[end].text not in (";", "{"):
            end = matching(self.tokens, end) + 1 if self.tokens[end].text == "(" else end + 1
        if end < len(self.tokens) and self.tokens[end].text == "{":
            end = matching(self.tokens, end)
        for index in range(opening + 1, closing):
            before = self.tokens[index - 1].text
            if before in ("typename", "class") and self.tokens[index + 1].text in (",", ">", "="):
                self._add(self.tokens[index], Known(index, end, [], True))

    def at(self, index: int) -> bool:
        """Whether the token at `index` names a type."""
        token = self.tokens[index]
        if token.kind != "word" or (index and self.tokens[index - 1].text in (".", "->")):
            # A builtin type's name is a type even behind `->`, as in auto f() -> float: no member can have that name.
            known = self.find(token.text, index)  # a template parameter is not a member either
            return self.tokens[index - 1].text == "->" and (token.text in BUILTIN or bool(known and known.parameter))
        return token.text in BUILTIN or self.find(token.text, index) is not None

    def find(self, name: str, index: int) -> Known | None:
        """The meaning at `index` of a name that is not builtin; None if it does not name a type there."""
        for known in reversed(self.known.get(name, ())):
            if known.start <= index < known.end:
                return known
        return None

    def spelt_out(self, part: list[Token], index: int) -> list[Token]:
        """The tokens of a type, with aliases replaced by the types they abbreviate."""
        words: list[Token] = []
        for token in part:
            known = self.find(token.text, index) if token.kind == "word" else None
            if known and known.meaning and known.start < index:
                words += self.spelt_out(known.meaning, known.start)
            else:
                words.append(token)
        return words


def template_end(tokens: list[Token], index: int) -> int:
    """The index of the > that closes the < at `index`; of the last token if none does."""
    depth = 0
    while index < len(tokens):
        text = tokens[index].text
        if text in ("(", "[", "{"):
            index = matching(tokens, index)
        elif text in (";", "}"):
            break
        depth += (text == "<") - (text == ">")
        if depth == 0:
            return index
        index += 1
    return min(index, len(tokens) - 1)


def statement_end(tokens: list[Token], index: int) -> int:
    """The index of the next semicolon from `index` on; of the last token if there is none."""
    while index < len(tokens) - 1 and tokens[index].text != ";":
        index = matching(tokens, index) + 1 if tokens[index].text in ("(", "{", "[") else index + 1
    return min(index, len(tokens) - 1)


def _ends_of_blocks(tokens: Tokens) -> dict[int, int]:
    """For every word of _NAMING the index of the brace that closes the enclosing block, or the number of tokens
    outside blocks."""
    ends: dict[int, int] = {}
    open_blocks: list[int] = []
    around = len(tokens)
    for index in reversed(tokens.where(("{", "}", *_NAMING))):
        text = tokens[index].text
        if text == "{" and open_blocks:
            open_blocks.pop()
            around = open_blocks[-1] if open_blocks else len(tokens)
        ends[index] = around
        if text == "}":
            open_blocks.append(index)
            around = index
    return ends


def whole_numbers(tokens: Tokens) -> dict[str, int]:
    """{name: value} for macros, enumerators and constants that are whole numbers."""
    values: dict[str, int] = {}
    for index in sorted([*tokens.directives, *tokens.where(("enum", "="))]):
        token = tokens[index]
        if token.kind == "directive":
            inner = macro_tokens(token)
            if len(inner) > 2 and inner[2].start > inner[1].end:
                _keep(values, inner[1].text, inner[2:])
        elif token.text == "enum":
            opening = index
            while tokens[opening].text not in ("{", ";"):
                opening += 1
            if tokens[opening].text == "{":
                _enumerators(values, tokens[opening + 1 : matching(tokens, opening)])
        elif token.text == "=" and tokens[index - 1].kind == "word":
            words = {before.text for before in tokens[max(0, index - 6) : index]}
            if words & {"constant", "constexpr"}:
                _keep(values, tokens[index - 1].text, tokens[index + 1 : statement_end(tokens, index)])
    return values


def _enumerators(values: dict[str, int], tokens: list[Token]):
    following = 0
    for part in split_arguments(tokens):
        if len(part) > 2 and part[1].text == "=":
            _keep(values, part[0].text, part[2:])
            following = values.get(part[0].text, following)
        else:
            values[part[0].text] = following
        following += 1


def _keep(values: dict[str, int], name: str, tokens: list[Token]):
    value = whole_number(tokens, values)
    if value is not None:
        values[name] = value


def number(literal: str) -> int:
    """The value of an integer literal of C++."""
    literal = literal.replace("'", "").rstrip("uUlL")
    return int(literal, 8 if literal.strip("0") and literal[0] == "0" and literal.isdigit() else 0)


def whole_number(tokens: list[Token], values: dict[str, int]) -> int | None:
    """The value of an expression of literals and known names; None for other expressions."""
    words = []
    for token in tokens:
        if token.kind == "number":
            try:
                words.append(str(number(token.text)))
            except ValueError:
                return None
        elif token.text in values and (not words or words[-1] != "::"):
            words.append(str(values[token.text]))
        elif token.text in ("(", ")", "+", "-", "*", "|", "&", "<<"):
            words.append(token.text)
        elif token.text == "/":
            words.append("//")
        else:
            return None
    try:
        return _evaluated(ast.parse(" ".join(words), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def _evaluated(node: ast.expr) -> int:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluated(node.left), _evaluated(node.right))
    raise KeyError
