"""The steps of attention, as data: what each reads, writes and may keep in registers.

One step is one template. Operand names are those of the papers; forward.metal holds the glossary.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`cacheable`: operands whose rows belong to a simdgroup, in order of the template's CACHE_ constants.

    `matmuls`: products of size Lq x Lk x D, for counted work.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cacheable: tuple[str, ...] = ()
    matmuls: int = 0

    @property
    def tiled(self) -> bool:
        """Does it multiply matrices in tiles? The others stream rows."""
        return self.matmuls > 0

    def __repr__(self):
        return self.name


FORWARD = Step("forward", ("Q", "K", "V", "scale"), ("O", "L"), ("Q", "O"), 2)
DECODE = Step("decode", ("Q", "K", "V", "scale", "packing"), ("O", "L"), ("Q", "O"), 2)
COMBINE = Step("combine", ("O_parts", "L_parts"), ("O", "L"))
DELTA = Step("delta", ("dO", "O"), ("delta",))
BACKWARD_QUERY = Step(
    "backward_query", ("Q", "K", "V", "dO", "L", "delta", "scale"), ("dQ",), ("Q", "dO", "dQ"), 3
)
BACKWARD_KEY_VALUE = Step(
    "backward_key_value", ("Q", "K", "V", "dO", "L", "delta", "scale"), ("dK", "dV"), ("K", "V", "dK", "dV"), 4
)
BACKWARD_MASK = Step(
    "backward_mask", ("Q", "K", "V", "dO", "L", "delta", "scale", "extents"), ("dM",), (), 2
)
STEPS = (FORWARD, DELTA, BACKWARD_QUERY, BACKWARD_KEY_VALUE, BACKWARD_MASK)
DECODING = (DECODE, COMBINE)  # in place of the forward step, where queries are few

# Operands that a kernel accumulates in float32: without a cache they are paged to their output buffer.
ACCUMULATORS = frozenset({"O", "dQ", "dK", "dV"})
