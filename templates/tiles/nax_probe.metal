// Tests the neural accelerators of this GPU: one simdgroup writes the place of each of its elements, and products of
// small integers, which neural_probe.py compares with the order that nax_operands.metal assumes.
namespace flash {
namespace tile {

// The places of a cooperative tensor's elements, (column, row) each, at this lane's part of `out`
template <typename C> METAL_FUNC void write_places(device int* out, thread const C& tensor, uint lane) {
  for (ushort e = 0; e < 16; e++) {
    int column = -1, row = -1;
    if (e < tensor.get_capacity() && tensor.get_mask(e)) {
      auto place = tensor.get_multidimensional_index(e);
      column = place[0];
      row = place[1];
    }
    out[(lane * 16 + e) * 2] = column;
    out[(lane * 16 + e) * 2 + 1] = row;
  }
}

// Left, right and destination of one shape
template <typename A, typename B, int N, int K, bool TRANSPOSED>
METAL_FUNC void write_shape(device int* out, uint lane) {
  constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(16, N, K, false, TRANSPOSED, true, ADDS);
  mpp::tensor_ops::matmul2d<shape, execution_simdgroup> product;
  auto left = product.template get_left_input_cooperative_tensor<A, B, float>();
  auto right = product.template get_right_input_cooperative_tensor<A, B, float>();
  auto sum = product.template get_destination_cooperative_tensor<
      remove_addrspace_t<decltype(left)>, remove_addrspace_t<decltype(right)>, float>();
  write_places(out, left, lane);
  write_places(out + 1024, right, lane);
  write_places(out + 2048, sum, lane);
}

template <typename T> METAL_FUNC Matrix<T> whole(const device float* numbers, uint lane, uint n) {
  Matrix<T> found;
  for (int e = 0; e < 8; e++) found.at[e] = T(numbers[(n * 32 + lane) * 8 + e]);
  return found;
}

METAL_FUNC void write(device float* out, thread const Matrix<float>& matrix, uint lane, uint n) {
  for (int e = 0; e < 8; e++) out[(n * 32 + lane) * 8 + e] = matrix.at[e];
}

// The places and the products of one pair of types; `numbers` holds four matrices, as lanes hold them on M5.
template <typename A, typename B>
METAL_FUNC void probe_types(device int* places, device float* products, const device float* numbers, uint lane) {
  write_shape<A, B, 32, 16, false>(places, lane);
  write_shape<A, B, 32, 16, true>(places + 3072, lane);
  write_shape<A, B, 16, 32, false>(places + 6144, lane);
  const Matrix<A> a0 = whole<A>(numbers, lane, 0), a1 = whole<A>(numbers, lane, 1);
  const Matrix<B> b0 = whole<B>(numbers, lane, 2), b1 = whole<B>(numbers, lane, 3);
  Matrix<float> sums[5] = {};
  multiply_wide<false>(sums[0], sums[1], a0, b0, b1);
  multiply_wide<true>(sums[2], sums[3], a0, b0, b1);
  multiply_deep(sums[4], a0, a1, b0, b1);
  for (uint n = 0; n < 5; n++) write(products, sums[n], lane, n);
}

}  // namespace tile
}  // namespace flash
