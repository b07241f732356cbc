// The tile layer's products by mma.sync: every simdgroup multiplies alone (compute capability 8.0 and later).
namespace flash {
namespace tile {

// S = A B^T
template <typename T, int BP, int R, int D, int BT, int BH, int THREADS, bool CACHED>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a,
    thread const Traversed<T, BT, D, BH, THREADS>& b) {
  clear(s);
#pragma clang loop unroll(full)
  for (int d = 0; d < STEPS<D>; d++) {
    uint4 rows[R / 16];
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 16; i++) rows[i] = a.fragment(i, d);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 16; t++) {
      const uint4 columns = b.fragment(t, d);
#pragma clang loop unroll(full)
      for (int i = 0; i < R / 16; i++) {
        nv::multiply<T>(s.at[2 * i][2 * t], s.at[2 * i + 1][2 * t], rows[i], columns.xy);
        nv::multiply<T>(s.at[2 * i][2 * t + 1], s.at[2 * i + 1][2 * t + 1], rows[i], columns.zw);
      }
    }
  }
}

// C += P B
template <typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void add_product(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& b) {
  const int first = (c.begin - b.begin()) / 16;
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    uint4 rows[R / 16];
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 16; i++) rows[i] = narrowed<T>(p, i, t);
#pragma clang loop unroll(full)
    for (int d = 0; d < STEPS<HELD<D>>; d++) {
      const uint4 columns = b.transposed(t, first + d);
#pragma clang loop unroll(full)
      for (int i = 0; i < R / 16; i++) {
        nv::multiply<T>(c.at[2 * i][2 * d], c.at[2 * i + 1][2 * d], rows[i], columns.xy);
        if (2 * d + 1 < HELD<D> / 8) {
          nv::multiply<T>(c.at[2 * i][2 * d + 1], c.at[2 * i + 1][2 * d + 1], rows[i], columns.zw);
        }
      }
    }
  }
}

// C = factor * C + P B.  whole: every row of P sees every row of B, so that NaN or infinity in B propagates.
template <typename Narrow, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& b, bool whole) {
  c.multiply(factor);
  if (whole || all_finite(b)) {
    add_product(c, p, b);
  } else {
    nan_safe_ab(c, p, b);
  }
}

}  // namespace tile
}  // namespace flash
