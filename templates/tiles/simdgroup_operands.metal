// Operands and results of the 8x8 simdgroup matrices: how they come into registers, and where results live.
namespace flash {
namespace tile {

// The threadgroup memory of the operands: one block, which the traversed operands use in turn.
template <typename T> struct Memory {
  threadgroup T* scratch;
};

// An operand whose rows belong to this simdgroup. Rows past the end repeat the last one: their results are never
// stored, and no address outside the operand is ever formed.
//
// S = A B^T sums over its columns in any order; fragments hold them as summed_column says.
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  const device T* row[R / 8];  // this lane's pair of the first fragment; where reads are DEEP, of the row
  int column;
  Pair<T> cached[R / 8][CACHED ? D / 8 : 1];

  // first: this simdgroup's first row
  METAL_FUNC void open(
      thread const View& view, int b, int h, int first, int rows, thread Memory<T>&, Lane lane) thread {
    const device T* head = view.head<T>(b, h);
    const long stride = view.row_stride<T>();
    column = lane.column;
    for (int i = 0; i < R / 8; i++) {
      row[i] = head + (min(first + i * 8 + lane.row, rows - 1) * stride + (DEEP == 1 ? column : 0));
      if constexpr (CACHED) read<D>(i, 0, cached[i]);
    }
  }

  METAL_FUNC Pair<T> fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    if constexpr (DEEP == 1) return read_pair(row[i] + d * 8);
    return Pair<T>(row[i][summed_column(D, d, column)], row[i][summed_column(D, d, column + 1)]);
  }

  // Fragments of columns [column, column + H) of the i-th group of rows
  template <int H> METAL_FUNC void fragments(int i, int begin, thread Pair<T> (&found)[H / 8]) const thread {
    if constexpr (CACHED) {
#pragma clang loop unroll(full)
      for (int d = 0; d < H / 8; d++) found[d] = cached[i][begin / 8 + d];
    } else {
      read<H>(i, begin, found);
    }
  }

  template <int H, int M> METAL_FUNC void read(int i, int begin, thread Pair<T> (&found)[M]) const thread {
    constexpr int FULL = H / 8 / DEEP * DEEP, REST = H / 8 - FULL;
#pragma clang loop unroll(full)
    for (int d = 0; d < FULL; d += DEEP) group<DEEP>(row[i] + begin, d, found);
    if constexpr (REST > 0) group<REST>(row[i] + begin, FULL, found);
  }

  template <int N, int M> METAL_FUNC void group(const device T* from, int d, thread Pair<T> (&found)[M]) const thread {
    const Run<T, 2 * N> run = *(const device Run<T, 2 * N>*)(from + (d * 8 + (DEEP == 1 ? 0 : column * N)));
#pragma clang loop unroll(full)
    for (int j = 0; j < N; j++) found[d + j] = Pair<T>(run.at[j], run.at[N + j]);
  }
};

#if USES_THREADGROUP
// Fragments f, f + 1, .. of a group, side by side from `source` on: `count` of them, as many as `place` puts there
template <int MOST, typename T> METAL_FUNC Run<Pair<T>, MOST> side_by_side(const threadgroup T* source, int count) {
  Run<Pair<T>, MOST> group = {};
  if (count == MOST) {
    group = *(const threadgroup Run<Pair<T>, MOST>*)source;
  } else {
#pragma clang loop unroll(full)
    for (int j = 0; j < count; j++) group.at[j] = *(const threadgroup Pair<T>*)(source + j * 2);
  }
  return group;
}

#else
// `count` pairs, MOST at most, that lie side by side in the device's memory: by one read if it is aligned as it asks
template <typename T, int MOST> METAL_FUNC Run<Pair<T>, MOST> pairs(const device T* source, int count) {
  Run<Pair<T>, MOST> found = {};
  if (count == MOST) {
    const Run<T, 2 * MOST> run = *(const device Run<T, 2 * MOST>*)source;
#pragma clang loop unroll(full)
    for (int j = 0; j < MOST; j++) found.at[j] = Pair<T>(run.at[2 * j], run.at[2 * j + 1]);
  } else {
#pragma clang loop unroll(full)
    for (int j = 0; j < count; j++) found.at[j] = read_pair(source + j * 2);
  }
  return found;
}

#endif

#if USES_THREADGROUP
// Fragments (t, d), (t, d + 1), .. of a block of BT rows and H columns in threadgroup memory
template <int BT, int H, typename T>
METAL_FUNC Run<Pair<T>, WIDE> from_threadgroup(const threadgroup T* scratch, int pitch, int t, int d, Lane lane) {
  const threadgroup T* own = scratch + (lane_place(BT, t, lane.row) * pitch + lane_column(H, d, lane.column));
  return side_by_side<WIDE>(own + (fixed_place(t) * pitch + fixed_column(d)), min(WIDE, H / 8 - d));
}

// Fragments (d, t), (d, t + 1), .. of a block of BT rows and H columns that lies there transposed
template <int BT, int H, typename T>
METAL_FUNC Run<Pair<T>, WIDE_ROWS> from_threadgroup_transposed(const threadgroup T* scratch, int t, int d, Lane lane) {
  const threadgroup T* own = scratch + (summed_column(H, d, lane.row) * BT + lane_place(BT, t, lane.column));
  return side_by_side<WIDE_ROWS>(own + fixed_place(t), min(WIDE_ROWS, BT / 8 - t));
}

// Waits for all that copy the same block: the threadgroup, or one simdgroup where simdgroups split the keys.
METAL_FUNC void copiers_barrier() {
#if SPLITS_KEYS
  simdgroup_barrier(mem_flags::mem_threadgroup);
#else
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
}

// Columns [column, column + H) of a block of BT rows to threadgroup memory, zeros where there is no row; TRANSPOSED:
// as H rows of BT. A thread's column does not change from pass to pass.
template <int BT, int H, bool TRANSPOSED, typename B>
METAL_FUNC void load_to_threadgroup(thread const B& b, int column) {
  using T = typename B::Element;
  constexpr int N = B::RUN, RUNS = H / N;
  constexpr int SLOTS = RUNS <= 1 ? 1 : RUNS <= 2 ? 2 : RUNS <= 4 ? 4 : RUNS <= 8 ? 8 : RUNS <= 16 ? 16 : 32;
  constexpr int STEP = B::COPYING_THREADS / SLOTS, PASSES = (BT + STEP - 1) / STEP;
  static_assert(RUNS <= SLOTS && B::COPYING_THREADS % SLOTS == 0, "a thread stays in its columns");
  const int row0 = b.lane.thread_index / uint(SLOTS), c = b.lane.thread_index % uint(SLOTS) * N;
  copiers_barrier();
#if SPLITS_KEYS
#pragma clang loop unroll_count(4)
#else
#pragma clang loop unroll_count(8)
#endif
  for (int n = 0; n < PASSES; n++) {
    const int row = row0 + n * STEP;  // of the block
    if ((RUNS < SLOTS && c >= H) || (BT % STEP != 0 && row >= BT)) continue;
    Run<T, N> values = {};
    if (b.valid == BT || row < b.valid) values = b.run(n * STEP, column, row0, c);
    if constexpr (TRANSPOSED) {
#pragma clang loop unroll(full)
      for (int e = 0; e < N; e++) (b.scratch + (c * BT + row0))[e * BT + n * STEP] = values.at[e];
    } else {
      *(threadgroup Run<T, N>*)(b.scratch + (row0 * B::HEAD_BLOCK + c) + n * STEP * B::HEAD_BLOCK) = values;
    }
  }
  copiers_barrier();
}

#endif

#if !QUANTIZED
// An operand that all simdgroups walk along in blocks of BT rows. USES_THREADGROUP: each BT x BH block is copied to
// threadgroup memory first (M1, M2); otherwise lanes read the device directly (M3 and later, whose L1 serves it).
// Rows at or past `valid` read as zero. Where it is known to be BT, the code has no trace of that.
template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 16 / sizeof(T), COPYING_THREADS = THREADS;
#if SCATTERED
  Scattered<T> pages;
#else
  const device T* head;
#endif
  const device T* block;
  threadgroup T* scratch;
  long stride;
  int first;  // the current block's first row
  int valid;  // rows of the block that exist and are wanted, at most BT
  bool edge;  // not every row of the other factor sees the block whole
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }

#if SCATTERED
  METAL_FUNC void view(thread const ScatteredView& view, int b, int h) thread {
    pages.open(view, b, h);
    stride = pages.stride;
  }

  METAL_FUNC void start(int) thread {}

  METAL_FUNC void pass() thread {}

  // To the block that begins at `row`, and lies in one page unless it is at an edge
  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    first = row;
    block = pages.row(row);
    valid = edge ? min(BT, end - row) : BT;
  }
#else
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h);
    stride = view.row_stride<T>();
  }

  // To the block that begins at `row`; `end`: the last row that is wanted, plus one. Not `edge`: it is whole, and
  // follows the last one, or is the one given to `start`.
  METAL_FUNC void start(int row) thread { block = head + (row - BT) * stride; }

  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    first = row;
    block = edge ? head + row * stride : block + BT * stride;
    valid = edge ? min(BT, end - row) : BT;
  }

  // Over a block that is not visited
  METAL_FUNC void pass() thread { block = block + BT * stride; }
#endif

  // Offsets in a whole block have 32 bits. Rows that lie too far apart for that belong to no whole block.
  METAL_FUNC bool far() const thread { return stride > INT_MAX / BT || stride < -(INT_MAX / BT); }

  METAL_FUNC const device T* rows_on(const device T* at, int rows) const thread {
    return edge ? at + rows * stride : at + rows * int(stride);
  }

  // Nothing to hand back where products are synchronous
  METAL_FUNC void release() thread {}

#if USES_THREADGROUP
  // Elements of a row, at (row, column) from (row0, column0), which is the same for all lanes
  METAL_FUNC Run<T, RUN> run(int row0, int column0, int row, int column) const thread {
#if HAS_PIECES
    if (edge) return *(const device Run<T, RUN>*)(pages.row(first + row0 + row) + (column0 + column));
#elif HAS_PAGES
    if (edge) return *(const device Run<T, RUN>*)(block + ((row0 + row) * stride + (column0 + column)));
#else
    // Products with the block's own row: of the other terms each would be kept in registers, also by the other loop.
    if (edge) return *(const device Run<T, RUN>*)(head + ((first + row0 + row) * stride + (column0 + column)));
#endif
    const device T* corner = block + (row0 * int(stride) + column0);
    return *(const device Run<T, RUN>*)(corner + (row * int(stride) + column));
  }

  METAL_FUNC const threadgroup T* source(int) const thread { return scratch; }
  METAL_FUNC const threadgroup T* next(const threadgroup T* source) const thread { return source; }

  // Fragments (t, d), (t, d + 1), .. of columns [column, column + H), as they lie in memory
  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(const threadgroup T*, int t, int, int d, bool = true) const thread {
    return from_threadgroup<BT, H>(scratch, BH, t, d, lane);
  }

  // Fragments (d, t), (d, t + 1), .. of the block with rows and columns exchanged
  template <int H> METAL_FUNC Run<Pair<T>, WIDE_ROWS> transposed_group(int t, int d) const thread {
    return from_threadgroup_transposed<BT, H>(scratch, t, d, lane);
  }
#else
  // Where `row` of the block begins; at edges from the head on, as in `run` above
#if HAS_PIECES
  METAL_FUNC const device T* source(int row) const thread {
    return edge ? pages.row(first + row) : block + row * int(stride);
  }
#elif HAS_PAGES
  METAL_FUNC const device T* source(int row) const thread { return rows_on(block, row); }
#else
  METAL_FUNC const device T* source(int row) const thread {
    return edge ? head + (first + row) * stride : block + row * int(stride);
  }
#endif

  // The same 8 rows on. Taken step by step: addresses that did not change from block to block would each be kept in
  // registers.
  METAL_FUNC const device T* next(const device T* source) const thread { return rows_on(source, 8); }

  // Fragments (t, d), (t, d + 1), .. of columns [column, column + H), as they lie in memory. at: source of this lane's
  // row, which is read as zeros if it does not exist
  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(const device T* at, int t, int column, int d, bool exists = true) const thread {
    if (!exists) return {};
    return pairs<T, WIDE>(at + (column + fixed_column(d) + lane_column(H, d, lane.column)), min(WIDE, H / 8 - d));
  }

  // N fragments (d, t), (d + 1, t), .. of a block that is read directly; first, second: the sources of this lane's
  // two rows, of which `existing` exist
  template <int N>
  METAL_FUNC Run<Pair<T>, N> deep_group(
      const device T* first, const device T* second, int column, int existing) const thread {
    Run<T, N> upper = {}, lower = {};
    if (existing > 0) upper = *(const device Run<T, N>*)(first + (column + lane.row * N));
    if (existing > 1) lower = *(const device Run<T, N>*)(second + (column + lane.row * N));
    Run<Pair<T>, N> found;
#pragma clang loop unroll(full)
    for (int j = 0; j < N; j++) found.at[j] = Pair<T>(upper.at[j], lower.at[j]);
    return found;
  }
#endif
};
#endif

// Apple GPUs have no producer warps: every simdgroup loads and multiplies.
template <typename A, typename B> METAL_FUNC bool produce(thread A&, thread B&, int, int) { return false; }

// A float32 result of R rows x D columns. CACHED: in registers until `store`. Otherwise paged, the deliberate
// register spill: it lives in its own float32 output buffer and visits registers BH columns at a time, once per block
// of the traversal. Every element is read and written by one lane only, so no barrier is needed.
template <int R, int D, int BH, bool CACHED> struct Accumulator {
#if CACHES
  Pair<float> cached[R / 8][CACHED ? D / 8 : 1];
#endif
#if PAGES
  device float* page;
#endif
  int offset[R / 8], column;
  int rows;  // rows of this simdgroup that exist

  template <typename Out> METAL_FUNC void open(device Out* head, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    for (int i = 0; i < R / 8; i++) offset[i] = (i * 8 + lane.row) * D;
    column = lane.column;
#if PAGES
    if constexpr (!CACHED) page = (device float*)head + long(first) * D;
#endif
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) set(i, d, Pair<float>(0));
    }
  }

  // Where fragment d lies in a row; no group of fragments lies in two head blocks.
  METAL_FUNC int at(int d) const thread {
    const int first = d * 8 / BH * BH, f = d - first / 8;
    return first + fixed_column(f) + lane_column(min(BH, D - first), f, column);
  }

  METAL_FUNC Pair<float> get(int i, int d) const thread {
#if CACHES
    if constexpr (CACHED) return cached[i][d];
#endif
#if PAGES
    if (i * 8 >= rows) return Pair<float>(0);
    return *(const device Pair<float>*)(page + (offset[i] + at(d)));
#endif
  }

  METAL_FUNC void set(int i, int d, Pair<float> value) thread {
#if CACHES
    if constexpr (CACHED) cached[i][d] = value;
#endif
#if PAGES
    if (!CACHED && i * 8 < rows) *(device Pair<float>*)(page + (offset[i] + at(d))) = value;
#endif
  }

  // result = factor * result + sum, where `sum` starts from begin(). In float32 the summation is blocked, so that the
  // error grows with the number of traversed blocks and not with the number of keys.
#if BLOCKED_SUM
  METAL_FUNC Pair<float> begin(int, int, float) const thread { return Pair<float>(0); }
  METAL_FUNC void end(int i, int d, float factor, Pair<float> sum) thread { set(i, d, get(i, d) * factor + sum); }
#else
  METAL_FUNC Pair<float> begin(int i, int d, float factor) const thread { return get(i, d) * factor; }
  METAL_FUNC void end(int i, int d, float, Pair<float> sum) thread { set(i, d, sum); }
#endif

  // Out[first + row, :] = factor * result
  template <typename Out>
  METAL_FUNC void store(device Out* head, int first, RowVector<R> factor) const thread {
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 >= rows) continue;
      device Out* out = head + long(first) * D + offset[i];
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) {
        const Pair<float> value = get(i, d) * factor.at[i];
        Run<Out, 2> run = {Out(value[0]), Out(value[1])};
        *(device Run<Out, 2>*)(out + at(d)) = run;
      }
    }
  }
};

}  // namespace tile
}  // namespace flash
