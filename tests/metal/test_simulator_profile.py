"""The simulator's counters agree with closed forms."""

import json

import mlx.core as mx
import pytest

from mlx_flash.simulator import metal_kernel, mode, profile

# One simdgroup a row of x [ROWS, 32 * STEPS]: softmax of the row, base 2, staged through threadgroup memory.
SOFTMAX = """
    threadgroup float staged[32];
    uint row = threadgroup_position_in_grid.x, lane = thread_index_in_simdgroup;
    float largest = -INFINITY, sum = 0;
    for (int i = 0; i < STEPS; ++i) {
        staged[lane] = x[row * 32 * STEPS + i * 32 + lane];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        largest = max(largest, staged[31 - lane]);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    largest = simd_max(largest);
    for (int i = 0; i < STEPS; ++i) sum += exp2(x[row * 32 * STEPS + i * 32 + lane] - largest);
    for (ushort delta = 16; delta; delta /= 2) sum += simd_shuffle_xor(sum, delta);
    simdgroup_barrier(mem_flags::mem_none);
    if (lane == 0) y[row] = (largest + log2(sum)) * scale[0];
"""
ROWS, STEPS = 6, 4


def softmax(**arguments):
    kernel = metal_kernel(name="lse", input_names=["x", "scale"], output_names=["y"], source=SOFTMAX)
    x = mx.random.normal((ROWS, 32 * STEPS), key=mx.random.key(3))
    with profile() as counted:
        (y,) = kernel(
            inputs=[x, mx.ones(1)], template=[("STEPS", STEPS)], grid=(32 * ROWS, 1, 1), threadgroup=(32, 1, 1),
            output_shapes=[(ROWS,)], output_dtypes=[mx.float32], **arguments,
        )  # fmt: skip
    assert mx.allclose(y, mx.log2(mx.power(2.0, x).sum(axis=1)), atol=1e-5)
    return counted


def test_operations():
    with mode("fast"):
        (launch,) = softmax().launches
    assert launch["kernel"] == "lse"
    assert (launch["threadgroups"], launch["threads"], launch["threadgroup_bytes"]) == (ROWS, 32 * ROWS, 128)
    assert launch["exp2"] == 32 * STEPS * ROWS
    assert launch["log2"] == ROWS
    assert launch["shuffles"] == 5 * ROWS
    assert launch["reductions"] == ROWS
    assert launch["group_barriers"] == 2 * STEPS * ROWS
    assert launch["simd_barriers"] == ROWS
    assert launch["matmuls"] == 0
    assert launch["loaded"] is None and launch["reads"] is None


def test_bytes():
    with mode("check"):
        (launch,) = softmax().launches
    elements = ROWS * 32 * STEPS
    assert launch["buffers"]["x"] == {"space": "device", "loaded": 2 * 4 * elements, "stored": 0}
    assert launch["buffers"]["scale"] == {"space": "constant", "loaded": 4 * ROWS, "stored": 0}
    assert launch["buffers"]["y"] == {"space": "device", "loaded": 0, "stored": 4 * ROWS}
    assert launch["loaded"] == {"device": 8 * elements, "constant": 4 * ROWS, "threadgroup": 4 * elements}
    assert launch["stored"] == {"device": 4 * ROWS, "constant": 0, "threadgroup": 4 * elements}
    assert launch["reads"] == {"device": 2 * elements + ROWS, "threadgroup": elements}
    assert launch["writes"] == {"device": ROWS, "threadgroup": elements}


# Each thread copies 16 bytes of threadgroup memory: by elements, as one vector, and as a structure of pairs.
COPIES = {
    "for (int n = 0; n < 4; n++) to[4 * i + n] = from[4 * i + n];": 4,
    "((threadgroup float4*)to)[i] = ((threadgroup float4*)from)[i];": 1,
    "((threadgroup Pairs*)to)[i] = ((threadgroup Pairs*)from)[i];": 1,
}


@pytest.mark.parametrize("copy", COPIES)
def test_accesses_are_as_wide_as_in_the_text(copy):
    kernel = metal_kernel(
        name="copies", input_names=["x"], output_names=["y"], header="struct Pairs { float2 a, b; };",
        source="threadgroup alignas(16) float from[128], to[128]; uint i = thread_index_in_simdgroup;"
        f"for (int n = 0; n < 4; n++) from[4 * i + n] = x[4 * i + n]; {copy} y[i] = to[4 * i];",
    )  # fmt: skip
    with mode("check"), profile() as counted:
        kernel(
            inputs=[mx.ones(128)], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)],
            output_dtypes=[mx.float32],
        )  # fmt: skip
    (launch,), accesses = counted.launches, COPIES[copy]
    assert launch["reads"] == {"device": 4 * 32, "threadgroup": (accesses + 1) * 32}
    assert launch["writes"] == {"device": 32, "threadgroup": (accesses + 4) * 32}


def test_table_and_json():
    with mode("check"):
        counted = softmax()
    assert json.loads(counted.json()) == counted.launches
    head, row = str(counted).splitlines()
    assert head.split()[0] == "kernel" and row.split()[0] == "lse"
    assert counted.total("shuffles") == 5 * ROWS
