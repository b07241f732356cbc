"""Asynchronous products of NVIDIA's tensor cores: kernels that touch what one in flight holds, and their twins."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.simulator import SimulatorError, metal_kernel, mode, schedule

# Simdgroup 0 multiplies 16 rows of `a` by 8 rows of `b`, 16 columns each; A[row][column] = row, B = 1.
HEADER = """#include <nv>
typedef nv::Pipeline<2, 1, 32> Pipe;
// Consumers and producers reach the same barriers: each has a turn of the loop for each block.
inline void produce(thread Pipe& pipe, threadgroup half* b, uint lane) {
  threadgroup half* to = b + pipe.producer_acquire() * 512;
  for (uint i = lane; i < 512; i += 32) to[i] = 1;
  pipe.producer_commit();
}
"""
BEGIN = """
uint t = thread_position_in_threadgroup.x, lane = t % 32;
threadgroup half a[1024], b[1024];
for (uint i = t; i < 1024; i += 64) a[i] = i / 64;
Pipe pipe;
pipe.open(a, t);
float2 c[2][1];
nv::Matrix<half> rows = nv::Matrix<half>::of(a, 64);
#define BEGIN_PRODUCT(BLOCK) nv::wgmma_fence(); \\
  nv::multiply_shared<half, 8>(c, rows, nv::Matrix<half>::of(b + (BLOCK) * 512, 64), 0, false); nv::wgmma_commit();
"""
END = "\nfor (uint i = 0; i < 4; ++i) y[t * 4 + i] = t < 32 ? c[i / 2][0][i % 2] : 0;"
ONE_BLOCK = "if (t >= 32) produce(pipe, b, lane); else { int s = pipe.consumer_wait(); "
TWO_BLOCKS = "for (int n = 0; n < 2; ++n) if (t >= 32) produce(pipe, b, lane); else { int s = pipe.consumer_wait(); "
WAIT, RELEASE = "nv::wgmma_wait<0>(); ", "pipe.consumer_release(); "
FIRST = "BEGIN_PRODUCT(s) "
TWO_PRODUCTS = FIRST + "rows = rows.at(0, 16); " + FIRST + "nv::wgmma_wait<1>(); "  # the first is done
PRODUCT = "nv::multiply_shared<half, 8>(c, rows, nv::Matrix<half>::of(b, 64), 0, {}); "

# name: (what the report says, the kernel, its twin)
CASES = {
    "an operand is written": (
        r"write of threadgroup variable 'a' at byte \d+ .*, which is read by the product at line",
        ONE_BLOCK + FIRST + "if (lane < 16) a[lane] = 0; " + WAIT + RELEASE + "}",
        # columns beside the product's
        ONE_BLOCK + FIRST + "if (lane < 16) a[lane + 32] = 0; " + WAIT + "if (lane < 16) a[lane] = 0; " + RELEASE + "}",
    ),
    "an operand of the later of two products is written": (
        "write of threadgroup variable 'a' at byte 32 ",
        ONE_BLOCK + TWO_PRODUCTS + "if (lane == 16) a[lane] = 0; " + WAIT + RELEASE + "}",
        ONE_BLOCK + TWO_PRODUCTS + "if (lane == 15) a[lane] = 0; " + WAIT + RELEASE + "}",
    ),
    "another simdgroup does not know of the wait": (
        "race in threadgroup memory: (read|write) of threadgroup variable 'a'",
        ONE_BLOCK + FIRST + WAIT + RELEASE + "} if (t >= 32) a[lane] = 0;",
        ONE_BLOCK + FIRST + WAIT + RELEASE + "} threadgroup_barrier(mem_flags::mem_threadgroup); "
        "if (t >= 32) a[lane] = 0;",
    ),
    "a block is released": (
        "release of a block that is read by the product at line",
        ONE_BLOCK + FIRST + RELEASE + WAIT + "}",
        ONE_BLOCK + FIRST + WAIT + RELEASE + "}",
    ),
    "the block before is held": (
        "wait for a block whose stage this simdgroup has not released",
        TWO_BLOCKS.replace("2; ++n", "3; ++n") + FIRST + WAIT + "if (n > 0) " + RELEASE + "}",
        TWO_BLOCKS + FIRST + WAIT + "if (n > 0) " + RELEASE + "}",
    ),
    "the block before is released in place of the last": (
        "read of a block that this simdgroup has released: threadgroup variable 'b'",
        TWO_BLOCKS + RELEASE + FIRST + WAIT + "}",
        TWO_BLOCKS + FIRST + WAIT + RELEASE + "}",
    ),
    "a block is released twice": (
        "release of a block that this simdgroup does not hold",
        TWO_BLOCKS + FIRST + WAIT + RELEASE + "if (n == 1) " + RELEASE + "}",
        TWO_BLOCKS + FIRST + WAIT + "if (n == 0) " + RELEASE + "if (n == 1) " + RELEASE + "}",
    ),
    "a block is read by ordinary code once it is released": (
        "read of a block that this simdgroup has released: threadgroup variable 'b' at byte 0 ",
        ONE_BLOCK + FIRST + WAIT + RELEASE + "c[0][0].x += b[0]; }",
        ONE_BLOCK + FIRST + WAIT + "c[0][0].x += b[0] - 1; " + RELEASE + "}",
    ),
    "an accumulator is changed": (
        "the accumulator was changed while it belonged to the product at line",
        ONE_BLOCK + FIRST + "c[0][0] = float2(0); " + WAIT + RELEASE + "}",
        ONE_BLOCK + FIRST + WAIT + "c[0][0] *= 1; " + RELEASE + "}",
    ),
    "not all lanes wait": (
        "simdgroup operation that needs inactive lanes",
        ONE_BLOCK + FIRST + "if (lane > 3) { " + WAIT + "} else { " + WAIT + "} " + RELEASE + "}",
        ONE_BLOCK + FIRST + "if (s < 3) { " + WAIT + "} else { " + WAIT + "} " + RELEASE + "}",
    ),
}


def run(body: str) -> np.ndarray:
    kernel = metal_kernel("products", [], ["y"], BEGIN + body + END, header=HEADER)
    (y,) = kernel(
        inputs=[], grid=(64, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(64, 2, 2)], output_dtypes=[mx.float32]
    )
    return np.array(y)[:32]


def sums() -> np.ndarray:
    """The lanes' elements of the product: 16 times the number of their row."""
    rows = np.arange(32)[:, None] // 4 + np.array([0, 8])
    return np.broadcast_to(16.0 * rows[..., None], (32, 2, 2))


@pytest.mark.parametrize("order", ["forward", "reversed", "random"])
@pytest.mark.parametrize("words, wrong, right", CASES.values(), ids=CASES)
def test_what_a_product_in_flight_holds(words, wrong, right, order):
    with mode("check"), schedule(order, 1):
        with pytest.raises(SimulatorError, match=words):
            run(wrong)
        assert np.array_equal(run(right), sums())


def test_sums_arrive_with_the_wait():
    """Whoever reads them before reads NaN; in fast mode they are there at once."""
    late = ONE_BLOCK + FIRST + "float2 d[2] = {c[0][0], c[1][0]}; " + WAIT + RELEASE + "}"
    early = late[:-1] + "c[0][0] = d[0]; c[1][0] = d[1]; }"
    with mode("check"):
        assert np.isnan(run(early)).all() and np.array_equal(run(late), sums())
    with mode("fast"):
        assert np.array_equal(run(early), sums())


def test_products_in_flight_add_to_one_accumulator():
    """They are done in order, without a wait between them."""
    add = PRODUCT.format("true")
    body = ONE_BLOCK + FIRST + add + "nv::wgmma_commit(); " + add + "nv::wgmma_commit(); " + WAIT + RELEASE + "}"
    with mode("check"):
        assert np.array_equal(run(body), 3 * sums())


def test_a_product_that_is_not_committed_is_not_waited_for():
    body = ONE_BLOCK + PRODUCT.format("false") + WAIT + RELEASE + "}"
    with mode("check"), pytest.raises(SimulatorError, match="release of a block that is read by the product"):
        run(body)
