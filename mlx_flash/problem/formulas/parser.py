"""Tokens -> checked nodes: a recursive descent over Metal's expressions, and over the statements of a function body.

The grammar has no pointers, writes to memory, macros, casts of addresses or recursion, and so no text can use them.
"""

from __future__ import annotations

from .functions import CONSTANTS, FUNCTIONS, POLYMORPH, TESTS, TYPES
from .scope import Scope
from .syntax import Binary, Call, Choice, Expression, Item, Literal, Name, Unary
from .tokens import Source, Token, tokens_of

PRECEDENCE = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"), ("+", "-"),
    ("*", "/", "%"),
)  # fmt: skip
COMPARISONS, LOGIC, WHOLE = ("==", "!=", "<", ">", "<=", ">="), ("&&", "||"), ("%", "&", "|", "^", "<<", ">>")
DEEPEST = 40  # levels of parentheses, blocks and functions


class Parser:
    """Walks the tokens once. Raises InvalidArgument with line and column of the first mistake."""

    def __init__(self, source: Source, scope: Scope):
        self.source, self.scope, self.tokens = source, scope, tokens_of(source)
        self.place = self.depth = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.place]

    def take(self) -> Token:
        token = self.token
        self.place += token.kind != "end"
        return token

    def accepts(self, *words: str) -> bool:
        """Takes the token if it is one of the words."""
        found = self.token.kind != "end" and self.token.text in words
        self.place += found
        return found

    def expect(self, word: str, after: str) -> Token:
        if self.token.kind == "end" or self.token.text != word:
            raise self.error(f'"{word}" {after}', remedy="")
        return self.take()

    def error(self, expected: str, token: Token | None = None, remedy: str = "Check the text."):
        token = token or self.token
        got = token.text if token.kind == "end" else repr(token.text)
        return self.source.error(token, expected, got, remedy)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"at most {DEEPEST} levels of nesting", remedy="Name a part of it in a local.")

    def expression(self) -> Expression:
        """An expression of any precedence, `condition ? then : other` included."""
        self.deeper()
        condition = self.binary(0)
        if self.accepts("?"):
            condition = self.converted(condition, "bool")
            then = self.expression()
            self.expect(":", "between the two values of ?")
            condition = self.choice(condition, then, self.expression())
        self.depth -= 1
        return condition

    def choice(self, condition: Expression, then: Expression, other: Expression) -> Choice:
        wider = max(then.type, other.type, key=TYPES.index)
        return Choice(wider, condition, self.converted(then, wider), self.converted(other, wider))

    def binary(self, level: int) -> Expression:
        if level == len(PRECEDENCE):
            return self.unary()
        left = self.binary(level + 1)
        while self.token.kind == "sign" and self.token.text in PRECEDENCE[level]:
            at = self.take()
            left = self.combined(at, left, self.binary(level + 1))
        return left

    def combined(self, at: Token, left: Expression, right: Expression) -> Expression:
        """Two operands, converted as C converts them."""
        sign = at.text
        if sign in LOGIC:
            return Binary("bool", sign, self.converted(left, "bool"), self.converted(right, "bool"))
        wider = max(left.type, right.type, "int", key=TYPES.index)
        if sign in WHOLE and wider == "float":
            remedy = "Use fmod(x, y), or convert with int(...)."
            raise self.source.error(at, f"integers beside {sign}", f"{left.type} and {right.type}", remedy)
        type = "bool" if sign in COMPARISONS else wider
        return Binary(type, sign, self.converted(left, wider), self.converted(right, wider))

    def unary(self) -> Expression:
        at = self.token
        if at.kind == "sign" and self.accepts("-", "+", "!", "~"):
            self.deeper()
            of = self.unary()
            self.depth -= 1
            if at.text == "!":
                return Unary("bool", "!", self.converted(of, "bool"))
            if at.text == "~" and of.type == "float":
                raise self.source.error(at, "an integer beside ~", "a float", "Convert it with int(...).")
            of = self.converted(of, max(of.type, "int", key=TYPES.index))
            return of if at.text == "+" else Unary(of.type, at.text, of)
        return self.primary()

    def primary(self) -> Expression:
        at = self.take()
        if at.kind == "int":
            if int(at.text) >= 2**31:
                raise self.error("an integer below 2^31", at, "Write it with a decimal point.")
            return Literal("int", int(at.text))
        if at.kind == "float":
            value = float(at.text.rstrip("fF"))
            if value > CONSTANTS["FLT_MAX"]:
                raise self.error("a number that float32 holds", at, "Write INFINITY.")
            return Literal("float", value)
        if at.text == "(" and at.kind == "sign":
            inner = self.expression()
            self.expect(")", "behind an expression in parentheses")
            return inner
        if at.kind == "name" and at.text in CONSTANTS:
            value = CONSTANTS[at.text]
            return Literal({bool: "bool", int: "int"}.get(type(value), "float"), value)
        if at.kind == "name" and self.token.text == "(":
            return self.call(at)
        if at.kind == "name":
            return self.named(at)
        raise self.error("an expression", at)

    def named(self, at: Token) -> Expression:
        named = self.scope.find(self, at)
        if named.axes and self.token.text != "[":
            remedy = f"Write {at.text}{'[...]' * named.axes}."
            raise self.error(f"an index of the array {at.text}", remedy=remedy)
        indices: list[Expression] = []
        while self.token.text == "[":
            bracket = self.take()
            if len(indices) == (named.axes or 0):
                got = f"an index of {at.text}, which has {named.axes or 'no'} axes"
                raise self.source.error(bracket, "an operator", got, "Only named arrays have elements.")
            indices.append(self.index())
        if len(indices) < (named.axes or 0):
            got = f"{len(indices)} of {named.axes}"
            raise self.source.error(at, f"an index for every axis of {at.text}", got, "Add the others.")
        return Item(named.type, at.text, tuple(indices)) if indices else Name(named.type, at.text)

    def index(self) -> Expression:
        at = self.token
        index = self.expression()
        self.expect("]", "behind an index")
        if index.type == "float":
            raise self.source.error(at, "an integer as index", "a float", "Convert it with int(...).")
        return self.converted(index, "int")

    def call(self, at: Token) -> Expression:
        name, arguments = at.text, []
        self.expect("(", "")
        while not self.accepts(")"):
            if arguments:
                self.expect(",", "between arguments")
            arguments.append(self.expression())
        if name not in (*FUNCTIONS, *TYPES, "select"):
            remedy = f"The language has {', '.join((*TYPES, 'select', *FUNCTIONS))}."
            raise self.error("a function of the language", at, remedy)
        arity = 1 if name in TYPES else 3 if name == "select" else FUNCTIONS[name].arity
        if len(arguments) != arity:
            got = f"{len(arguments)} for {name}"
            raise self.source.error(at, f"{arity} argument{'s' * (arity > 1)}", got, "Add or drop some.")
        if name in TYPES:
            return self.converted(arguments[0], name)
        if name == "select":  # Metal's order: the value where the condition holds comes second
            return self.choice(self.converted(arguments[2], "bool"), arguments[1], arguments[0])
        return self.function(name, arguments)

    def function(self, name: str, arguments: list[Expression]) -> Call:
        type = "float"
        if name in POLYMORPH:
            type = max(*(one.type for one in arguments), "int", key=TYPES.index)
        arguments = [self.converted(one, type) for one in arguments]
        return Call("bool" if name in TESTS else type, name, tuple(arguments))

    def converted(self, of: Expression, type: str) -> Expression:
        """The expression as another type; integer literals become float literals."""
        if isinstance(of, Literal) and (of.type, type) == ("int", "float"):
            return Literal("float", float(of.value))
        return of if of.type == type else Call(type, type, (of,))
