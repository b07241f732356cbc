// Operands and results on the neural accelerators of M5 and A19, whose products (mpp::tensor_ops) take 16x16 matrices.
//
// Lanes hold tiles as in simdgroup.metal. The unit has a different order: of a 16x16 matrix a lane holds elements 0 to
// 3 of row lane.row and 4 to 7 of the row eight below, in columns 2 lane.column to 2 lane.column + 3. Apple does not
// document this; the order was found on M5, and backends/neural.py tests the GPU for it before its first use.
//
// S has its columns in the order of a tile if the 16 rows of a traversed operand enter each product permuted: place p
// of the unit, in bits p3 p2 p1 p0, takes row 8 p1 + 4 p3 + 2 p2 + p0. So a lane, whose places are lane.row and
// lane.row + 8, reads rows `first` and `first` + 4, also for P V. Columns of the head dimension keep their order.
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

namespace flash {
namespace tile {

// This lane's elements of a 16x16 matrix
template <typename T> struct Matrix {
  T at[8];
};

// The number of 16x16 matrices along D columns, a multiple of 8, or along a simdgroup's part of them; columns that the
// last ones lack are zero.
#if SPLITS_HEAD
template <int D> constant constexpr int STEPS = (D + 16 * HEAD_PARTS - 1) / (16 * HEAD_PARTS);
template <int D> constant constexpr bool WHOLE_STEPS = D % (16 * HEAD_PARTS) == 0;
template <int D> METAL_FUNC int first_column(Lane lane) { return lane.part() * STEPS<D> * 16 + 2 * lane.column; }
#else
template <int D> constant constexpr int STEPS = (D + 15) / 16;
template <int D> constant constexpr bool WHOLE_STEPS = D % 16 == 0;
template <int D> METAL_FUNC int first_column(Lane lane) { return 2 * lane.column; }
#endif

// Operands are read where they are.
template <typename T> struct Memory {
  threadgroup T* scratch;
};

// Four adjacent elements of `row` from `column` on; zeros past the end
template <int D, typename T> METAL_FUNC Run<T, 4> read_four(const device T* row, int column, bool exists) {
  Run<T, 4> found = {};
  if (exists && (WHOLE_STEPS<D> || column < D)) found = *(const device Run<T, 4>*)(row + column);
  return found;
}

template <typename T> METAL_FUNC Matrix<T> joined(Run<T, 4> upper, Run<T, 4> lower) {
  Matrix<T> found;
#pragma clang loop unroll(full)
  for (int e = 0; e < 4; e++) {
    found.at[e] = upper.at[e];
    found.at[4 + e] = lower.at[e];
  }
  return found;
}

// An operand of which this simdgroup owns rows. Rows past the end repeat the last one: their results are never stored,
// and no address outside the operand is formed.
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  const device T* row[R / 8];
  int column;
  Matrix<T> cached[R / 16][CACHED ? STEPS<D> : 1];
#if SPLITS_HEAD
  threadgroup Pair<float>* exchange;  // where simdgroups add their parts of S
  Lane owner;
#endif

  // first: this simdgroup's first row
  METAL_FUNC void open(
      thread const View& view, int b, int h, int first, int rows, thread Memory<T>& memory, Lane lane) thread {
#if SPLITS_HEAD
    exchange = (threadgroup Pair<float>*)memory.scratch;
    owner = lane;
#endif
    const device T* head = view.head<T>(b, h);
    const long stride = view.row_stride<T>();
    column = first_column<D>(lane);
    for (int i = 0; i < R / 8; i++) row[i] = head + min(first + i * 8 + lane.row, rows - 1) * stride;
    if constexpr (CACHED) {
      for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
        for (int d = 0; d < STEPS<D>; d++) cached[i][d] = read(i, d);
      }
    }
  }

  METAL_FUNC Matrix<T> read(int i, int d) const thread {
    const int from = d * 16 + column;
    return joined(read_four<D>(row[2 * i], from, true), read_four<D>(row[2 * i + 1], from, true));
  }

  // Rows [16 i, 16 i + 16) x columns [16 d, 16 d + 16)
  METAL_FUNC Matrix<T> matrix(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    return read(i, d);
  }
};

// An operand that all simdgroups traverse in blocks of BT rows; they share its elements through the cache. Rows from
// `valid` on read as zero; where `valid` is known to be BT, that takes no code.
template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  using Element = T;
#if SCATTERED
  Scattered<T> pages;
#else
  const device T* head;
#endif
  const device T* block;
  long stride;
#if HAS_PIECES
  int first_row;  // of the current block
#endif
  int valid;  // rows of the current block to use, at most BT
  bool edge;  // the block may be partly hidden, or end early
  int first, column;
  Lane lane;

  METAL_FUNC void open(thread Memory<T>&, Lane lane_) thread {
    lane = lane_;
    first = ((lane.row & 2) << 2) | ((lane.row & 4) >> 1) | (lane.row & 1);
    column = first_column<D>(lane);
  }

  // `view`, `start`, `acquire` and `pass` as in simdgroup_operands.metal
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

  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
#if HAS_PIECES
    first_row = row;
#endif
    block = pages.row(row);
    valid = edge ? min(BT, end - row) : BT;
  }
#else
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h);
    stride = view.row_stride<T>();
  }

  METAL_FUNC void next_head(thread const View& view) thread { head = view.next<T>(head); }

  METAL_FUNC void start(int row) thread { block = head + (row - BT) * stride; }

  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    block = edge ? head + row * stride : block + BT * stride;
    valid = edge ? min(BT, end - row) : BT;
  }

  METAL_FUNC void pass() thread { block = block + BT * stride; }
#endif

  METAL_FUNC void release() thread {}

  // Offsets in a whole block have 32 bits. A block with rows too far apart for that counts as an edge.
  METAL_FUNC bool far() const thread { return stride > INT_MAX / BT || stride < -(INT_MAX / BT); }

  // Columns [16 d + column, + 4) of a row of the block
  METAL_FUNC Run<T, 4> four(int row, int d) const thread {
#if HAS_PIECES
    const device T* from = edge ? pages.row(first_row + row) : block + row * int(stride);
#else
    const device T* from = edge ? block + row * stride : block + row * int(stride);
#endif
    return read_four<D>(from, d * 16 + column, valid == BT || row < valid);
  }

  // Rows [16 t, 16 t + 16), in the unit's order, x columns [16 d, 16 d + 16)
  METAL_FUNC Matrix<T> matrix(int t, int d) const thread {
    return joined(four(t * 16 + first, d), four(t * 16 + first + 4, d));
  }
};

// Apple GPUs have no producer warps: every simdgroup loads and multiplies.
template <typename A, typename B> METAL_FUNC bool produce(thread A&, thread B&, int, int) { return false; }
METAL_FUNC void await_rows(Lane) {}

// A float32 result of R rows x D columns, in registers until `store`
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  static_assert(CACHED, "accumulators stay in registers: choose a row that caches them");
  Matrix<float> at[R / 16][STEPS<D>];
  int row, column;
  int rows;  // rows of this simdgroup that exist

  template <typename Out> METAL_FUNC void open(device Out*, int first, int total, Lane lane) thread {
    row = lane.row;
    column = first_column<D>(lane);
    rows = total - first;
    for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < STEPS<D>; d++) at[i][d] = {};
    }
  }

  METAL_FUNC void multiply(RowVector<R> factor) thread {
    // The factors are 1 once a row's largest score has come, which is soon.
    bool unchanged = true;
    for (int i = 0; i < R / 8; i++) unchanged = unchanged && factor.at[i] == 1;
    if (simd_all(unchanged)) return;
    for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < STEPS<D>; d++) {
#pragma clang loop unroll(full)
        for (int e = 0; e < 8; e++) at[i][d].at[e] *= factor.at[2 * i + e / 4];
      }
    }
  }

  // Out[first + row, :] = factor * result; rows are not apart (HEADS_BETWEEN).
  template <typename Out>
  METAL_FUNC void store(device Out* head, int, int first, RowVector<R> factor) const thread {
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 + row >= rows) continue;
      device Out* out = head + long(first + i * 8 + row) * D + column;
#pragma clang loop unroll(full)
      for (int d = 0; d < STEPS<D>; d++) {
        if (!WHOLE_STEPS<D> && d * 16 + column >= D) continue;
        Run<Out, 4> run;
        for (int e = 0; e < 4; e++) run.at[e] = Out(at[i / 2][d].at[i % 2 * 4 + e] * factor.at[i]);
        *(device Run<Out, 4>*)(out + d * 16) = run;
      }
    }
  }
};

}  // namespace tile
}  // namespace flash
