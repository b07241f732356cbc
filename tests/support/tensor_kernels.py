"""Kernels with products of cooperative tensors, generated from shapes, dtypes and deliberate mistakes."""

import re
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_flash.simulator import language, metal_kernel

HEADER = """
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace mpp::tensor_ops;
"""
DTYPES = {"float": mx.float32, "half": mx.float16, "bfloat": mx.bfloat16, "int8_t": mx.int8, "int": mx.int32}


@dataclass(frozen=True)
class Product:
    """c = `start` + a b, or a b. `asks`: elements are placed by get_multidimensional_index, else as on M5.

    Mistakes: `unset` is the (role, number) of an element that stays unset, `past` an index that is read out of range,
    `lanes` the number of lanes that take part.
    """

    shape: tuple[int, int, int]
    left: bool = False
    right: bool = False
    types: tuple[str, str, str] = ("half", "half", "float")
    start: int = 0
    accumulate: bool = True
    asks: bool = True
    unset: tuple[int, int] | None = None
    past: int | None = None
    lanes: int = 32
    scope: str = "execution_simdgroup"
    arguments: str = "a, b, c"
    relaxed: bool = True

    @property
    def stored(self) -> list[tuple[int, int]]:
        """Shapes of the factors and of the result in memory."""
        m, n, k = self.shape
        return [(k, m) if self.left else (m, k), (n, k) if self.right else (k, n), (m, n)]

    @property
    def operation(self) -> str:
        how = "multiply_accumulate" if self.accumulate else "multiply"
        words = [*map(str, self.shape), *(str(flag).lower() for flag in (self.left, self.right, self.relaxed))]
        descriptor = f"matmul2d_descriptor({', '.join(words)}, matmul2d_descriptor::mode::{how})"
        types = ", ".join(self.types)
        tensors = "".join(
            f"auto {name} = op.template get_{role}_cooperative_tensor<{given}>();\n"
            for name, role, given in (
                ("a", "left_input", types), ("b", "right_input", types),
                ("c", "destination", f"decltype(a), decltype(b), {self.types[2]}"),
            )
        )  # fmt: skip
        return f"constexpr auto desc = {descriptor};\nmatmul2d<desc, metal::{self.scope}> op;\n{tensors}"

    def element(self, tensor: str, role: int, what: str) -> str:
        """A loop over this lane's elements `i`; `at` is the place of element i in the matrix in memory."""
        columns = self.stored[role][1]
        place = f"auto place = {tensor}.get_multidimensional_index(i); const int at = place[1] * {columns} + place[0];"
        if not self.asks:
            across = columns // 16
            row, column = f"i / 8 / {across} * 16 + fm + (i & 4) * 2", f"i / 8 % {across} * 16 + fn + (i & 3)"
            place = f"const int at = ({row}) * {columns} + {column};"
        skip = (
            f"if (i == {self.unset[1]}) continue; " if self.unset and self.unset[0] == role and what[0] != "C" else ""
        )
        return f"for (ushort i = 0; i < {tensor}.get_capacity(); ++i) {{ {skip}{place} {what} }}\n"

    @property
    def body(self) -> str:
        fill = "".join(
            self.element(tensor, role, f"{tensor}[i] = {value};")
            for tensor, role, value in (
                ("a", 0, f"({self.types[0]})A[at]"), ("b", 1, f"({self.types[1]})B[at]"),
                ("c", 2, f"({self.types[2]}){self.start}"),
            )
        )  # fmt: skip
        past = f"C[0] = c[{self.past}];\n" if self.past is not None else ""
        return (
            "const ushort lane = thread_index_in_simdgroup;\n"
            "const int fm = lane / 16 * 4 + lane / 2 % 4, fn = lane / 8 % 2 * 8 + lane % 2 * 4;\n"
            f"{self.operation}{fill}{past}if (lane < {self.lanes}) op.run({self.arguments});\n"
            + self.element("c", 2, "C[at] = c[i];")
        )


def launched(body: str, inputs: list[mx.array], shape: tuple[int, ...], dtype: mx.Dtype) -> np.ndarray:
    names = ["A", "B", "D"][: len(inputs)]
    kernel = metal_kernel("tensors", names, ["C"], body, header=HEADER)
    with language("4.0"):
        (out,) = kernel(
            inputs=inputs, output_shapes=[shape], output_dtypes=[dtype], grid=(32, 1, 1), threadgroup=(32, 1, 1)
        )
    return np.array(out.astype(mx.float32) if dtype == mx.bfloat16 else out)


def computed(products: list[Product]) -> list[tuple[Product, np.ndarray, np.ndarray]]:
    """(product, result, a b in integers) of each product; one kernel computes all of them."""
    found, numbers = [], []
    for product in products:
        rng = np.random.default_rng(len(numbers))
        a, b = (rng.integers(-3, 4, shape) for shape in product.stored[:2])
        numbers.append((a, b, (a.T if product.left else a) @ (b.T if product.right else b)))
    parts, offsets = [], [0, 0, 0]
    for product, (a, b, c) in zip(products, numbers):
        moved = [f"{space}device float* {name}_ = {name} + {offset};"
                 for name, space, offset in zip("ABC", ("const ", "const ", ""), offsets)]  # fmt: skip
        inner = re.sub(r"\b([ABC])\[", r"\1_[", product.body)
        parts.append(f"{{ {' '.join(moved)}\n{inner}}}\n")
        offsets = [offset + array.size for offset, array in zip(offsets, (a, b, c))]
    joined = [mx.array(np.concatenate([n[i].ravel() for n in numbers]).astype(np.float32)) for i in range(2)]
    out = launched("".join(parts), joined, (offsets[2],), mx.float32)
    begin = 0
    for product, (*_, c) in zip(products, numbers):
        found.append((product, out[begin : begin + c.size].reshape(c.shape), c))
        begin += c.size
    return found


def places(shape: tuple[int, int, int], role: int, transposed: bool = False) -> np.ndarray:
    """[lane, element, (column, row)], according to get_multidimensional_index."""
    product = Product(shape, right=transposed)
    rows, columns = product.stored[role]
    capacity = rows * columns // 32
    body = (
        f"{product.operation}for (ushort i = 0; i < {capacity}; ++i) {{\n"
        f"  auto place = {'abc'[role]}.get_multidimensional_index(i);\n"
        f"  const int at = (thread_index_in_simdgroup * {capacity} + i) * 2;\n"
        "  C[at] = place[0]; C[at + 1] = place[1];\n}\n"
    )
    return launched(body, [], (32, capacity, 2), mx.int32)


def passed_through(values: np.ndarray, relaxed: bool) -> np.ndarray:
    """The float factors after a product with the unit matrix."""
    m, n, k = 16, 32, 16
    unit = np.zeros((k, n), np.float32)
    unit[0, 0] = 1
    product = Product((m, n, k), types=("float", "float", "float"), relaxed=relaxed)
    found = []
    for begin in range(0, len(values), m):  # one factor per row: zeros beside an infinity would turn it into NaN
        part = values[begin : begin + m]
        column = np.zeros((m, k), np.float32)
        column[: len(part), 0] = part
        out = launched(product.body, [mx.array(column), mx.array(unit)], (m, n), mx.float32)
        found.append(out[: len(part), 0])
    return np.concatenate(found)


def from_memory(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b^T of a [rows, depth] and b [32, depth], both smaller than the product, which is 32x32x64."""
    (rows, depth), (columns, _) = a.shape, b.shape
    body = f"""
constexpr auto how = matmul2d_descriptor::mode::multiply_accumulate;
constexpr auto desc = matmul2d_descriptor(32, 32, 64, false, true, true, how);
matmul2d<desc, metal::execution_simdgroup> op;
typedef metal::dextents<int, 2> extents_t;
typedef metal::array<int, 2> strides_t;
typedef metal::tensor<device float, extents_t, metal::tensor_inline> tensor_t;
tensor_t whole((device float*)A, extents_t({depth}, {rows}), strides_t{{1, {depth}}});
tensor_t right((device float*)B, extents_t({depth}, {columns}), strides_t{{1, {depth}}});
tensor_t out(C, extents_t({columns}, {rows}), strides_t{{1, {columns}}});
auto left = whole.template slice<metal::dynamic_extent, metal::dynamic_extent>(0, 0);
auto sum = op.template get_destination_cooperative_tensor<decltype(left), decltype(right), float>();
for (ushort i = 0; i < sum.get_capacity(); ++i) sum[i] = 0;
auto held = op.template get_left_input_cooperative_tensor<float, float, float>();
held.load(left);
op.run(held, right, sum);
sum.store(out);
"""
    return launched(body, [mx.array(a), mx.array(b)], (rows, columns), mx.float32)
