// The tile layer's products by wgmma (Hopper): four simdgroups multiply their 64 rows together, straight from
// threadgroup memory.
namespace tile {

// S = A B^T begins
template <typename T, int BP, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool STAGED>
METAL_FUNC void begin_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a,
    thread const Traversed<T, BT, D, BH, THREADS, STAGED>& b) {
  static_assert(R == 16 && !CACHED, "wgmma reads 64 rows from threadgroup memory, 16 for each simdgroup");
  const int joint = a.first / JOINT_ROWS * JOINT_ROWS;
  const nv::Matrix<T> rows = nv::Matrix<T>::of(a.block + joint * PANEL, PANEL);
  const nv::Matrix<T> columns = nv::Matrix<T>::of(b.block, PANEL);
  nv::show_copies();
  nv::begin_products();
#pragma clang loop unroll(full)
  for (int d = 0; d < STEPS<D>; d++) {
    const int panel = d * 16 / PANEL, column = d * 16 % PANEL;
    nv::multiply_shared<T, BT>(
        s.at, rows.at(panel * BP * PANEL, column), columns.at(panel * BT * PANEL, column), a.first - joint, d > 0);
  }
  nv::end_products();
}

// LATER: products that were begun since
template <int LATER, typename S, typename A, typename B>
METAL_FUNC void finish_abt(thread S& s, thread const A&, thread const B&) {
  nv::wait_products<LATER>();
  nv::settle(s.at);
}

template <typename S, typename A, typename B>
METAL_FUNC void multiply_abt(thread S& s, thread const A& a, thread const B& b) {
  begin_abt(s, a, b);
  finish_abt<0>(s, a, b);
}

// C = factor * C + P B.  whole: every row of P sees every row of B, so that what lies there is meant.
template <typename Narrow, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool STAGED>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, STAGED>& b, bool whole) {
  c.multiply(factor);
  if (!simd_all(whole || all_finite(b))) {
    careful_ab(c, p, b);
    return;
  }
  // The matrix unit reads registers on its own time: they are all written before it begins.
  uint4 rows[BT / 16];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    rows[t] = narrowed<T>(p, 0, t);
    nv::settle(rows[t]);
  }
  nv::settle(c.at);
  const nv::Matrix<T> block = nv::Matrix<T>::of(b.block, BT * PANEL);
  nv::begin_products();
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    nv::multiply_registers<T, D>(c.at, rows[t], block.at(t * 16 * PANEL, 0));
  }
  nv::end_products();
  nv::wait_products<0>();
  nv::settle(c.at);
}

// Those who multiply together take turns at it, so that exponentials of some run beside products of others. The more
// columns, the smaller the part of the exponentials: on an H200 it saves 9 % of the time for 64 columns, 3 % for 128,
// and costs 5 % for 256.
template <int BP, int D> struct Turns {
  nv::Turns<(D <= 128 ? BP / JOINT_ROWS : 1)> turns;
  METAL_FUNC void open(Lane lane) thread { turns.open(lane.thread_index); }
  METAL_FUNC void take() thread { turns.take(); }
  METAL_FUNC void pass() thread { turns.pass(); }
};

}  // namespace tile
