"""The steps of attention, as data: what each reads, writes and may keep in registers.

One step is one template. Operand names are those of the papers; forward.metal holds the glossary.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Step:
    """`cacheable`: operands whose rows belong to a simdgroup, in order of the template's CACHE_ constants.

    `matmuls`: products of size Lq x Lk x D, for counted work. `template`: where it is not the step's name.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cacheable: tuple[str, ...] = ()
    matmuls: int = 0
    template: str = ""

    @property
    def tiled(self) -> bool:
        """Does it multiply matrices in tiles? The others stream rows."""
        return self.matmuls > 0

    @property
    def over_keys(self) -> bool:
        """Do its threadgroups own keys, and walk along the queries?"""
        return "dK" in self.outputs or "dV" in self.outputs

    def __repr__(self):
        return self.name


FORWARD = Step("forward", ("Q", "K", "V", "scale"), ("O", "L"), ("Q", "O"), 2)
DECODE = Step("decode", ("Q", "K", "V", "scale", "packing"), ("O", "L"), ("Q", "O"), 2)
COMBINE = Step("combine", ("O_parts", "L_parts"), ("O", "L"))
DELTA = Step("delta", ("dO", "O"), ("delta",))
BACKWARD_QUERY = Step("backward_query", ("Q", "K", "V", "dO", "L", "delta", "scale"), ("dQ",), ("Q", "dO", "dQ"), 3)
BACKWARD_KEY_VALUE = Step(
    "backward_key_value", ("Q", "K", "V", "dO", "L", "delta", "scale"), ("dK", "dV"), ("K", "V", "dK", "dV"), 4
)
# The same, apart: for matrix hardware whose registers hold one of the two results.
BACKWARD_KEY = replace(
    BACKWARD_KEY_VALUE, name="backward_key", template="backward_key_value", outputs=("dK",), matmuls=3
)
BACKWARD_VALUE = replace(
    BACKWARD_KEY, name="backward_value", inputs=("Q", "K", "dO", "L", "scale"), outputs=("dV",), matmuls=2
)
BACKWARD_MASK = Step("backward_mask", ("Q", "K", "V", "dO", "L", "delta", "scale", "extents"), ("dM",), (), 2)
STEPS = (FORWARD, DELTA, BACKWARD_QUERY, BACKWARD_KEY_VALUE, BACKWARD_MASK)
DECODING = (DECODE, COMBINE)  # in place of the forward step, where queries are few

# Operands that a kernel accumulates in float32: without a cache they are paged to their output buffer.
ACCUMULATORS = frozenset({"O", "dQ", "dK", "dV"})
