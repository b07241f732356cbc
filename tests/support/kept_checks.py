"""Gradients by five products beside those by seven, for the tensor-core layers and for 8x8 matrices."""

from collections.abc import Iterator

import feature_cases
import isolation_checks
import numpy as np
from cases import Case
from feature_cases import Variant

from mlx_flash.problem.kinds import KEPT_KINDS

MUCH = 2**30  # bytes, enough for all heads of every case here
GRADIENTS = [str(kind) for kind in KEPT_KINDS]


def of(head_dim: int, dtype: str, *features: str, value_dim=None, axes="bhij", lengths=(41, 70)) -> Variant:
    case = Case(*lengths, head_dim, dtype, value_dim=value_dim, group=2, key_heads=1, batch=2)
    return Variant(case, features, axes, (30, 5))


def both(variant: Variant, arrays: dict, arguments: dict, scratch: int = MUCH) -> list[dict]:
    """The results of seven products, and of five."""
    return [feature_cases.backward(variant, arrays, arguments | {"scratch": bound}) for bound in (0, scratch)]


def spoiled_results() -> Iterator[tuple[str, dict, dict]]:
    """(operand, results of seven products, of five), with a NaN or an infinity in one operand after the other."""
    case = Case(45, 50, 40, "float16", group=2, key_heads=2, batch=2)
    places = {"q": ((0, 0, 40), np.nan), "k": ((1, 1, 30), np.inf), "v": ((0, 1, 45), np.nan),
              "d_o": ((1, 0, 20), -np.inf)}  # fmt: skip
    for name, (place, garbage) in places.items():
        arrays = case.arrays()
        arrays[name] = isolation_checks.spoiled(arrays[name], place, garbage)
        want, got = (
            {title: np.array(one) for title, one in found.items()}
            for found in both(Variant(case, ()), arrays, {"causal": True})
        )
        assert not all(np.isfinite(one).all() for one in want.values())
        yield name, want, got
