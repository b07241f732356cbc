"""All cases."""

from . import attention, vector_attention
from .case import Case


def cases() -> list[Case]:
    """Every case of every family, in a fixed order."""
    return [*attention.cases(), *vector_attention.cases()]
