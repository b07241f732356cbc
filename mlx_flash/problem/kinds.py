"""The kinds of kernels, as data: the arrays that each reads and writes, and those that it may keep in registers.

Operand names are those of the papers; templates/kernels/forward.metal has the glossary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True, eq=False)  # a key of many tables: hashed by identity
class KernelKind:
    """One kind of kernel.

    cacheable: operands of which each simdgroup owns rows, in the order of the template's CACHE_ constants.
    matmuls: products of size Lq x Lk x D, to count work; 0 for kernels that stream rows.
    template: its file in templates/kernels, where that is not the kind's name.
    shapes: inputs of which it reads nothing but the shape.
    rows: the kind whose table rows it uses, where that is another.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cacheable: tuple[str, ...] = ()
    matmuls: int = 0
    template: str = ""
    shapes: tuple[str, ...] = ()
    rows: KernelKind | None = None

    @property
    def table(self) -> KernelKind:
        """The kind under which the tables and the estimates of registers list it."""
        return self.rows or self

    @property
    def tiled(self) -> bool:
        """Whether it multiplies matrices in tiles; the other kinds stream rows."""
        return self.matmuls > 0

    @cached_property
    def over_keys(self) -> bool:
        """Whether its threadgroups own keys and traverse queries."""
        return "dK" in self.outputs or "dV" in self.outputs

    def __repr__(self):
        return self.name


FORWARD = KernelKind("forward", ("Q", "K", "V", "scale"), ("O", "L"), ("Q", "O"), 2)
DECODE = KernelKind("decode", ("Q", "K", "V", "scale", "decode_params"), ("O", "L"), ("Q", "O"), 2)
COMBINE = KernelKind("combine", ("O_parts", "L_parts", "scale"), ("O", "L"))
DELTA = KernelKind("delta", ("dO", "O"), ("delta",))
BACKWARD_QUERY = KernelKind(
    "backward_query", ("Q", "K", "V", "dO", "L", "delta", "scale"), ("dQ",), ("Q", "dO", "dQ"), 3
)
# dQ and delta, which the other backward kernels then read: one launch less, for short sequences.
BACKWARD_QUERY_DELTA = replace(
    BACKWARD_QUERY, name="backward_query_delta", template="backward_query", rows=BACKWARD_QUERY,
    inputs=("Q", "K", "V", "O", "dO", "L", "scale"), outputs=("dQ", "delta"),
)  # fmt: skip
BACKWARD_KEY_VALUE = KernelKind(
    "backward_key_value", ("Q", "K", "V", "dO", "L", "delta", "scale"), ("dK", "dV"), ("K", "V", "dK", "dV"), 4
)
# Separate dK and dV kernels, for matrix hardware whose registers hold one accumulator.
BACKWARD_KEY = replace(
    BACKWARD_KEY_VALUE, name="backward_key", template="backward_key_value", outputs=("dK",), matmuls=3
)
BACKWARD_VALUE = replace(
    BACKWARD_KEY, name="backward_value", inputs=("Q", "K", "dO", "L", "scale"), outputs=("dV",), matmuls=2
)
# A backward pass of five products in place of seven: dQ's kernel keeps P and dS, and one product each gives dK and dV.
BACKWARD_QUERY_KEEPING = replace(
    BACKWARD_QUERY, name="backward_query_keeping", template="backward_query", rows=BACKWARD_QUERY,
    outputs=("dQ", "P", "dS"),
)  # fmt: skip
BACKWARD_KEY_KEPT = KernelKind(
    "backward_key_kept", ("Q", "K", "dS", "scale"), ("dK",), ("dK",), 1, "backward_kept", ("K",)
)
BACKWARD_VALUE_KEPT = replace(
    BACKWARD_KEY_KEPT, name="backward_value_kept", inputs=("Q", "K", "dO", "P"), outputs=("dV",), cacheable=("dV",),
    shapes=("Q", "K"),
)  # fmt: skip
KEPT_KINDS = (BACKWARD_QUERY_KEEPING, BACKWARD_KEY_KEPT, BACKWARD_VALUE_KEPT)
# No kernel: the results of these three together.
GRADIENTS = replace(BACKWARD_QUERY, name="gradients", outputs=("dQ", "dK", "dV"))
# The blocks of pairs that an array mask hides: runs before each kernel for tensor cores that has such a mask.
MASK_MAP = KernelKind("mask_map", ("attention_mask",), ("mask_map",))
BACKWARD_MASK = KernelKind("backward_mask", ("Q", "K", "V", "dO", "L", "delta", "scale", "extents"), ("dM",), (), 2)
BACKWARD_KINDS = (
    BACKWARD_QUERY, BACKWARD_QUERY_DELTA, BACKWARD_KEY_VALUE, BACKWARD_KEY, BACKWARD_VALUE, BACKWARD_MASK, *KEPT_KINDS,
)  # fmt: skip
# The kernels of a call with its gradients, in order; other kinds may take the place of some of them.
TRAINING = (FORWARD, DELTA, BACKWARD_QUERY, BACKWARD_KEY_VALUE, BACKWARD_MASK)
DECODING = (DECODE, COMBINE)  # take the place of the forward kernel where queries are few
KINDS = {one.name: one for one in (*TRAINING, BACKWARD_QUERY_DELTA, BACKWARD_KEY, BACKWARD_VALUE, *DECODING)}

# Weights and their gradients, Lq x Lk, that a kernel keeps for others.
SCORES = frozenset({"P", "dS"})
# Operands that a kernel accumulates in float32: without a cache they are paged to their output buffer.
ACCUMULATORS = frozenset({"O", "dQ", "dK", "dV"})
