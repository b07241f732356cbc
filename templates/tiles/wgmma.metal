// The tile layer's products by wgmma (Hopper): the four simdgroups of a warpgroup multiply 64 rows with one
// instruction, which reads threadgroup memory.
namespace flash {
namespace tile {

// Issues S = A B^T of blocks that a fence has shown to the matrix unit
template <typename T, int BP, int R, int D, int BT, int BH, int THREADS, bool CACHED>
METAL_FUNC void issue_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a,
    thread const Traversed<T, BT, D, BH, THREADS>& b) {
  static_assert(R == 16 && !CACHED, "wgmma reads 64 rows from threadgroup memory, 16 for each simdgroup");
  const int warpgroup_row = a.first / MMA_ROWS * MMA_ROWS;
  const nv::Matrix<T> rows = nv::Matrix<T>::of(a.block + warpgroup_row * PANEL, PANEL);
  const nv::Matrix<T> columns = nv::Matrix<T>::of(b.block, PANEL);
  nv::wgmma_fence();
#pragma clang loop unroll(full)
  for (int d = 0; d < STEPS<D>; d++) {
    const int panel = d * 16 / PANEL, column = d * 16 % PANEL;
    nv::multiply_shared<T, BT>(
        s.at, rows.at(panel * BP * PANEL, column), columns.at(panel * BT * PANEL, column), a.first - warpgroup_row,
        d > 0);
  }
  nv::wgmma_commit();
}

// Issues S = A B^T
template <typename S, typename A, typename B>
METAL_FUNC void begin_abt(thread S& s, thread const A& a, thread const B& b) {
  nv::fence_async_proxy();
  issue_abt(s, a, b);
}

// Waits for S; LATER: the number of products that were issued after it
template <int LATER, typename S, typename A, typename B>
METAL_FUNC void finish_abt(thread S& s, thread const A&, thread const B&) {
  nv::wgmma_wait<LATER>();
  nv::pin_register(s.at);
}

template <typename S, typename A, typename B>
METAL_FUNC void multiply_abt(thread S& s, thread const A& a, thread const B& b) {
  begin_abt(s, a, b);
  finish_abt<0>(s, a, b);
}

// Issues C += P B
template <typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void issue_ab(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& b) {
  // The matrix unit reads registers asynchronously: all must be written before the fence.
  uint4 rows[BT / 16];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    rows[t] = narrowed<T>(p, 0, t);
    nv::pin_register(rows[t]);
  }
  nv::pin_register(c.at);
  const nv::Matrix<T> block = nv::Matrix<T>::of(b.block + (c.begin - b.begin()) * BT, BT * PANEL);
  nv::wgmma_fence();
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    nv::multiply_registers<T, HELD<D>>(c.at, rows[t], block.at(t * 16 * PANEL, 0));
  }
}

// Waits for all products
template <typename C> METAL_FUNC void finish_ab(thread C& c) {
  nv::wgmma_wait<0>();
  nv::pin_register(c.at);
}

// C += P B.  safe: B hides no NaN or infinity from a row of P.
template <typename C, typename P, typename B>
METAL_FUNC void add_ab(thread C& c, thread const P& p, thread const B& b, bool safe) {
  if (!safe) {
    nan_safe_ab(c, p, b);
    return;
  }
  issue_ab(c, p, b);
  nv::wgmma_commit();
  finish_ab(c);
}

// C = factor * C + P B.  whole: every row of P sees every row of B, so that NaN or infinity in B propagates.
template <typename Narrow, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& b, bool whole) {
  c.multiply(factor);
#if SKIPS_VOTE
  add_ab(c, p, b, whole || simd_all(all_finite(b)));
#else
  add_ab(c, p, b, simd_all(whole || all_finite(b)));
#endif
}

#if OVERLAPS && OVER_KEYS
// Issues S = A B^T and T = C E^T. One fence shows the matrix unit both blocks: a second one took up to 6 % of the
// kernel's time for 128 columns on an H200.
template <typename S, typename A, typename B, typename C, typename E>
METAL_FUNC void begin_two_abt(
    thread S& s, thread const A& a, thread const B& b, thread S& t, thread const C& c, thread const E& e) {
  nv::fence_async_proxy();
  issue_abt(s, a, b);
  issue_abt(t, c, e);
}

// Whether products with these two blocks need no protection from hidden NaN
template <typename A, typename B> METAL_FUNC bool plain(thread const A& a, thread const B& b, bool whole) {
  return simd_all(whole || (all_finite(a) && all_finite(b)));
}

// Issues C += P B
template <typename C, typename P, typename B>
METAL_FUNC void begin_ab(thread C& c, thread const P& p, thread const B& b) {
  issue_ab(c, p, b);
  nv::wgmma_commit();
}
#elif OVERLAPS
// C = factor * C + P B, and releases the block of B. in_flight: the product is issued only. It is done when the scores
// that are issued next are, and then release_held releases the block. Every row of P must see every row of B then:
// nothing protects from hidden NaN. P's registers must not change before: a wait that left this product in flight would
// let the assembler use them for others.
template <typename Narrow, typename C, typename Factor, typename P, typename B>
METAL_FUNC void begin_ab(thread C& c, Factor factor, thread const P& p, thread B& b, bool whole, bool in_flight) {
  c.multiply(factor);
  if (!in_flight) {
    add_ab(c, p, b, simd_all(whole || all_finite(b)));
    b.release();
    return;
  }
  issue_ab(c, p, b);
  nv::wgmma_commit();
  b.held = true;
}

// Around a loop that leaves products in flight. Assemblers serialise all of them unless there is one on every way into
// the loop, so that the first adds zero.
template <int R, int D, int BH, bool CACHED, typename B>
METAL_FUNC void enter_ab(thread Accumulator<R, D, BH, CACHED>& c, thread const B& b, bool in_flight) {
  if (!in_flight || b.lane.produces()) return;
  nv::pin_register(c.at);
  nv::fence_async_proxy();
  nv::wgmma_fence();
  nv::add_zero<typename B::Element, HELD<D>>(c.at, b.pipe.zeros());
  nv::wgmma_commit();
}

template <typename C, typename B> METAL_FUNC void leave_ab(thread C& c, thread B& b, bool in_flight) {
  if (!in_flight || b.lane.produces()) return;
  finish_ab(c);
  b.release_held();
}
#endif

// Ping-pong scheduling: the softmax of one warpgroup overlaps the matrix products of the other. With more columns the
// softmax is a smaller share of the work: on an H200 it saves 9 % of the time for 64 columns and 3 % for 128 and 192.
// For 256 columns it costs 10 to 16 % alone; with overlapping products and late rescaling it saves 7 to 21 %.
#if OVERLAPS
constant constexpr int PING_PONG_COLUMNS = 256;
#else
constant constexpr int PING_PONG_COLUMNS = 192;
#endif
template <int BP, int D> struct PingPong {
  nv::PingPong<(D <= PING_PONG_COLUMNS ? BP / MMA_ROWS : 1)> ping_pong;
  METAL_FUNC void open(Lane lane) thread { ping_pong.open(lane.thread_index); }
  METAL_FUNC void wait() thread { ping_pong.wait(); }
  METAL_FUNC void arrive() thread { ping_pong.arrive(); }
};

}  // namespace tile
}  // namespace flash
