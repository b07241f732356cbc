"""A formula as a Metal struct: the numbers and arrays that it reads, and a function of one pair of query and key.

The user's names get the prefix u_, so that they cannot clash with a kernel's. Expressions that depend only on the head
are computed once per head. In backward kernels expressions that depend on the score are Duals (dual.metal).
"""

from __future__ import annotations

import math

import numpy as np

from .functions import FUNCTIONS, POLYMORPH, STEPS, TESTS
from .program import POSITIONS, Formula
from .syntax import (
    Assign,
    Binary,
    Body,
    Call,
    Choice,
    Expression,
    For,
    If,
    Item,
    Literal,
    Name,
    Unary,
    expressions,
    parts,
    statements,
)  # fmt: skip

POSITION_NAMES = frozenset(one.name for one in POSITIONS)
WHOLE = {"/": "quotient", "%": "residue", "<<": "left_shifted", ">>": "right_shifted"}
INDENT = "  "


def struct(formula: Formula, seed: str | None, by_head: bool) -> str:
    """The definition of `formula::Score` or `formula::Visible`.

    `seed`: the variable of the derivative of a score, "s" or one of its arrays; None: no derivative. `by_head`: whether
    a kernel processes heads one by one.
    """
    seed = seed if formula.owner == "Score" else None
    text = _Text(formula, seed, by_head)
    result = "bool" if formula.owner == "Visible" else text.type("float", seed is not None)
    body = text.block(formula.body, 2)
    score = "" if formula.owner == "Visible" else f"{text.type('float', seed == 's')} s, "
    lines = [
        f"struct {formula.owner} {{",
        *(f"  {member};" for member in text.members()),
        "  METAL_FUNC const device int* open(const device int* from, Pair at) thread {",
        *(f"    {line}" for line in text.opens()),
        *(f"    {name} = {value};" for name, (_, value) in text.hoisted.items()),
        "    return from;",
        "  }",
        f"  METAL_FUNC {result} of({score}Pair at) const thread {{",
        *body,
        "  }",
        "};",
        "",
    ]
    return "\n".join(lines)


class _Text:
    """The Metal text of a formula. `seed`: the variable of the derivative, s or an array; None for values alone."""

    def __init__(self, formula: Formula, seed: str | None, by_head: bool):
        self.formula, self.seed, self.by_head = formula, seed, by_head
        self.hoisted: dict[str, tuple[str, str]] = {}
        self.named = {one.name for one in formula.named}
        self.active_locals: set[str] = set()
        assigned = [one for one in statements(formula.body) if isinstance(one, Assign) and one.type == "float"]
        before = -1
        while len(self.active_locals) != before:  # in a loop, a later statement may make an earlier local active
            before = len(self.active_locals)
            self.active_locals |= {one.name for one in assigned if self.active(one.value)}

    def active(self, node: Expression) -> bool:
        """Whether the expression has a derivative in the seed."""
        if node.type != "float":
            return False
        if isinstance(node, Name):
            return node.name == self.seed or node.name in self.active_locals
        if isinstance(node, Item):
            return node.array == self.seed
        if isinstance(node, Call) and node.function in STEPS:
            return False
        return any(self.active(part) for part in parts(node))

    def type(self, type: str, active: bool) -> str:
        return "Dual" if active else type

    def members(self) -> list[str]:
        found = []
        for one in self.formula.named:
            if one.axes:
                found += [f"int u_{one.name}_{axis}" for axis in range(one.axes)]
                found.append(f"const device int* u_{one.name}")
            else:
                found.append(f"{one.type} u_{one.name}")
        return found + [f"{type} {name}" for name, (type, _) in self.hoisted.items()]

    def opens(self) -> list[str]:
        """The statements that read numbers, and the extents in front of arrays."""
        found = []
        for one in self.formula.named:
            if not one.axes:
                found.append(f"u_{one.name} = {_from_bits('from[0]', one.type)};")
                found.append("from += 1;")
                continue
            found += [f"u_{one.name}_{axis} = from[{axis}];" for axis in range(one.axes)]
            found.append(f"u_{one.name} = from + {one.axes};")
            size = " * ".join(f"u_{one.name}_{axis}" for axis in range(one.axes))
            found.append(f"from = u_{one.name} + {size};")
        return found

    def block(self, body: Body, level: int) -> list[str]:
        lines, indent = [], INDENT * level
        for one in body:
            if isinstance(one, Assign):
                active = one.name in self.active_locals and one.type == "float"
                value = self.as_dual(one.value) if active else self.of(one.value)
                kept = f"{self.type(one.type, active)} " if one.declares else ""
                lines.append(f"{indent}{kept}u_{one.name} = {value};")
            elif isinstance(one, If):
                lines += [f"{indent}if ({self.of(one.condition)}) {{", *self.block(one.then, level + 1), f"{indent}}}"]
                if one.other:
                    lines += [f"{indent}else {{", *self.block(one.other, level + 1), f"{indent}}}"]
            elif isinstance(one, For):
                lines += self.loop(one, level)
            else:
                dual = self.seed is not None
                lines.append(f"{indent}return {self.as_dual(one.value) if dual else self.of(one.value)};")
        return lines

    def loop(self, one: For, level: int) -> list[str]:
        numbers, indent = one.numbers, INDENT * level
        sign = "<" if numbers.step > 0 else ">"
        head = f"int u_{one.name} = {numbers.start}; u_{one.name} {sign} {numbers.stop}; u_{one.name} += {numbers.step}"
        return [f"{indent}for ({head}) {{", *self.block(one.body, level + 1), f"{indent}}}"]

    def as_dual(self, node: Expression) -> str:
        return self.of(node) if self.active(node) else f"Dual({self.of(node)})"

    def value(self, node: Expression) -> str:
        """The expression without its derivative."""
        return f"({self.of(node)}).value" if self.active(node) else self.of(node)

    def fixed(self, node: Expression) -> bool:
        """Whether the expression is the same for all pairs of a head, and more than a name."""
        if isinstance(node, (Literal, Name)) or not self.by_head or self.active(node):
            return False
        below = list(expressions(node))
        names = {one.name for one in below if isinstance(one, Name)}
        read = any(isinstance(one, Item) for one in below)
        known = self.named | {"b", "h"}
        return names <= known and (read or bool(names)) and not any(self.active(one) for one in below)

    def of(self, node: Expression) -> str:
        """The expression, in parentheses where needed; computed once per head where possible."""
        if self.fixed(node):
            return self.hoist(node)
        return self.written(node)

    def hoist(self, node: Expression) -> str:
        self.by_head = False
        value = self.written(node)
        self.by_head = True
        for name, known in self.hoisted.items():
            if known == (node.type, value):
                return name
        name = f"fixed_{len(self.hoisted)}"
        self.hoisted[name] = (node.type, value)
        return name

    def written(self, node: Expression) -> str:
        if isinstance(node, Literal):
            return _literal(node)
        if isinstance(node, Name):
            if node.name in POSITION_NAMES:
                return f"at.{node.name}"
            name = "s" if node.name == "s" else f"u_{node.name}"
            return f"Dual({name}, 1.0f)" if node.name == self.seed and node.name != "s" else name
        if isinstance(node, Item):
            return self.item(node)
        if isinstance(node, Unary):
            return f"({node.sign}{self.of(node.of)})"
        if isinstance(node, Choice):
            value = self.as_dual if self.active(node) else self.of
            return f"({self.of(node.condition)} ? {value(node.then)} : {value(node.other)})"
        if isinstance(node, Binary):
            return self.binary(node)
        return self.call(node)

    def item(self, node: Item) -> str:
        name = f"u_{node.array}"
        places = "".join(f", {self.of(index)}, {name}_{axis}" for axis, index in enumerate(node.indices))
        found = f"read{'_float' if node.type == 'float' else '_int'}({name}{places})"
        if node.type == "bool":
            return f"({found} > 0)"
        return f"Dual({found}, 1.0f)" if node.array == self.seed else found

    def binary(self, node: Binary) -> str:
        if node.sign in WHOLE and node.type == "int":
            constant = isinstance(node.right, Literal) and node.right.value > 0 and node.sign in "/%"
            if not constant:
                return f"{WHOLE[node.sign]}({self.of(node.left)}, {self.of(node.right)})"
        of = self.value if node.type == "bool" else self.of
        return f"({of(node.left)} {node.sign} {of(node.right)})"

    def call(self, node: Call) -> str:
        name, arguments = node.function, node.arguments
        if name in FUNCTIONS:
            return self.function(node)
        (of,) = arguments
        if name == "bool":
            return f"({self.value(of)} != 0)"
        if name == "int" and of.type == "float":
            return f"whole({self.value(of)})"
        return f"{name}({self.of(of)})"

    def function(self, node: Call) -> str:
        name, arguments = node.function, node.arguments
        if name in TESTS or name in STEPS:
            return f"{FUNCTIONS[name].metal}({', '.join(self.value(one) for one in arguments)})"
        if self.active(node):
            return f"dual::{name}({', '.join(self.as_dual(one) for one in arguments)})"
        given = ", ".join(self.of(one) for one in arguments)
        if name in POLYMORPH:  # Metal has them for both types
            return f"{name}({given})"
        return f"{FUNCTIONS[name].metal}({given})"


def _from_bits(bits: str, type: str) -> str:
    return {"float": f"as_type<float>({bits})", "int": bits, "bool": f"({bits} != 0)"}[type]


def _literal(node: Literal) -> str:
    if node.type == "bool":
        return "true" if node.value else "false"
    if node.type == "int":
        return str(node.value)
    value = np.float32(node.value)
    if not math.isfinite(value):
        return "NAN" if math.isnan(value) else "INFINITY"
    text = repr(float(str(value)))
    return f"{text}f"
