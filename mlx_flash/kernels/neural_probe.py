"""A kernel that tests whether a GPU's matrix unit holds its operands as the tile layer "nax" assumes.

Apple does not document which lane holds which element of a cooperative tensor, nor that this stays so. The order in
templates/tiles/nax_operands.metal was found on M5; a unit with another order would compute wrong numbers silently.
"""

from __future__ import annotations

from functools import lru_cache
from string import Template

import numpy as np

from .source import Kernel, resolved
from .tile_layers import LAYERS

# Types of the factors that kernels multiply: S = A B^T and P B in 16 bits, dS B with dS in float32.
TYPES = (("half", "half"), ("float", "half"), ("bfloat", "bfloat"), ("float", "bfloat"))
# Rows and columns, as they are stored, of left, right and destination: of 16x32x16, its transposed right, 16x16x32
STORED = (((16, 16), (16, 32), (16, 32)), ((16, 16), (32, 16), (16, 32)), ((16, 32), (32, 16), (16, 16)))
ROLES = ("left factor", "right factor", "result")
PLACES, PRODUCTS = (len(TYPES), 3, 3, 32, 16, 2), (len(TYPES), 5, 32, 8)
FILES = ("views", "tile", *LAYERS["nax"].files, "nax_probe")


@lru_cache
def kernel() -> Kernel:
    """Inputs: `numbers`, see `numbers`. Outputs: `places` (int32, PLACES) and `products` (float32, PRODUCTS)."""
    without = (
        "QUANTIZED", "AFFINE", "HAS_MASK", "HAS_SEGMENTS", "HAS_BLOCKS", "HAS_PAGES", "HAS_PIECES", "MAPS", "SCATTERED",
        "GATHERS", "HEADS_BETWEEN", "OVER_KEYS", "SPLITS_HEAD",
    )  # fmt: skip
    constants = {"MMA_ROWS": "1", "WIDE": "1", "WIDE_ROWS": "1", "DEEP": "1", **dict.fromkeys(without, "0")}
    sizes = int(np.prod(PLACES[1:])), int(np.prod(PRODUCTS[1:]))
    calls = [
        f"flash::tile::probe_types<{left}, {right}>(places + {n * sizes[0]}, products + {n * sizes[1]}, numbers, lane);"
        for n, (left, right) in enumerate(TYPES)
    ]
    return Kernel(
        name="flash_neural_probe",
        header=Template("".join(resolved(name, constants) for name in FILES)).substitute(constants),
        body="\n".join(["const uint lane = thread_index_in_simdgroup;", *calls, ""]),
        inputs=("numbers",),
        outputs=("places", "products"),
        output_dtypes=("int32", "float32"),
    )


def matrices() -> np.ndarray:
    """Four matrices [4, 16, 16] of small integers, whose products are exact in every type."""
    return np.random.default_rng(17).integers(-3, 4, (4, 16, 16)).astype(np.float32)


def place(rows_of_parts: int, lane: int, element: int) -> tuple[int, int]:
    """(column, row) of a lane's element, in two 16x16 matrices side by side (`rows_of_parts` 1) or one below the other
    (2)."""
    part, within = divmod(element, 8)
    row = lane // 16 * 4 + lane // 2 % 4 + within // 4 * 8
    column = lane // 8 % 2 * 8 + lane % 2 * 4 + within % 4
    return (column, part * 16 + row) if rows_of_parts == 2 else (part * 16 + column, row)


def in_lanes(array: np.ndarray) -> np.ndarray:
    """[.., 16, 16] -> [.., 32, 8]: matrices as lanes hold them."""
    spots = np.array([[place(1, lane, element) for element in range(8)] for lane in range(32)])
    return array[..., spots[..., 1], spots[..., 0]]


def numbers() -> np.ndarray:
    """The inputs of the kernel."""
    return np.ascontiguousarray(in_lanes(matrices()))


def wanted_places() -> np.ndarray:
    """[3 shapes, 3 roles, 32 lanes, 16 elements, (column, row)]; -1 where a lane has fewer elements."""
    wanted = np.full(PLACES[1:], -1, np.int32)
    for shape, roles in enumerate(STORED):
        for role, (rows, columns) in enumerate(roles):
            for lane in range(32):
                for element in range(rows * columns // 32):
                    wanted[shape, role, lane, element] = place(rows // 16, lane, element)
    return wanted


def difference(places: np.ndarray, products: np.ndarray) -> str:
    """A sentence about the first output that differs from the order the tile layer needs; "" if none does."""
    places, products = np.reshape(places, PLACES), np.reshape(products, PRODUCTS)
    off = np.argwhere((places != wanted_places()).any(-1))
    if len(off):
        types, shape, role, lane, element = map(int, off[0])
        got, want = places[types, shape, role, lane, element], wanted_places()[shape, role, lane, element]
        return (
            f"its matrix unit keeps element {element} of lane {lane} of a {ROLES[role]} at column and row "
            f"{got[0]}, {got[1]}, not {want[0]}, {want[1]}"
        )
    a0, a1, b0, b1 = matrices()
    right = in_lanes(np.stack([a0 @ b0, a0 @ b1, a0 @ b0.T, a0 @ b1.T, a0 @ b0 + a1 @ b1]))
    for pair, got in zip(TYPES, products):
        if not np.array_equal(got, right):
            return f"its matrix unit multiplies {' by '.join(pair)} wrongly"
    return ""
