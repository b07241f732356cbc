"""mpp::tensor_ops on the simulator: products, how elements lie in lanes, what is rounded, reported and refused."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
import tensor_kernels as tensors

from mlx_flash.simulator import CompileError, SimulatorError, language, metal_kernel, mode, profile, tensor_unit

SHAPES = ((16, 32, 16), (16, 16, 32))
# Left, right and destination types that MPP documents.
TYPES = [
    (a, b, c)
    for c, factors in {
        "int": ("int8_t int8_t",),
        "half": ("half half", "half int8_t", "int8_t half", "bfloat half", "half bfloat"),
        "bfloat": ("bfloat bfloat", "bfloat int8_t", "int8_t bfloat", "bfloat half", "half bfloat"),
        "float": (
            "half half", "half float", "half int8_t", "float half", "float float", "float int8_t", "int8_t half",
            "int8_t float", "bfloat bfloat", "bfloat float", "bfloat int8_t", "float bfloat", "int8_t bfloat",
            "bfloat half", "half bfloat",
        ),
    }.items()
    for a, b in map(str.split, factors)
]  # fmt: skip


@pytest.mark.parametrize("layout", ("m5", "opaque"))
@pytest.mark.parametrize("how", ("check", "fast"))
def test_every_shape_and_transpose(layout, how):
    """Small integers, whose products are exact."""
    variants = list(itertools.product(SHAPES, (False, True), (False, True)))
    products = [tensors.Product(shape, left, right) for shape, left, right in variants]
    with mode(how), tensor_unit(layout), profile() as counted:
        for product, got, want in tensors.computed(products):
            assert np.array_equal(got, want), product
    assert counted.total("tensor_matmuls") == 2 * len(variants)


def test_every_combination_of_types():
    products = [tensors.Product(SHAPES[0], False, True, types) for types in TYPES]
    with mode("check"):
        for product, got, want in tensors.computed(products):
            assert np.array_equal(got, want), product


def test_the_destination_is_added_to_or_replaced():
    with mode("check"):
        for adds in (True, False):
            ((product, got, want),) = tensors.computed([tensors.Product(SHAPES[0], start=7, accumulate=adds)])
            assert np.array_equal(got, want + 7 * adds), product


@pytest.mark.parametrize(
    "role, rows, columns", ((0, 16, 16), (1, 32, 16), (1, 16, 32), (2, 16, 32), (0, 16, 32), (1, 32, 16))
)
def test_layout_of_m5(role, rows, columns):
    """A lane has four neighbouring columns of a row and of the row eight below, of one 16x16 matrix after another."""
    shape = SHAPES[0] if (role, columns) != (0, 32) else SHAPES[1]
    with mode("check"):
        places = tensors.places(shape, role, transposed=role == 1 and rows == 32 and shape == SHAPES[0])
    assert places.shape == (32, rows * columns // 32, 2)
    for lane, element in itertools.product(range(32), range(places.shape[1])):
        matrix, within = divmod(element, 8)
        row = lane // 16 * 4 + lane // 2 % 4 + within // 4 * 8
        column = lane // 8 % 2 * 8 + lane % 2 * 4 + within % 4
        down, right = divmod(matrix, columns // 16)
        assert tuple(places[lane, element]) == (right * 16 + column, down * 16 + row)


@pytest.mark.parametrize("layout", ("m5", "opaque"))
def test_a_layout_holds_every_element_once(layout):
    for role in range(3):
        with tensor_unit(layout):
            places = tensors.places(SHAPES[0], role)
        assert len({tuple(place) for lane in places for place in lane}) == places.size // 2


def test_an_assumed_layout_is_wrong_under_another():
    with tensor_unit("m5"):
        ((_, right, want),) = tensors.computed([tensors.Product(SHAPES[0], asks=False)])
    with tensor_unit("opaque"):
        ((_, wrong, _),) = tensors.computed([tensors.Product(SHAPES[0], asks=False)])
    assert np.array_equal(right, want) and not np.array_equal(wrong, want)


@pytest.mark.parametrize("relaxed, rounding", ((True, "nearest"), (True, "truncated"), (False, "nearest")))
def test_float_factors_of_relaxed_products_lose_bits(relaxed, rounding):
    """10 bits of mantissa stay; infinities and NaN stay what they are. A float times 1 shows them."""
    values = np.concatenate([1 + np.arange(-40, 40) / 2**13, [np.inf, -np.inf, np.nan, 0, 2.0**-126]]).astype(
        np.float32
    )
    bits = values.view(np.uint32).astype(np.uint64)
    if relaxed:
        kept = bits if rounding == "truncated" else bits + 0xFFF + (bits >> 13 & 1)
        bits = np.where(np.isfinite(values), kept & ~np.uint64(0x1FFF), bits)
    want = bits.astype(np.uint32).view(np.float32)
    with tensor_unit(rounding=rounding):
        assert np.array_equal(tensors.passed_through(values, relaxed), want, equal_nan=True)


REPORTED = {
    "a left element that was never set": ("element 3 of the left input .* was never set", dict(unset=(0, 3))),
    "a right element that was never set": ("element 9 of the right input .* was never set", dict(unset=(1, 9))),
    "a destination element that was never set": ("element 15 of the destination .* was never set", dict(unset=(2, 15))),
    "an index past the capacity": ("index 16 is outside an array", dict(past=16)),
    "half a simdgroup": ("needs inactive lanes: active 0x0000ffff", dict(lanes=16)),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_is_reported(name):
    words, mistake = REPORTED[name]
    with mode("check"), pytest.raises(SimulatorError, match=words):
        tensors.computed([tensors.Product(SHAPES[0], **mistake)])


def test_a_product_that_replaces_needs_no_destination():
    with mode("check"):
        ((_, got, want),) = tensors.computed([tensors.Product(SHAPES[0], accumulate=False, unset=(2, 5))])
    assert np.array_equal(got, want)


REFUSED = {
    "another shape in registers": ("the shapes whose layout is known", tensors.Product((32, 32, 32))),
    "a size of 8": ("multiples of 16", tensors.Product((8, 32, 16))),
    "several simdgroups": ("scope of one simdgroup", tensors.Product(SHAPES[0], scope="execution_simdgroups<4>")),
    "other types": ("no product of these types", tensors.Product(SHAPES[0], types=("half", "half", "int"))),
    "factors exchanged": ("left input, right input and destination", tensors.Product(SHAPES[0], arguments="b, a, c")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    words, product = REFUSED[name]
    with pytest.raises(CompileError, match=words):
        tensors.computed([product])


@pytest.mark.parametrize("version", ("3.1", "3.2"))
def test_languages_before_4_have_no_tensors(version):
    with language(version), pytest.raises(CompileError, match=r"(?s)line 2: error: tensors .* need Metal 4.0.{0,80}$"):
        metal_kernel("k", ["x"], ["y"], "y[0] = x[0];", header="\n#include <metal_tensor>\n")(
            inputs=[mx.ones((8,))], output_shapes=[(1,)], output_dtypes=[mx.float32], grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
        )  # fmt: skip


def test_settings_are_checked(monkeypatch):
    for arguments in ({"layout": "m6"}, {"rounding": "up"}):
        with pytest.raises(ValueError, match="must be one of"), tensor_unit(**arguments):
            pass
    monkeypatch.setenv("MLX_FLASH_TENSOR_LAYOUT", "opaque")
    ((_, got, want),) = tensors.computed([tensors.Product(SHAPES[0], asks=False)])
    assert not np.array_equal(got, want)


@pytest.mark.parametrize("sizes", ((64, 32), (50, 27)))
def test_matrices_in_memory_end_where_they_end(sizes):
    """A 32x32x64 product of slices and whole matrices: past their ends they count as zeros and are not written."""
    depth, rows = sizes
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((rows, depth), (32, depth)))
    with mode("check"):
        got = tensors.from_memory(a, b)
    assert np.array_equal(got, a @ b.T)


@pytest.mark.parametrize("version", ("4.0", "4.1"))
def test_vectors_of_eight(version):
    """Metal 4 has them, without letters for their components."""
    body = """
    uint i = thread_position_in_grid.x;
    vec<float, 8> a(x[i]), b = a;
    for (int e = 0; e < 8; e++) b[e] = e;
    const vec<float, 8> c = a * b + 1.0f - -b;
    vec<half, 8> d(c);
    d += d;
    y[i] = d[7] + exp2(b)[3];
    """
    kernel = metal_kernel("eight", ["x"], ["y"], body)
    with language(version), mode("check"):
        (y,) = kernel(
            inputs=[mx.arange(8.0)], output_shapes=[(8,)], output_dtypes=[mx.float32], grid=(8, 1, 1),
            threadgroup=(8, 1, 1),
        )  # fmt: skip
    assert y.tolist() == [2 * (7 * x + 1 + 7) + 8 for x in range(8)]
