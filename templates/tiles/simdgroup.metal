// The tile layer for Apple's 8x8 simdgroup matrices: the only file that knows how a tile is spread over lanes.
//
// The operations the kernels speak in, the same for any other matrix hardware:
//
//   Lane                     which (row, column) of every fragment this lane holds
//   Rows<...>                an operand whose rows belong to this simdgroup: cached in registers, or re-read per block
//   Traversed<...>           an operand that every simdgroup walks along: through threadgroup memory, or read directly
//   Accumulator<...>         a float32 result of R x D: cached in registers, or paged to its output buffer
//   multiply_abt             S = A B^T
//   begin_abt, finish_abt<N> the same, asynchronously: issued early, waited for when needed, with N products issued
//                            since; on this hardware finish_abt does the whole product
//   multiply_ab              C = factor * C + P B
//   row_max, row_sum, column_sum, store_sums   reductions
//
// Hardware facts: a lane's place in a fragment follows Morton order (MLX steel and metal-flash-attention agree).
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>

namespace tile {

constant constexpr int MMA_ROWS = $MMA_ROWS;  // rows of one matrix instruction: 1, a simdgroup works alone
constant constexpr bool SPLIT = true;         // whole blocks have a copy of the loop that has no code for edges
// Fragments that one read of 16 bytes serves, 1 where each is read by itself: along the columns of a block's rows, along
// the rows of a block that lies transposed in threadgroup memory, and along the columns that S = A B^T sums over.
constant constexpr int WIDE = $WIDE, WIDE_ROWS = $WIDE_ROWS, DEEP = $DEEP;

// A product does not ask which columns of memory its fragments hold, as long as both factors agree. So neighbouring
// fragments hold neighbouring pairs: the four lanes of a row own a quarter of the group's columns each, and read it at
// once. A last group of fewer fragments is narrower. The part that is the same for all lanes is kept apart from the
// lane's own, since constants cost a lane no register.
template <int GROUP> METAL_FUNC int fixed_part(int f) { return f / GROUP * GROUP * 8 + f % GROUP * 2; }

template <int GROUP> METAL_FUNC int lane_part(int columns, int f, int k) {
  const int fragments = min(GROUP, columns / 8 - f / GROUP * GROUP);
  return (k & ~1) * fragments + (k & 1);
}

// Column k (0..7) of fragment f of S, of `rows` traversed rows together: row fixed_place + lane_place of the block.
METAL_FUNC int fixed_place(int f) { return fixed_part<WIDE_ROWS>(f); }
METAL_FUNC int lane_place(int rows, int f, int k) { return lane_part<WIDE_ROWS>(rows, f, k); }

// The same for columns of a head block: of the traversed operand in C = P B, and of C.
METAL_FUNC int fixed_column(int f) { return fixed_part<WIDE>(f); }
METAL_FUNC int lane_column(int columns, int f, int k) { return lane_part<WIDE>(columns, f, k); }

struct Lane {
  int row, column;  // of the pair (row, column), (row, column + 1) inside every fragment
  uint thread_index, simdgroup;
  static METAL_FUNC Lane of(uint thread_index) {
    const int lane = thread_index % 32;
    const int row = ((lane >> 2) & 4) + ((lane >> 1) & 3), column = ((lane >> 2) & 2) * 2 + (lane & 1) * 2;
    return {row, column, thread_index, thread_index / 32};
  }
  METAL_FUNC bool produces() const thread { return false; }

  // The lane of the same row that holds column k
  METAL_FUNC ushort holder(int k) const thread { return (thread_index % 32 & ~9u) | (k >> 1 & 1) | (k >> 2 & 1) << 3; }
};

template <typename To, typename From, int R, int C>
METAL_FUNC void narrow(thread Tile<To, R, C>& to, thread const Tile<From, R, C>& from) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) to.at[i][c] = Pair<To>(from.at[i][c]);
  }
}

// A row of a fragment lives in the lanes l, l^1, l^8, l^9.
METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(8)));
}

METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}

// A column of a fragment lives in the lanes l, l^2, l^4, l^16.
METAL_FUNC float column_sum(float x) {
  x += simd_shuffle_xor(x, ushort(2));
  x += simd_shuffle_xor(x, ushort(4));
  return x + simd_shuffle_xor(x, ushort(16));
}

// Writes a tile to row-major memory that has `rows` x `columns` left, its rows and its columns summed if asked
template <int R, int C>
METAL_FUNC void store_sums(
    device float* out, int stride, int rows, int columns, bool sum_rows, bool sum_columns,
    thread const Tile<float, R, C>& tile, Lane lane) {
  Tile<float, R, C> sums = tile;
  if (sum_columns) {
    for (int i = 0; i < R / 8; i++) {
      float sum = 0;
      for (int c = 0; c < C / 8; c++) sum += sums.at[i][c][0] + sums.at[i][c][1];
      sums.at[i][0][0] = row_sum(sum);
    }
  }
  if (sum_rows) {
    for (int c = 0; c < (sum_columns ? 1 : C / 8); c++) {
      for (int e = 0; e < 2; e++) {
        float sum = 0;
        for (int i = 0; i < R / 8; i++) sum += sums.at[i][c][e];
        sums.at[0][c][e] = column_sum(sum);
      }
    }
  }
  for (int i = 0; i < R / 8; i++) {
    for (int c = 0; c < C / 8; c++) {
      for (int e = 0; e < 2; e++) {
        const int row = i * 8 + lane.row, column = fixed_place(c) + lane_place(C, c, lane.column) + e;
        if (row < rows && column < columns) out[long(row) * stride + column] = sums.at[i][c][e];
      }
    }
  }
}

// One fragment of columns of a tile, where registers have no index
template <typename T, int R, int C>
METAL_FUNC void pick(thread Pair<T> (&found)[R / 8], thread const Tile<T, R, C>& tile, int c) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int n = 0; n < C / 8; n++) found[i] = n == 0 || n == c ? tile.at[i][n] : found[i];
  }
}

template <typename T, int R, int C>
METAL_FUNC void put(thread Tile<T, R, C>& tile, thread Pair<T> const (&fragment)[R / 8], int c) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int n = 0; n < C / 8; n++) tile.at[i][n] = n == c ? fragment[i] : tile.at[i][n];
  }
}

// C += A B for one 8x8 fragment of each
template <typename A, typename B>
METAL_FUNC void multiply(thread Pair<float>& c, Pair<A> a, Pair<B> b) {
  simdgroup_matrix<A, 8, 8> a_matrix;
  simdgroup_matrix<B, 8, 8> b_matrix;
  simdgroup_matrix<float, 8, 8> c_matrix;
  reinterpret_cast<thread Pair<A>&>(a_matrix.thread_elements()) = a;
  reinterpret_cast<thread Pair<B>&>(b_matrix.thread_elements()) = b;
  reinterpret_cast<thread Pair<float>&>(c_matrix.thread_elements()) = c;
  simdgroup_multiply_accumulate(c_matrix, a_matrix, b_matrix, c_matrix);
  c = reinterpret_cast<thread Pair<float>&>(c_matrix.thread_elements());
}

// The threadgroup memory of the operands: one block, which the traversed operands use in turn.
template <typename T> struct Memory {
  threadgroup T* scratch;
};

// An operand whose rows belong to this simdgroup. Rows past the end repeat the last one: their results are never
// stored, and no address outside the operand is ever formed.
//
// S = A B^T sums over its columns in any order. Where B is read directly, index k of fragment f is column n k + f % DEEP
// of a group of n = DEEP fragments, so that a lane's part of a row of B, one index of each, is a run of memory.
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  const device T* block;
  int offset[R / 8], column;
  Pair<T> cached[R / 8][CACHED ? D / 8 : 1];

  // head: element (0, 0) of this head; stride: elements between rows; first: this simdgroup's first row
  METAL_FUNC void open(
      const device T* head, long stride, int first, int rows, thread Memory<T>&, Lane lane) thread {
    const int base = min(first, rows - 1);
    block = head + base * stride;
    column = lane.column;
    for (int i = 0; i < R / 8; i++) {
      offset[i] = (min(first + i * 8 + lane.row, rows - 1) - base) * int(stride);
      if constexpr (CACHED) read<D>(i, 0, cached[i]);
    }
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
    for (int d = 0; d < FULL; d += DEEP) group<DEEP>(block + (offset[i] + begin), d, found);
    if constexpr (REST > 0) group<REST>(block + (offset[i] + begin), FULL, found);
  }

  template <int N, int M> METAL_FUNC void group(const device T* row, int d, thread Pair<T> (&found)[M]) const thread {
    const Run<T, 2 * N> run = *(const device Run<T, 2 * N>*)(row + (d * 8 + column * N));
#pragma clang loop unroll(full)
    for (int j = 0; j < N; j++) found[d + j] = Pair<T>(run.at[j], run.at[N + j]);
  }
};

// Fragments f, f + 1, .. of a group, side by side from `source` on: `count` of them, as many as `place` puts there
template <typename T> METAL_FUNC Run<Pair<T>, WIDE> side_by_side(const threadgroup T* source, int count) {
  Run<Pair<T>, WIDE> group = {};
  if (count == WIDE) {
    group = *(const threadgroup Run<Pair<T>, WIDE>*)source;
  } else {
#pragma clang loop unroll(full)
    for (int j = 0; j < count; j++) group.at[j] = *(const threadgroup Pair<T>*)(source + j * 2);
  }
  return group;
}

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

// A block of ROWS x COLUMNS in threadgroup memory, by fragments (r, c), (r, c + 1), .. of a group. CONTRACTED: rows are
// what a product sums over, numbered as columns of its other factor are.
template <bool CONTRACTED, int ROWS, int COLUMNS, typename T>
METAL_FUNC Run<Pair<T>, WIDE> staged_group(const threadgroup T* scratch, int pitch, int r, int c, Lane lane) {
  const int fixed_row = CONTRACTED ? fixed_place(r) : r * 8;
  const int lane_row = CONTRACTED ? lane_place(ROWS, r, lane.row) : lane.row;
  const threadgroup T* own = scratch + (lane_row * pitch + lane_column(COLUMNS, c, lane.column));
  return side_by_side(own + (fixed_row * pitch + fixed_column(c)), min(WIDE, COLUMNS / 8 - c));
}

// Columns [column, column + H) of a block of BT rows to threadgroup memory, zeros where there is no row; TRANSPOSED:
// as H rows of BT. A thread's column does not change from pass to pass.
template <int BT, int H, bool TRANSPOSED, typename B> METAL_FUNC void stage(thread const B& b, int column) {
  if constexpr (!B::COPIED) return;
  using T = typename B::Element;
  constexpr int N = B::RUN, RUNS = H / N;
  constexpr int SLOTS = RUNS <= 1 ? 1 : RUNS <= 2 ? 2 : RUNS <= 4 ? 4 : RUNS <= 8 ? 8 : RUNS <= 16 ? 16 : 32;
  constexpr int STEP = B::COPIERS / SLOTS, PASSES = (BT + STEP - 1) / STEP;
  static_assert(RUNS <= SLOTS && B::COPIERS % SLOTS == 0, "a thread stays in its columns");
  const int row0 = b.lane.thread_index / uint(SLOTS), c = b.lane.thread_index % uint(SLOTS) * N;
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll_count(8)
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
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// An operand that all simdgroups walk along in blocks of BT rows. USES_THREADGROUP: each BT x BH block is copied to
// threadgroup memory first (M1, M2); otherwise lanes read the device directly (M3 and later, whose L1 serves it).
// Rows at or past `valid` read as zero. Where it is known to be BT, the code has no trace of that.
template <typename T, int BT, int D, int BH, int THREADS, bool USES_THREADGROUP> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 16 / sizeof(T), COPIERS = THREADS;
  static constant constexpr const bool COPIED = USES_THREADGROUP;
  const device T* head;
  const device T* block;
  threadgroup T* scratch;
  int stride;
  int valid;  // rows of the current block that exist and are wanted, at most BT
  bool edge;  // not every row of the other factor sees the block whole
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }

  METAL_FUNC void view(const device T* head_, long stride_) thread {
    head = head_;
    stride = int(stride_);
  }

  // To the block that begins at `row`; `end`: the last row that is wanted, plus one. Not `edge`: it is whole, and
  // follows the last one, or is the one given to `start`.
  METAL_FUNC void start(int row) thread { block = head + (row - BT) * long(stride); }

  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    block = edge ? head + row * long(stride) : block + BT * long(stride);
    valid = edge ? min(BT, end - row) : BT;
  }

  // Nothing to hand back where products are synchronous
  METAL_FUNC void release() thread {}

  // Elements of a row, at (row, column) from (row0, column0), which is the same for all lanes
  METAL_FUNC Run<T, RUN> run(int row0, int column0, int row, int column) const thread {
    const device T* corner = block + (row0 * stride + column0);
    return *(const device Run<T, RUN>*)(corner + (row * stride + column));
  }

  // Where this lane reads `row` of the block, or the last one that exists: what lies past the end counts for nothing.
  METAL_FUNC const device T* source(int row) const thread { return block + min(row, valid - 1) * stride; }

  // The same 8 rows on. Taken step by step: addresses that did not change from block to block would each be kept in
  // registers.
  METAL_FUNC const device T* next(const device T* source) const thread { return source + 8 * stride; }

  // Fragments (t, d), (t, d + 1), .. of columns [column, column + H), as they lie in memory. at: source(row of this lane)
  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(const device T* at, int t, int column, int d) const thread {
    if constexpr (USES_THREADGROUP) {
      return staged_group<true, BT, H>(scratch, BH, t, d, lane);
    } else {
      return pairs<T, WIDE>(at + (column + fixed_column(d) + lane_column(H, d, lane.column)), min(WIDE, H / 8 - d));
    }
  }

  // Fragments (d, t), (d, t + 1), .. of the staged block with rows and columns exchanged
  template <int H> METAL_FUNC Run<Pair<T>, WIDE> transposed_group(int t, int d) const thread {
    return staged_group<false, H, BT>(scratch, BT, d, t, lane);
  }

  // N fragments (d, t), (d + 1, t), .. of a block that is read directly; first, second: sources of this lane's columns
  template <int N>
  METAL_FUNC Run<Pair<T>, N> deep_group(const device T* first, const device T* second, int column) const thread {
    const Run<T, N> upper = *(const device Run<T, N>*)(first + (column + lane.row * N));
    const Run<T, N> lower = *(const device Run<T, N>*)(second + (column + lane.row * N));
    Run<Pair<T>, N> found;
#pragma clang loop unroll(full)
    for (int j = 0; j < N; j++) found.at[j] = Pair<T>(upper.at[j], lower.at[j]);
    return found;
  }
};

// Apple GPUs have no producer warps: every simdgroup loads and multiplies.
template <typename A, typename B> METAL_FUNC bool produce(thread A&, thread B&, int, int) { return false; }

// A float32 result of R rows x D columns. CACHED: in registers until `store`. Otherwise paged, the deliberate
// register spill: it lives in its own float32 output buffer and visits registers BH columns at a time, once per block
// of the traversal. Every element is read and written by one lane only, so no barrier is needed.
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  Pair<float> cached[R / 8][CACHED ? D / 8 : 1];
  device float* page;
  int offset[R / 8], column;
  int rows;  // rows of this simdgroup that exist

  template <typename Out> METAL_FUNC void open(device Out* head, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    for (int i = 0; i < R / 8; i++) offset[i] = (i * 8 + lane.row) * D;
    column = lane.column;
    if constexpr (!CACHED) page = (device float*)head + long(first) * D;
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
    if constexpr (CACHED) return cached[i][d];
    if (i * 8 >= rows) return Pair<float>(0);
    return *(const device Pair<float>*)(page + (offset[i] + at(d)));
  }

  METAL_FUNC void set(int i, int d, Pair<float> value) thread {
    if constexpr (CACHED) {
      cached[i][d] = value;
    } else if (i * 8 < rows) {
      *(device Pair<float>*)(page + (offset[i] + at(d))) = value;
    }
  }

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

// Staged transposed, a run of a row serves WIDE_ROWS fragments of S.
template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void staged_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  stage<BT, H, true>(b, column);
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d++) {
    Pair<T> rows[R / 8][1];
    for (int i = 0; i < R / 8; i++) a.template fragments<8>(i, column + d * 8, rows[i]);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t += WIDE) {
      if (b.valid < BT && t * 8 >= b.valid) continue;
      const Run<Pair<T>, WIDE> group = b.template transposed_group<H>(t, d);
#pragma clang loop unroll(full)
      for (int j = 0; j < min(WIDE, BT / 8 - t); j++) {
        if (b.valid < BT && fixed_place(t + j) >= b.valid) continue;
        for (int i = 0; i < R / 8; i++) multiply(s.at[i][t + j], rows[i][0], group.at[j]);
      }
    }
  }
}

// One fragment of columns of S, from the memory at `first` and `second` on: a lane's run serves DEEP fragments of the sum.
template <int H, int R, typename T, typename B>
METAL_FUNC void direct_fragment(
    thread Pair<float> (&s)[R / 8], thread Pair<T> const (&rows)[R / 8][H / 8], thread const B& b,
    const device T* first, const device T* second, int column) {
  constexpr int FULL = H / 8 / DEEP * DEEP, REST = H / 8 - FULL;
#pragma clang loop unroll(full)
  for (int d = 0; d < FULL; d += DEEP) {
    const Run<Pair<T>, DEEP> group = b.template deep_group<DEEP>(first, second, column + d * 8);
#pragma clang loop unroll(full)
    for (int j = 0; j < DEEP; j++) {
      for (int i = 0; i < R / 8; i++) multiply(s[i], rows[i][d + j], group.at[j]);
    }
  }
  if constexpr (REST > 0) {
    const Run<Pair<T>, REST> group = b.template deep_group<REST>(first, second, column + FULL * 8);
#pragma clang loop unroll(full)
    for (int j = 0; j < REST; j++) {
      for (int i = 0; i < R / 8; i++) multiply(s[i], rows[i][FULL + j], group.at[j]);
    }
  }
}

template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void direct_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  Pair<T> rows[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) a.template fragments<H>(i, column, rows[i]);
  const device T* at = b.source(b.lane.column);
  Pair<float> sum[R / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++, at = b.next(at)) {
    if (b.valid < BT && t * 8 + 8 > b.valid) continue;
    for (int i = 0; i < R / 8; i++) sum[i] = s.at[i][t];
    direct_fragment<H, R>(sum, rows, b, at, at + b.stride, column);
    for (int i = 0; i < R / 8; i++) s.at[i][t] = sum[i];
  }
  if (b.valid % 8 == 0) return;
  // The fragment that the end lies in, by itself: only here must addresses be kept inside.
  const int last = b.valid / 8, first = last * 8 + b.lane.column;
  pick(sum, s, last);
  direct_fragment<H, R>(sum, rows, b, b.source(first), b.source(first + 1), column);
  put(s, sum, last);
}

// S += A[:, column : column + H] B[:, column : column + H]^T, one head block
template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void head_block_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  if constexpr (B::COPIED) {
    staged_abt<H>(s, a, b, column);
  } else {
    direct_abt<H>(s, a, b, column);
  }
}

// S = A B^T. Where A sits in registers, which have no index, the loop over head blocks unrolls. Where it does not,
// unrolling would only hoist the re-reads back into registers.
template <typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b) {
  constexpr int BH = B::HEAD_BLOCK, FULL = D / BH * BH, REST = D - FULL;
  clear(s);
  if constexpr (CACHED) {
#pragma clang loop unroll(full)
    for (int column = 0; column < FULL; column += BH) head_block_abt<BH>(s, a, b, column);
  } else {
#pragma clang loop unroll(disable)
    for (int column = 0; column < FULL; column += BH) head_block_abt<BH>(s, a, b, column);
  }
  if constexpr (REST > 0) head_block_abt<REST>(s, a, b, FULL);
}

// Bits of a pair whose elements are infinite or NaN: the sign bit of each, since the least step of the exponent, added
// to a magnitude, reaches it there only.
template <typename T> METAL_FUNC auto not_finite(Pair<T> pair) {
  if constexpr (sizeof(T) == 2) {
    const uint step = 0x80008000u - as_type<uint>(Pair<T>(T(INFINITY)));
    return ((as_type<uint>(pair) & 0x7fff7fffu) + step) & 0x80008000u;
  } else {
    return ((as_type<uint2>(pair) & 0x7fffffffu) + 0x800000u) & 0x80000000u;
  }
}

// The pair with 0 in place of what `bad` marks
template <typename T> METAL_FUNC Pair<T> without(Pair<T> pair, uint bad) {
  return as_type<Pair<T>>(as_type<uint>(pair) & ~((bad >> 15) * 0xffffu));
}
template <typename T> METAL_FUNC Pair<T> without(Pair<T> pair, uint2 bad) {
  return select(pair, Pair<T>(0), bad != 0u);
}

METAL_FUNC uint any_of(uint bits) { return bits; }
METAL_FUNC uint any_of(uint2 bits) { return bits.x | bits.y; }

// block += one fragment of columns of P times rows [8 t, 8 t + 8) of B, which this lane reads from `at` on. FINITE:
// infinities and NaN of B count as 0; returns bits if there were any.
template <int H, bool FINITE, typename Narrow, int R, typename P, typename B, typename Source>
METAL_FUNC uint add_fragment(
    thread Pair<float> (&block)[R / 8][H / 8], thread Pair<P> const (&p)[R / 8], thread const B& b, Source at, int t,
    int column) {
  using Element = typename B::Element;
  uint found = 0;
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d += WIDE) {
    const Run<Pair<Element>, WIDE> group = b.template group<H>(at, t, column, d);
#pragma clang loop unroll(full)
    for (int j = 0; j < min(WIDE, H / 8 - d); j++) {
      Pair<Element> fragment = group.at[j];
      if constexpr (FINITE) {
        const auto bad = not_finite(fragment);
        fragment = without(fragment, bad);
        found |= any_of(bad);
      }
      for (int i = 0; i < R / 8; i++) multiply(block[i][d + j], Pair<Narrow>(p[i]), fragment);
    }
  }
  return found;
}

// block += P B[:, column : column + H]. FINITE: as above; returns whether there were any.
template <int H, bool FINITE, typename Narrow, typename P, int R, int BT, typename B>
METAL_FUNC bool add_product(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
  uint found = 0;
  auto at = b.source(b.lane.row);
  Pair<P> rows[R / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++, at = b.next(at)) {
    if (b.valid < BT && (B::COPIED ? fixed_place(t) >= b.valid : t * 8 + 8 > b.valid)) continue;
    for (int i = 0; i < R / 8; i++) rows[i] = p.at[i][t];
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, at, t, column);
  }
  if (!B::COPIED && b.valid % 8 != 0) {  // the fragment that the end lies in, as in direct_abt
    const int last = b.valid / 8;
    pick(rows, p, last);
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, b.source(last * 8 + b.lane.row), last, column);
  }
  return FINITE && simd_any(found != 0);
}

// What `add_product` left out: an infinity or NaN of B reaches the rows whose P is not 0 there. Rare, and so written for
// few registers, not for speed: row by row of B, with the weight of each row of P from the lane that holds it.
template <int H, typename P, int R, int BT, typename B>
METAL_FUNC void add_not_finite(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
#pragma clang loop unroll(disable)
  for (int t = 0; t < BT / 8; t++) {
    Pair<P> weights[R / 8];
    pick(weights, p, t);
#pragma clang loop unroll(disable)
    for (int k = 0; k < 8; k++) {
      B row = b;  // read as if every lane were in row k of its fragment
      row.lane.row = k;
#pragma clang loop unroll(full)
      for (int d = 0; d < H / 8; d += WIDE) {
        const auto group = row.template group<H>(b.source(t * 8 + k), t, column, d);
        for (int i = 0; i < R / 8; i++) {
          const float weight = simd_shuffle(float(weights[i][k % 2]), b.lane.holder(k));
#pragma clang loop unroll(full)
          for (int j = 0; j < min(WIDE, H / 8 - d); j++) {
            const Pair<float> x = Pair<float>(group.at[j]);
            block[i][d + j] += select(Pair<float>(0), x * weight, !isfinite(x) && weight != 0);
          }
        }
      }
    }
  }
}

// C[:, column : column + H] = factor * C[:, ..] + P B[:, ..]. float32 operands sum each block apart, so that rounding
// grows with the number of blocks in the traversal, not with its rows.
template <int H, typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void head_block_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    int column, bool whole) {
  constexpr bool BLOCKED_SUM = sizeof(typename B::Element) == 4;
  stage<BT, H, false>(b, column);
  Pair<float> block[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++)
      block[i][d] = BLOCKED_SUM ? Pair<float>(0) : c.get(i, column / 8 + d) * factor.at[i];
  }
  // Keeps page accesses out of the matmul loop: interleaved they cost M4 a third of its throughput.
  if (!CACHED) simdgroup_barrier(mem_flags::mem_none);
  if (whole && !b.edge) {
    add_product<H, false, Narrow>(block, p, b, column);
  } else if (add_product<H, true, Narrow>(block, p, b, column)) {
    add_not_finite<H>(block, p, b, column);
  }
  if (BLOCKED_SUM && !CACHED) simdgroup_barrier(mem_flags::mem_none);
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) {
      c.set(i, column / 8 + d, BLOCKED_SUM ? c.get(i, column / 8 + d) * factor.at[i] + block[i][d] : block[i][d]);
    }
  }
}

// C = factor * C + P B, P narrowed to the type `Narrow` on its way into the matrix unit.
// whole: every row of P sees every row of B, so that NaN or infinity in B propagates.
template <typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    bool whole) {
  constexpr int FULL = D / BH * BH, REST = D - FULL;
  if constexpr (CACHED) {
#pragma clang loop unroll(full)
    for (int column = 0; column < FULL; column += BH) head_block_ab<BH, Narrow>(c, factor, p, b, column, whole);
  } else {
#pragma clang loop unroll(disable)
    for (int column = 0; column < FULL; column += BH) head_block_ab<BH, Narrow>(c, factor, p, b, column, whole);
  }
  if constexpr (REST > 0) head_block_ab<REST, Narrow>(c, factor, p, b, FULL, whole);
}

}  // namespace tile
