"""Statements of a function body: locals, if, for with constant bounds, return."""

from __future__ import annotations

from .functions import TYPES
from .parser import Parser
from .scope import Scope
from .syntax import Assign, Binary, Body, For, If, Literal, Name, Return, Unary
from .tokens import Source, Token

MOST_ROUNDS = 256  # the most times that nested loops may run a statement
DECLARES = ("const", *TYPES)
COMPOUND = ("+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=")


class Statements(Parser):
    """The parser of whole texts. `result`: the type that a return gives."""

    def __init__(self, source: Source, scope: Scope, result: str):
        super().__init__(source, scope)
        self.result, self.rounds = result, 1

    def whole(self) -> Body:
        if not any(token.text in (";", "return", "{") for token in self.tokens[:-1]):
            at = self.token
            value = self.returned(at)
            if self.token.kind != "end":
                remedy = "Statements end with a semicolon, and the last one is a return."
                raise self.error("an operator or the end", remedy=remedy)
            return (Return(value),)
        found = []
        while self.token.kind != "end":
            found.append(self.statement())
        return tuple(found)

    def returned(self, at: Token):
        value = self.expression()
        fits = value.type == self.result or (self.result == "float" and value.type == "int")
        if not fits:
            remedy = "Compare, as in k <= q." if self.result == "bool" else "Write condition ? s : -INFINITY."
            raise self.source.error(at, f"a result of type {self.result}", value.type, remedy)
        return self.converted(value, self.result)

    def statement(self):
        at = self.token
        if self.accepts("return"):
            value = self.returned(at)
            self.expect(";", "behind a statement")
            return Return(value)
        if self.accepts("if"):
            return self.condition()
        if self.accepts("for"):
            return self.loop()
        if at.text in DECLARES and at.kind == "name":
            return self.declaration()
        return self.assignment()

    def block(self) -> Body:
        """One statement, or several in braces, with locals of their own."""
        self.deeper()
        self.scope.blocks.append({})
        found = []
        if self.accepts("{"):
            while not self.accepts("}"):
                if self.token.kind == "end":
                    raise self.error('"}" at the end of a block')
                found.append(self.statement())
        else:
            found.append(self.statement())
        self.scope.blocks.pop()
        self.depth -= 1
        return tuple(found)

    def condition(self) -> If:
        self.expect("(", "behind if")
        condition = self.converted(self.expression(), "bool")
        self.expect(")", "behind a condition")
        then = self.block()
        return If(condition, then, self.block() if self.accepts("else") else ())

    def declaration(self) -> Assign:
        self.accepts("const")
        kept = self.take()
        if kept.text not in TYPES:
            raise self.error("a type: float, int or bool", kept)
        name = self.take()
        self.expect("=", f"and a value for the local {name.text}")
        value = self.expression()
        self.expect(";", "behind a statement")
        self.scope.declare(self, name, kept.text)
        return Assign(name.text, kept.text, self.converted(value, kept.text), declares=True)

    def assignment(self) -> Assign:
        at = self.take()
        if at.kind != "name":
            raise self.error("a statement", at)
        local, sign = self.scope.local(self, at), self.take()
        if sign.text in ("++", "--"):
            value = self.combined(sign._replace(text=sign.text[0]), Name(local.type, at.text), Literal("int", 1))
        elif sign.text in COMPOUND:
            value = self.combined(sign._replace(text=sign.text[:-1]), Name(local.type, at.text), self.expression())
        elif sign.text == "=":
            value = self.expression()
        else:
            raise self.error("an assignment", sign, "Arrays cannot be written, and expressions do nothing alone.")
        self.expect(";", "behind a statement")
        return Assign(at.text, local.type, self.converted(value, local.type), declares=False)

    def loop(self) -> For:
        """for (int i = first; i < last; i += step)"""
        at = self.expect("(", "behind for")
        self.expect("int", "at the beginning of a loop")
        name = self.take()
        self.expect("=", "and the first value of the counter")
        first = self.constant()
        self.expect(";", "behind the first value")
        self.counter(name)
        order = self.take()
        if order.text not in ("<", "<=", ">", ">="):
            raise self.error("the counter compared with a constant by <, <=, > or >=", order)
        last = self.constant()
        self.expect(";", "behind the last value")
        step = self.step(name)
        self.expect(")", "behind the step")
        last += {"<=": 1, ">=": -1}.get(order.text, 0)
        if step == 0 or (step > 0) != (order.text in ("<", "<=")):
            raise self.source.error(at, "a loop that ends", "one without an end", "Check its step.")
        numbers = range(first, last, step)
        outer, self.rounds = self.rounds, self.rounds * max(1, len(numbers))
        if self.rounds > MOST_ROUNDS:
            got = f"{self.rounds}"
            raise self.source.error(at, f"at most {MOST_ROUNDS} rounds of nested loops", got, "Use an array.")
        self.scope.blocks.append({})
        self.scope.declare(self, name, "int")
        self.scope.counters.add(name.text)
        body = self.block()
        self.scope.counters.discard(name.text)
        self.scope.blocks.pop()
        self.rounds = outer
        return For(name.text, numbers, body)

    def counter(self, name: Token) -> None:
        if self.token.text != name.text:
            raise self.error(f"the counter {name.text}")
        self.take()

    def step(self, name: Token) -> int:
        if self.accepts("++", "--"):
            sign = self.tokens[self.place - 1].text
            self.counter(name)
        else:
            self.counter(name)
            sign = self.take().text
        if sign in ("++", "--"):
            return 1 if sign == "++" else -1
        if sign not in ("+=", "-="):
            raise self.error("a constant step, such as i++ or i += 2")
        return self.constant() * (1 if sign == "+=" else -1)

    def constant(self) -> int:
        """An integer that the text alone gives."""
        at = self.token
        value = folded(self.binary(0))
        if value is None:
            remedy = "Loops run a number of times that the text alone says."
            raise self.source.error(at, "a constant integer", "what varies", remedy)
        return value


def folded(of) -> int | None:
    """The value of an expression of integer literals, None for others."""
    if isinstance(of, Literal) and of.type == "int":
        return of.value
    if isinstance(of, Unary) and of.sign == "-":
        inner = folded(of.of)
        return None if inner is None else -inner
    if isinstance(of, Binary) and of.sign in ("+", "-", "*"):
        left, right = folded(of.left), folded(of.right)
        if left is None or right is None:
            return None
        return left + right if of.sign == "+" else left - right if of.sign == "-" else left * right
    return None
