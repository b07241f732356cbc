"""A mistake in a template, and the test that must notice it."""

from typing import NamedTuple


class Mutant(NamedTuple):
    template: str  # templates/*/<template>.metal
    name: str
    old: str
    new: str
    killed_by: str  # id of a test below tests/
    mode: str = "fast"  # the simulator's; "check" if its report notices the mistake, or if memory would be overrun


def of(template: str, *mutants: tuple) -> list[Mutant]:
    return [Mutant(template, *mutant) for mutant in mutants]
