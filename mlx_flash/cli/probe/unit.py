"""The matrix unit of this GPU: does it hold its operands as the kernels for neural accelerators rely on?"""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np

from ...backends.metal import kernel_object
from ...kernels.neural_probe import PLACES, PRODUCTS, difference, numbers
from ...kernels.source import Kernel
from .trial import failure


def trial(kernel: Kernel) -> dict:
    """The fields of an Answer (backends/prober.py) about the unit, asked by the kernel of neural_probe.py."""
    start = time.perf_counter()
    try:
        outputs = kernel_object(mx.fast.metal_kernel, kernel)(
            inputs=[mx.array(numbers())], output_shapes=[PLACES, PRODUCTS], output_dtypes=[mx.int32, mx.float32],
            grid=(32, 1, 1), threadgroup=(32, 1, 1),
        )  # fmt: skip
        mx.eval(outputs)
    except Exception as error:
        return failure(error, time.perf_counter() - start)
    return {"reason": difference(*map(np.array, outputs)), "seconds": time.perf_counter() - start}
