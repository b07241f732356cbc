"""Formula: a checked text with the types of its names, equal for texts that share their kernels but for numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from .scope import Scope
from .statements import Statements
from .syntax import Body, Item, Name, Named, expressions, returns
from .tokens import LONGEST, Source, Token

POSITIONS = tuple(Named(name, "int") for name in ("b", "h", "q", "k", "segment"))
SCORE = Named("s", "float")


@dataclass(frozen=True)
class Formula:
    """A checked text. `owner`: "Score" or "Visible". `named`: the numbers that it names, then the arrays. `numbers`:
    the numbers' values, in order."""

    owner: str
    text: str
    named: tuple[Named, ...] = ()
    numbers: tuple[int | float, ...] = ()

    @property
    def body(self) -> Body:
        return _parsed(self.owner, self.text, self.named)

    def check(self) -> None:
        """Raises InvalidArgument, with line and column, where the text is wrong."""
        _parsed(self.owner, self.text, self.named)

    @cached_property
    def arrays(self) -> tuple[Named, ...]:
        return self.named[len(self.numbers) :]

    @property
    def values(self) -> dict[str, int | float]:
        """The numbers' values by name."""
        return {one.name: number for one, number in zip(self.named, self.numbers)}

    @cached_property
    def bits(self) -> tuple[int, ...]:
        """Its numbers as kernels read them: patterns of 32 bits."""
        found = [np.array(one, np.int32 if isinstance(one, int) else np.float32) for one in self.numbers]
        return tuple(int(one.view(np.int32)) for one in found)

    @cached_property
    def neutral(self) -> Formula:
        """The formula without its numbers' values, which kernels read as arguments."""
        return replace(self, numbers=(0,) * len(self.numbers))

    @cached_property
    def digest(self) -> str:
        """Eight letters that distinguish its kernels from those of other texts."""
        facts = repr((self.owner, self.text, self.named, len(self.numbers)))
        return hashlib.sha256(facts.encode()).hexdigest()[:8]

    def operand(self, name: str) -> str:
        """The name of an array among the operands of a call."""
        return f"{self.owner.lower()}_{name}"

    @cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(self.operand(one.name) for one in self.arrays)

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables, numbers and arrays that the text reads."""
        found = expressions(self.body)
        return frozenset(
            one.name if isinstance(one, Name) else one.array for one in found if isinstance(one, (Name, Item))
        )

    @property
    def hides(self) -> bool:
        """Whether a score's text names INFINITY, so that its scores of -INFINITY hide keys as an added mask does."""
        return self.owner == "Score" and "INFINITY" in self.text

    def __str__(self) -> str:
        return self.digest


@lru_cache(maxsize=256)
def _parsed(owner: str, text: str, named: tuple[Named, ...]) -> Body:
    """The statements of a text; an expression alone is one return. Raises InvalidArgument, with line and column."""
    source = Source(owner, text)
    if len(text) > LONGEST:
        got = f"{len(text)} characters"
        remedy = "Give numbers as arrays."
        raise source.error(Token("end", "", 1, 1), f"a text of at most {LONGEST} characters", got, remedy)
    variables = (SCORE, *POSITIONS) if owner == "Score" else POSITIONS
    parser = Statements(source, Scope(variables, named), "float" if owner == "Score" else "bool")
    body = parser.whole()
    if not returns(body):
        raise parser.error("a return at the end of every way through the text", remedy="Add one.")
    return body
