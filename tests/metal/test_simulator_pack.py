"""metal_pack and the determinants compute what numpy computes."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.simulator import metal_kernel

N = 64
RANDOM = np.random.default_rng(0)


def run(source, inputs, shape, dtype):
    kernel = metal_kernel(
        name="packing", input_names=["xs"], output_names=["y"], source=f"uint i = thread_position_in_grid.x; {source}"
    )
    (y,) = kernel(
        inputs=[mx.array(inputs)], grid=(N, 1, 1), threadgroup=(N, 1, 1), output_shapes=[shape], output_dtypes=[dtype]
    )
    return np.array(y)


# name, lanes, bits of each from the lowest, signed
FORMATS = (
    ("unorm4x8", (8, 8, 8, 8), False), ("snorm4x8", (8, 8, 8, 8), True), ("unorm2x16", (16, 16), False),
    ("snorm2x16", (16, 16), True), ("unorm10a2", (10, 10, 10, 2), False),
)  # fmt: skip


def unpacked(words, bits, signed):
    """The definition: quotient and sign of each field."""
    columns, shift = [], 0
    for n in bits:
        field = (words.astype(np.uint64) >> np.uint64(shift)).astype(np.int64) & (2**n - 1)
        if signed:
            field = np.where(field >= 2 ** (n - 1), field - 2**n, field)
        largest = 2 ** (n - 1) - 1 if signed else 2**n - 1
        columns.append(np.maximum(field / largest, -1))
        shift += n
    return np.stack(columns, -1)


@pytest.mark.parametrize("name, bits, signed", FORMATS, ids=lambda value: value if isinstance(value, str) else "")
def test_words_unpack_and_pack_again(name, bits, signed):
    words = RANDOM.integers(0, 2**32, N, dtype=np.uint32)
    lanes = len(bits)
    store = "".join(f"y[i * {lanes} + {k}] = v[{k}];" for k in range(lanes))
    values = run(f"float{lanes} v = unpack_{name}_to_float(xs[i]); {store}", words, (N, lanes), mx.float32)
    wanted = unpacked(words, bits, signed)
    np.testing.assert_array_almost_equal_nulp(values, wanted.astype(np.float32), 1)
    again = run(f"y[i] = pack_float_to_{name}(unpack_{name}_to_float(xs[i]));", words, (N,), mx.uint32)
    np.testing.assert_array_equal(unpacked(again, bits, signed), wanted)


def test_values_outside_the_range_saturate():
    words = run("y[i] = pack_float_to_snorm2x16(float2(xs[i], -xs[i]));", np.full(N, 7, np.float32), (N,), mx.uint32)
    assert set(words.tolist()) == {0x80017FFF}


def test_colours_of_five_six_and_five_bits():
    words = RANDOM.integers(0, 2**16, N, dtype=np.uint16)
    again = run("y[i] = pack_half_to_unorm565(unpack_unorm565_to_half(xs[i]));", words, (N,), mx.uint16)
    np.testing.assert_array_equal(again, words)
    red = run("y[i] = unpack_unorm565_to_float(xs[i]).x;", words, (N,), mx.float32)
    np.testing.assert_array_almost_equal_nulp(red, ((words >> 11) / 31).astype(np.float32), 1)


@pytest.mark.parametrize("size", (2, 3, 4))
def test_determinants(size):
    matrices = RANDOM.integers(-4, 5, (N, size, size)).astype(np.float32)  # small integers: exact in any order
    columns = ", ".join(
        f"float{size}({', '.join(f'xs[(i * {size} + {c}) * {size} + {r}]' for r in range(size))})" for c in range(size)
    )
    found = run(f"y[i] = determinant(float{size}x{size}({columns}));", matrices, (N,), mx.float32)
    np.testing.assert_array_equal(found, np.rint(np.linalg.det(matrices.astype(np.float64))))
