"""One mistake in the package's Python, and the test that must notice it."""

from typing import NamedTuple


class HostMutant(NamedTuple):
    kind: str
    file: str  # below mlx_flash/
    name: str
    old: str
    new: str
    killed_by: str  # id of a test below tests/


def of(kind: str, file: str, *mutants: tuple) -> list[HostMutant]:
    return [HostMutant(kind, file, *mutant) for mutant in mutants]
