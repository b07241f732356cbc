// The tile layer's products by mma.sync: every simdgroup multiplies alone (compute capability 8.0 and later).
namespace flash {
namespace tile {

// S = A B^T
template <typename T, int BP, int R, int D, int BT, int BH, int THREADS, bool CACHED>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a,
    thread const Traversed<T, BT, D, BH, THREADS>& b) {
  synchronous_abt(s, a, b);
}

// C = factor * C + P B.  whole: every row of P sees every row of B, so that NaN or infinity in B propagates.
template <typename Narrow, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS>& b, bool whole) {
  c.multiply(factor);
  if (whole || all_finite(b)) {
    synchronous_ab(c, p, b);
  } else {
    nan_safe_ab(c, p, b);
  }
}

}  // namespace tile
}  // namespace flash
