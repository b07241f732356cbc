"""Small rows of the tensor-core layers in place of the real ones, so that small problems have many blocks."""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from mlx_flash import use_backend
from mlx_flash.autodiff import call as calls
from mlx_flash.kernels import mask_map
from mlx_flash.kernels.nvidia import TENSOR_TABLE
from mlx_flash.kernels.plan import plan
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_VALUE, DECODE, FORWARD

FAMILY = {"mma": "sm80", "wgmma": "sm90", "tf32": "sm80", "tf32_hopper": "sm90", "tf32_wgmma": "sm90"}
# narrow: the rows for small head dimensions; wide: those for the largest, with separate kernels for dK and dV
LAYERS = [(layer, width) for layer in ("mma", "wgmma") for width in ("narrow", "wide")]
# shared: those beyond 256 columns of an accumulator, of which a threadgroup holds a part: here 64 columns
SHARED = [(layer, "shared") for layer in ("mma", "wgmma")]
FLOAT32_LAYERS = [("tf32", "narrow"), ("tf32_hopper", "wide"), ("tf32_wgmma", "narrow")]
# Rows that a threadgroup owns, rows that it visits at a time
BLOCKS = {
    "mma": (32, 32), "wgmma": (64, 16), "tf32": (32, 16), "tf32_hopper": (16, 16), "tf32_wgmma": (64, 16),
    "dequantizing": (32, 32),
}  # fmt: skip
OTHER_BLOCKS = {
    ("wgmma", "wide", FORWARD): (128, 16),
    ("wgmma", "wide", BACKWARD_VALUE): (64, 32),
    ("mma", "narrow", DECODE): (32, 64),  # in two slices where rows are few
    ("dequantizing", "narrow", DECODE): (32, 64),
    ("mma", "wide", DECODE): (32, 16),
    ("dequantizing", "wide", DECODE): (32, 16),
    ("mma", "shared", FORWARD): (32, 32),
    ("mma", "shared", BACKWARD_VALUE): (16, 32),
}
SHARED_BLOCKS = {"mma": (16, 16), "wgmma": (64, 16)}


def table(width: str) -> dict:
    """One row for each step, used at any head dimension up to 128."""
    small = {}
    for key, rows in TENSOR_TABLE.items():
        row = rows[0 if width == "narrow" else -1]
        shares = width == "shared" and row.tiles in SHARED_BLOCKS and key[0] is not DECODE
        blocks = SHARED_BLOCKS if shares else BLOCKS
        parallel, traversal = OTHER_BLOCKS.get((row.tiles, width, key[0]), blocks[row.tiles])
        columns = 64 if shares else row.columns
        row = replace(row, parallel=parallel, traversal=traversal, max_head=128, columns=columns, plain=None)
        small[key] = () if key[0] is BACKWARD_KEY_VALUE and width != "narrow" else (row,)
    return small


def forget():
    """Empties the caches of plans that depend on rows."""
    plan.cache_clear()
    calls.clear_cache()


@contextmanager
def small_rows(layer: str, width: str):
    """Inside the block attention runs on the layer's kernels on the simulator.

    Array masks have a mask map even for short calls.
    """
    maps = patch.multiple(mask_map, LEAST_PAIRS=0, LEAST_ELEMENTS=0)
    with maps, patch.dict(TENSOR_TABLE, table(width)), use_backend("simulator", FAMILY[layer]) as backend:
        forget()
        try:
            yield backend
        finally:
            forget()
