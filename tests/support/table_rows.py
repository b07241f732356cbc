"""Every row of the parameter tables, as arguments of source.build."""

import hashlib
import itertools
from dataclasses import replace

from mlx_flash.kernels import source
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import FULL
from mlx_flash.kernels.devices import DEQUANTIZING, FAMILIES
from mlx_flash.kernels.nvidia import TENSOR_TABLE
from mlx_flash.kernels.registers import max_threads
from mlx_flash.kernels.tile_layers import LAYERS
from mlx_flash.problem.kinds import BACKWARD_MASK, DECODING, KEPT_KINDS, TRAINING
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

KINDS = [step for step in (*TRAINING, *DECODING) if step is not BACKWARD_MASK]


def builds_of(step) -> list[tuple]:
    """The arguments of build for every row, dtype, family and mask of one step, with an equal and a different Dv."""
    found = []
    for (row_step, precision, name), rows in TABLE.items():
        dtypes = ("float32",) if precision == FULL else ("float16", "bfloat16")
        families = [family for family in FAMILIES.values() if family.table == name]
        for row, dtype, family, causal in itertools.product(rows, dtypes, families, (False, True)):
            for head_dim, value_dim in ((row.max_head, row.max_head), (row.max_head, 8), (8, row.max_head)):
                if row_step is (step if (step, precision, name) in TABLE else step.table):
                    threads = max_threads(step, row, precision, family, row.max_head)
                    found.append((step, row, family, dtype, head_dim, value_dim, Variants(causal=causal), threads))
    return found


def tensor_builds_of(step) -> list[tuple]:
    """The same for the rows for NVIDIA's tensor cores, but with a causal mask only; a layer may not keep P and dS, and
    one set of rows serves quantized operands on every GPU."""
    families = FAMILIES | {DEQUANTIZING: replace(FAMILIES["sm80"], tensor=DEQUANTIZING)}
    packed = {DEQUANTIZING: Quantization("affine", 4, 64)}
    return [
        (step, row, families[name], dtype, head_dim, value_dim, Variants(True, quantization=packed.get(name)), None)
        for (row_step, precision, name), listed in TENSOR_TABLE.items()
        for rows in [dict.fromkeys(row.for_scores(plain) for row in listed for plain in (False, True))]
        for row, dtype in itertools.product(rows, ("float32",) if precision == FULL else ("float16", "bfloat16"))
        for head_dim, value_dim in ((row.max_head, row.max_head), (row.max_head, 8), (8, row.max_head))
        if row_step is step.table and (LAYERS[row.tiles].kept or step not in KEPT_KINDS)
    ]


EVERY = [arguments for step in KINDS for arguments in builds_of(step)]


def digest() -> str:
    """A digest of every kernel that the tables can produce."""
    hashed = hashlib.sha256()
    for arguments in EVERY:
        hashed.update(repr(source.build(*arguments)).encode())
    return hashed.hexdigest()
