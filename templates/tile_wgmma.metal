// The tile layer's products by wgmma (Hopper): four simdgroups multiply their 64 rows together, straight from
// threadgroup memory. Blocks that a row sees only in part go through mma.sync, whose operands pass through registers.
namespace tile {

// S = A B^T
template <typename T, int BP, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool STAGED>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a,
    thread const Traversed<T, BT, D, BH, THREADS, STAGED>& b) {
  static_assert(R == 16 && !CACHED, "wgmma reads 64 rows from threadgroup memory, 16 for each simdgroup");
  const int joint = a.first / JOINT_ROWS * JOINT_ROWS;
  nv::begin_products();
#pragma clang loop unroll(full)
  for (int d = 0; d < STEPS<D>; d++) {
    const int panel = d * 16 / PANEL, column = d * 16 % PANEL;
    nv::multiply_shared<T, BT>(
        s.at, a.block + (panel * BP + joint) * PANEL, b.block + panel * BT * PANEL, column, a.first - joint, d > 0);
  }
  nv::finish_products();
}

// C = factor * C + P B.  whole: every row of P sees every row of B, so that what lies there is meant.
template <typename Narrow, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool STAGED>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, STAGED>& b, bool whole) {
  c.multiply(factor);
  if (!whole) {
    synchronous_ab<true>(c, p, b);
    return;
  }
  nv::begin_products();
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    nv::multiply_registers<T, D>(c.at, narrowed<T>(p, 0, t), b.block + t * 16 * PANEL, BT * PANEL);
  }
  nv::finish_products();
}

}  // namespace tile
