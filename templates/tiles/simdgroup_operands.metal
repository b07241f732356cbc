// Operands of the 8x8 simdgroup matrices, and how they are loaded into registers.
namespace flash {
namespace tile {

// The threadgroup memory of the operands: one block, which the traversed operands use in turn.
template <typename T> struct Memory {
  threadgroup T* scratch;
};

// An operand of which this simdgroup owns rows. Rows past the end repeat the last one: their results are never stored,
// and no address outside the operand is formed.
//
// S = A B^T may sum over the columns in any order; fragments hold them in the order of summed_column.
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

#if USES_THREADGROUP && DEEP == 1
  METAL_FUNC Pair<T> fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    return read_pair(row[i] + d * 8);
  }

  template <int H, int M> METAL_FUNC void read(int i, int begin, thread Pair<T> (&found)[M]) const thread {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) found[d] = read_pair(row[i] + (begin + d * 8));
  }
#else
#if USES_THREADGROUP
  // Quantized and latent blocks are copied to threadgroup memory on every family; Rows keeps the family's own order.
  METAL_FUNC Pair<T> fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    if constexpr (DEEP == 1) return read_pair(row[i] + d * 8);
    return Pair<T>(row[i][summed_column(D, d, column)], row[i][summed_column(D, d, column + 1)]);
  }

#endif
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
#endif
};

#if USES_THREADGROUP
// Fragments f, f + 1, .. of a group, adjacent in memory from `source` on: `count` of them, as `place` groups them
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
// `count` adjacent pairs in device memory, at most MOST, by one read if its alignment permits
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

// Fragments (d, t), (d, t + 1), .. of a block of BT rows and H columns that is stored there transposed
template <int BT, int H, typename T>
METAL_FUNC Run<Pair<T>, WIDE_ROWS> from_threadgroup_transposed(const threadgroup T* scratch, int t, int d, Lane lane) {
  const threadgroup T* own = scratch + (summed_column(H, d, lane.row) * BT + lane_place(BT, t, lane.column));
  return side_by_side<WIDE_ROWS>(own + fixed_place(t), min(WIDE_ROWS, BT / 8 - t));
}

// Waits for all threads that copy the same block: the threadgroup, or one simdgroup where simdgroups split the keys.
METAL_FUNC void block_barrier() {
#if SPLITS_KEYS
  simdgroup_barrier(mem_flags::mem_threadgroup);
#else
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
}

// The first run of N elements that a thread copies of a block of H columns. RUNS runs make a row and SLOTS threads
// serve it, so that a thread stays in its column from pass to pass.
template <int H, int N> struct Share {
  static constant constexpr const int RUNS = H / N;
  static constant constexpr const int SLOTS =
      RUNS <= 1 ? 1 : RUNS <= 2 ? 2 : RUNS <= 4 ? 4 : RUNS <= 8 ? 8 : RUNS <= 16 ? 16 : 32;
  int row, column;

  static METAL_FUNC Share of(Lane lane) {
    return {int(lane.thread_index / uint(SLOTS)), int(lane.thread_index % uint(SLOTS)) * N};
  }
};

// Copies columns [column, column + H) of a block of BT rows to threadgroup memory, with zeros where there is no row;
// TRANSPOSED: as H rows of BT. Where a block is copied in both ways, one of them begins at its end: otherwise the
// compiler would keep the addresses that both share in registers in between.
template <int BT, int H, bool TRANSPOSED, typename B>
METAL_FUNC void load_to_threadgroup(thread const B& b, int column) {
  using T = typename B::Element;
  constexpr int N = B::RUN, SLOTS = Share<H, N>::SLOTS, RUNS = H / N;
  constexpr int STEP = B::COPYING_THREADS / SLOTS, PASSES = (BT + STEP - 1) / STEP;
  static_assert(RUNS <= SLOTS && B::COPYING_THREADS % SLOTS == 0, "columns stay");
  const Share<H, N> share = Share<H, N>::of(b.lane);
  const int row0 = share.row, c = share.column;
  auto at = b.rows_on(b.template share<H>(column), TRANSPOSED ? (PASSES - 1) * STEP : 0);
  block_barrier();
#if SPLITS_KEYS
#pragma clang loop unroll_count(4)
#else
#pragma clang loop unroll_count(8)
#endif
  for (int pass = 0; pass < PASSES; pass++, at = b.rows_on(at, TRANSPOSED ? -STEP : STEP)) {
    const int n = TRANSPOSED ? PASSES - 1 - pass : pass;
    if ((RUNS < SLOTS && c >= H) || (BT % STEP != 0 && row0 + n * STEP >= BT)) continue;
    Run<T, N> values = {};
#if TRIMS
    if (b.filled == BT || n * STEP < b.filled - row0) values = b.run(at);
#else
    if (b.valid == BT || n * STEP < b.valid - row0) values = b.run(at);
#endif
    if constexpr (TRANSPOSED) {
#pragma clang loop unroll(full)
      for (int e = 0; e < N; e++) (b.scratch + (c * BT + row0))[e * BT + n * STEP] = values.at[e];
    } else {
      *(threadgroup Run<T, N>*)(b.scratch + (row0 * B::HEAD_BLOCK + c) + n * STEP * B::HEAD_BLOCK) = values;
    }
  }
  block_barrier();
}

#endif

#if HAS_PIECES
// A place in a block whose rows may lie in two pieces
struct PlaceInPieces {
  int row, column;
};

METAL_FUNC PlaceInPieces operator+(PlaceInPieces at, int columns) { return {at.row, at.column + columns}; }
#endif

#if !QUANTIZED
// An operand that all simdgroups traverse in blocks of BT rows. USES_THREADGROUP: each BT x BH block is copied to
// threadgroup memory first (M1, M2); otherwise lanes read device memory directly (M3 and later, from a large L1).
// Rows from `valid` on read as zero; where `valid` is known to be BT, that takes no code.
template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 16 / sizeof(T), COPYING_THREADS = THREADS;
#if SCATTERED
  Scattered<T> pages;
#else
  const device T* head;
#endif
#if HAS_PIECES
  using Place = PlaceInPieces;
  const device T* block;
  int first;  // the block's first row
#else
  using Place = const device T*;
#endif
  // This lane's places in the current block: its first run to copy; or, where lanes read directly, its element of the
  // first fragment along the columns, and along the rows with rows and columns exchanged.
#if USES_THREADGROUP
  Place copied;
#else
  Place across, down;
#endif
  threadgroup T* scratch;
  long stride;
  int valid;  // rows of the block to use, at most BT
#if TRIMS
  int filled;  // rows that all simdgroups together use, and copy

  // Uses no more than `rows` rows in products
  METAL_FUNC void trim(int rows) thread {
    filled = valid;
    if (edge) valid = min(valid, rows);
  }
#endif
  bool edge;  // the block may be partly hidden, or end early
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }

  METAL_FUNC void go_to(const device T* begin) thread {
#if HAS_PIECES
    block = begin;
    const Place corner = {0, 0};
#else
    const Place corner = begin;
#endif
#if USES_THREADGROUP
    const Share<BH, RUN> share = Share<BH, RUN>::of(lane);
    copied = rows_on(corner, share.row) + share.column;
#else
    across = rows_on(corner, lane.row) + lane_column(8 * WIDE, 0, lane.column);
    down = rows_on(corner, lane.column) + lane.row * DEEP;
#endif
  }

#if SCATTERED
  METAL_FUNC void view(thread const ScatteredView& view, int b, int h) thread {
    pages.open(view, b, h);
    stride = pages.stride;
  }

#if HAS_PIECES
  METAL_FUNC void next_head(thread const ScatteredView& view) thread { pages.next_head(view); }
#endif

  METAL_FUNC void start(int) thread {}

  METAL_FUNC void pass() thread {}

  // Moves to the block that begins at `row`, which lies in one page unless it is an edge
  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
#if HAS_PIECES
    first = row;
#endif
    go_to(pages.row(row));
    valid = edge ? min(BT, end - row) : BT;
  }
#else
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h);
    stride = view.row_stride<T>();
  }

  METAL_FUNC void next_head(thread const View& view) thread { head = view.next<T>(head); }

  // Prepares for the block that begins at `row`
  METAL_FUNC void start(int row) thread { go_to(head + (row - BT) * stride); }

  // Skips a block
  METAL_FUNC void pass() thread {
#if USES_THREADGROUP
    copied = rows_on(copied, BT);
#else
    across = rows_on(across, BT);
    down = rows_on(down, BT);
#endif
  }

  // Moves to the next block, which begins at `row`. `end`: behind the last row to use. Without `edge`, it has BT rows.
  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    pass();
    valid = edge ? min(BT, end - row) : BT;
  }
#endif

  METAL_FUNC bool far() const thread { return false; }  // strides of 64 bits allow any distance between rows

  // The same place `rows` rows later, reached step by step: addresses that are constant from block to block would each
  // be kept in a register.
#if HAS_PIECES
  METAL_FUNC Place rows_on(Place at, int rows) const thread { return {at.row + rows, at.column}; }
  METAL_FUNC const device T* pointer(Place at) const thread {
    return (edge ? pages.row(first + at.row) : block + at.row * stride) + at.column;
  }
#else
  METAL_FUNC Place rows_on(Place at, int rows) const thread { return at + rows * stride; }
  METAL_FUNC const device T* pointer(Place at) const thread { return at; }
#endif

  // Synchronous products have no pipeline stage to release
  METAL_FUNC void release() thread {}

#if USES_THREADGROUP
  // The first run that this lane copies of columns [column, column + H)
  template <int H> METAL_FUNC Place share(int column) const thread {
    if constexpr (H == BH) return copied + column;
    const Share<BH, RUN> all = Share<BH, RUN>::of(lane);
    const Share<H, RUN> own = Share<H, RUN>::of(lane);
    return rows_on(copied, own.row - all.row) + (column + own.column - all.column);
  }

  METAL_FUNC Run<T, RUN> run(Place at) const thread { return *(const device Run<T, RUN>*)pointer(at); }

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
  // Row `row` of the block, at this lane's columns of a whole group of fragments
  METAL_FUNC Place source(int row) const thread { return rows_on(across, row - lane.row); }

  METAL_FUNC Place next(Place source) const thread { return rows_on(source, 8); }

  // Fragments (t, d), (t, d + 1), .. of columns [column, column + H), as they lie in memory. at: source of this lane's
  // row, which is read as zeros if it does not exist
  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(Place at, int t, int column, int d, bool exists = true) const thread {
    if (!exists) return {};
    const int narrower = lane_column(H, d, lane.column) - lane_column(8 * WIDE, 0, lane.column);
    return pairs<T, WIDE>(pointer(at + (column + fixed_column(d) + narrower)), min(WIDE, H / 8 - d));
  }

  // N fragments (d, t), (d + 1, t), .. of a block that is read directly; first_row, second_row: the places of this
  // lane's two rows, of which `existing` exist
  template <int N>
  METAL_FUNC Run<Pair<T>, N> deep_group(
      Place first_row, Place second_row, int column, int existing) const thread {
    Run<T, N> upper = {}, lower = {};
    const int narrower = lane.row * (N - DEEP);
    if (existing > 0) upper = *(const device Run<T, N>*)pointer(first_row + (column + narrower));
    if (existing > 1) lower = *(const device Run<T, N>*)pointer(second_row + (column + narrower));
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
METAL_FUNC void await_rows(Lane) {}

}  // namespace tile
}  // namespace flash
