"""All cases."""

from . import attention, matmul, reductions, rows, vector_attention
from .case import Case


def cases() -> list[Case]:
    """Every case of every family, in a fixed order."""
    return [case for family in (attention, vector_attention, matmul, rows, reductions) for case in family.cases()]
