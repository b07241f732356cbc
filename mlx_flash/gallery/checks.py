"""The checks of arguments from which the gallery builds texts: counts, axes, and what is true or false."""

from __future__ import annotations

from ..common.errors import wrong
from ..common.scalars import listed, shown, truth, whole

MOST = 2**30  # tokens: the texts compute with 32 bits


def count(name: str, given, least: int = 1, function: str = "gallery") -> int:
    """A whole number from `least` up to MOST. Raises ValueError for everything else."""
    number = whole(given)
    if number is None or not least <= number <= MOST:
        expected = f"a whole number of at least {least}, at most {MOST}"
        raise wrong(name, expected, shown(given), "Pass a count of tokens.", function)
    return number


def counts(name: str, given, least: int = 1, function: str = "gallery") -> list[int]:
    """Whole numbers, at least one, of a list or an array. Raises ValueError for everything else."""
    numbers = listed(given)
    if not numbers:
        raise wrong(name, "whole numbers, at least one", shown(given), "Pass a list.", function)
    return [count(name, one, least, function) for one in numbers]


def axes(name: str, given, number: int | None = None) -> list[int]:
    """One whole number for each axis of a grid; a single one stands for all. `number`: of the axes, 1 to 3 if None."""
    numbers = listed(given) if isinstance(given, (tuple, list)) else [given] * (number or 1)
    if not 1 <= len(numbers) <= 3 or (number and len(numbers) != number):
        expected = f"{number} numbers" if number else "1 to 3 numbers"
        raise wrong(name, expected, shown(given), "Give one for each axis of the grid.", "gallery")
    return [count(name, one) for one in numbers]


def flag(name: str, given, function: str = "gallery") -> bool:
    """True or False. Raises ValueError for everything else."""
    value = truth(given)
    if value is None:
        raise wrong(name, "True or False", shown(given), "Pass a bool.", function)
    return value
