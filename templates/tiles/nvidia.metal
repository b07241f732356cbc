// The tile layer for NVIDIA's tensor cores, as far as their instructions share it: lanes, panels of threadgroup memory,
// and operands; nvidia_results.metal has accumulators. Operations as in simdgroup.metal.
//
//   panel     columns of a block, 64 of 16 bits or 32 of float32: rows of 128 bytes, with their eight 16-byte chunks at
//             chunk ^ (row & 7). Neither ldmatrix nor wgmma has bank conflicts then; it is wgmma's "128-byte swizzle".
//   stage     a pipeline buffer for one traversed block: producer warps copy the next blocks (cp.async) while consumer
//             warps multiply this one
//
// The nv:: functions are single PTX instructions; the PTX ISA manual gives their fragment layouts.
#include <nv>

namespace flash {
namespace tile {

constant constexpr int CHUNK = 16 / sizeof(Element), PANEL = 8 * CHUNK, STAGES = $STAGES;
constant constexpr int DEPTH = 2 * CHUNK;                 // columns that one matrix instruction sums over
constant constexpr int MMA_ROWS = $MMA_ROWS;              // rows of one matrix instruction: wgmma 64, a warpgroup
constant constexpr uint CONSUMER_WARPS = $CONSUMER_WARPS;  // simdgroups that multiply, SLICES of them the same rows
constant constexpr uint PRODUCER_WARPS = $PRODUCER_WARPS;  // the simdgroups after them, which only copy blocks
#if PARTED
// Registers do not hold all columns of the accumulator: PARTS threadgroups with the same rows share them.
constant constexpr int PARTS = $PARTS, PART_COLUMNS = $HELD;  // columns that each has, whole panels
template <int D> constant constexpr int HELD = PART_COLUMNS;
#else
constant constexpr int PARTS = 1;
template <int D> constant constexpr int HELD = D;
#endif

// The columns of a fragment are neighbours in memory, and one loop serves whole blocks and edges.
METAL_FUNC int fixed_place(int f) { return f * 8; }
METAL_FUNC int lane_place(int, int, int k) { return k; }
constant constexpr bool LOW_PARTS = $LOW_PARTS;  // producer warps put the low parts of keys behind them
constant constexpr bool SPLIT = MMA_ROWS > 1 && !LOW_PARTS;  // tf32.metal would spill registers in two loops

struct Lane {
  int row, column;  // of the pair (row, column), (row, column + 1) inside every fragment
  uint thread_index, simdgroup;
#if PARTED
  int own_part;
  // Takes the part out of the position, which then counts blocks of rows
  static METAL_FUNC Lane sharing(uint thread_index, thread uint3& position) {
    Lane self = of(thread_index);
    self.own_part = position.x % PARTS;
    position.x /= PARTS;
    return self;
  }
  METAL_FUNC int part() const thread { return own_part; }
#else
  METAL_FUNC int part() const thread { return 0; }
#endif
  static METAL_FUNC Lane of(uint thread_index) {
    Lane self;
    self.row = thread_index % 32 / 4;
    self.column = thread_index % 4 * 2;
    self.thread_index = thread_index;
    self.simdgroup = thread_index / (32 * SLICES);  // those of the same rows count as one
    return self;
  }
  METAL_FUNC int slice() const thread { return thread_index / 32 % SLICES; }
  METAL_FUNC bool produces() const thread { return thread_index >= 32 * CONSUMER_WARPS; }
};

template <typename To, int R, int C>
METAL_FUNC void narrow(thread Tile<To, R, C>& to, thread const Tile<float, R, C>& from) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) to.at[i][c] = as_type<Pair<To>>(nv::narrow_pair<To>(from.at[i][c]));
  }
}

// A row of a fragment lives in four neighbouring lanes.
METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(2)));
}

METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(2));
}

// Columns as the matrix unit sees them: whole steps. The last half step of 16 is zero where D is an odd multiple of 8.
template <int D> constant constexpr int STEPS = (D + DEPTH - 1) / DEPTH;
template <int D> constant constexpr int PANELS = (D + PANEL - 1) / PANEL;

// The chunk of element (row, column) of a block of ROWS rows
template <int ROWS> METAL_FUNC int place(int row, int column) {
  return (column / PANEL * ROWS + row) * PANEL + ((column % PANEL / CHUNK) ^ (row & 7)) * CHUNK;
}

// Copies this thread's chunks of a row of at most D `columns` to row `row` of a block; zeros unless it `exists`.
template <int ROWS, int D, typename T>
METAL_FUNC void copy_row(
    threadgroup T* to, int row, const device T* source, int columns, long column_stride, bool aligned, bool exists,
    int chunk) {
#pragma clang loop unroll(disable)
  for (int column = chunk; column < STEPS<D> * DEPTH; column += PANEL) {
    threadgroup T* target = to + place<ROWS>(row, column);
    const bool read = exists && column < columns;
    if (aligned) {
      nv::copy_async(target, source + (column < columns ? column : 0), read ? 16 : 0);
    } else {
      for (int e = 0; e < CHUNK; e++) target[e] = read ? source[(column + e) * column_stride] : T(0);
    }
  }
}

// Copies COUNT rows of D columns to the rows of a block from `first` on, by THREADS threads, eight for each row. Rows
// from `valid` on, and the columns up to a whole step, become zero. Sixteen bytes at a time asynchronously, where
// addresses are aligned. Where threadgroups share columns, only `columns` of them exist, and zeros follow.
template <int ROWS, int D, int COUNT, int THREADS, typename T>
METAL_FUNC void copy(
    threadgroup T* to, int first, const device T* from, long stride, long column_stride, int valid, int columns,
    uint thread_index) {
  constexpr int STEP = THREADS / 8;
  static_assert(COUNT % STEP == 0, "rows are copied in whole steps");
  const int chunk = thread_index % 8 * CHUNK, row0 = thread_index / 8;
  const bool aligned = column_stride == 1 && (ulong(from) | ulong(stride * sizeof(T))) % 16 == 0;
  if (aligned && D % DEPTH == 0 && (SLICES > 1 || valid >= COUNT)) {
    // The common case, where addresses advance by constants; the swizzle repeats every eight rows. A token has so few
    // blocks that one which is not whole counts.
    threadgroup T* even = to + place<ROWS>(first + row0, chunk);
    threadgroup T* odd = to + place<ROWS>(first + row0 + STEP, chunk);
    const device T* source = from + row0 * stride + chunk;
#pragma clang loop unroll(full)
    for (int step = 0; step < COUNT / STEP; step++) {
      threadgroup T* target = (step % 2 ? odd : even) + step / 2 * 2 * STEP * PANEL;
      const int bytes = SLICES == 1 || row0 + step * STEP < valid ? 16 : 0;
#pragma clang loop unroll(full)
      for (int panel = 0; panel < PANELS<D>; panel++) {
        if (panel * PANEL + PANEL <= columns || panel * PANEL + chunk < columns) {
          nv::copy_async(target + panel * ROWS * PANEL, source + panel * PANEL, bytes);
        } else if (PARTS > 1) {
          nv::copy_async(target + panel * ROWS * PANEL, source - chunk, 0);
        }
      }
      source += STEP * stride;
    }
    return;
  }
#pragma clang loop unroll(disable)
  for (int row = row0; row < COUNT; row += STEP) {
    const bool exists = row < valid;
    const device T* source = from + (exists ? row : 0) * stride;
    copy_row<ROWS, D>(to, first + row, source, columns, column_stride, aligned, exists, chunk);
  }
  nv::fence_cta();
}

#if GATHERS
METAL_FUNC long column_stride_of(thread const View& view) { return view.column; }
#else
METAL_FUNC long column_stride_of(thread const View&) { return 1; }
#endif

// Elements `column` and `column` + 1 of a row
template <typename T> METAL_FUNC uint pair_at(const device T* row, int column, long column_stride) {
  if (column_stride == 1) return as_type<uint>(read_pair(row + column));
  return as_type<uint>(Pair<T>(row[column * column_stride], row[(column + 1) * column_stride]));
}

// Allocates threadgroup memory to the operands, in the order in which they are opened.
template <typename T> struct Memory {
  threadgroup T* next;

  METAL_FUNC threadgroup T* allocate(int elements) thread {
    threadgroup T* allocated = next;
    next += elements;
    return allocated;
  }
};

// An operand of which this simdgroup owns rows; rows past the end are zero. CACHED: fragments in registers; otherwise
// in threadgroup memory, where the rows of all simdgroups form one block of BP rows.
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  uint4 cached[R / 16][CACHED ? STEPS<D> : 1];
  threadgroup T* block;
  int first;  // row of this simdgroup within the block
  Lane lane;

  METAL_FUNC void open(
      thread const View& view, int b, int h, int row, int rows, thread Memory<T>& memory, Lane lane_) thread {
    lane = lane_;
    first = int(lane.simdgroup) * R;
    const long stride = view.row_stride<T>(), column_stride = column_stride_of(view);
    const int valid = max(rows - row, 0);
    const device T* source = view.head<T>(b, h) + (valid > 0 ? row : 0) * stride;
    if constexpr (CACHED) {
#pragma clang loop unroll(full)
      for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
        for (int d = 0; d < STEPS<D>; d++) {
          for (int e = 0; e < 4; e++) {
            const int r = i * 16 + e % 2 * 8 + lane.row, column = d * 16 + e / 2 * 8 + lane.column;
            const bool exists = r < valid && column < D;
            cached[i][d][e] = exists ? pair_at(source + r * stride, column, column_stride) : 0;
          }
        }
      }
    } else {
      block = memory.allocate(BP * PANEL * PANELS<D>);
      if (!lane.produces()) {
        copy<BP, D, R, 32>(block, first, source, stride, column_stride, valid, D, lane.thread_index % 32);
      }
    }
  }

  // Rows [16 i, +16) x columns [DEPTH d, +DEPTH) as the first operand of mma
  METAL_FUNC uint4 fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    const int l = lane.thread_index % 32;
    return nv::load_matrices(block + place<BP>(first + i * 16 + l % 16, d * DEPTH + l / 16 * CHUNK));
  }
};

// Consumers wait for the rows that the simdgroups of their matrix instructions have copied. Producers do not: they copy
// the first blocks in the meantime.
METAL_FUNC void await_rows(Lane lane) {
  if (lane.produces()) return;
  nv::wait_copies();
  nv::group_barrier<(MMA_ROWS + 15) / 16>(lane.thread_index);
}

#if LOW_PARTS
template <int BT, int D, int WIDTH> METAL_FUNC void write_low_parts(threadgroup float* block, int index);
#endif

// An operand that all simdgroups traverse in blocks of ROWS rows, in threadgroup memory; each multiplies BT of them.
// PART: only the columns that belong to the accumulator's. Other operands hold whole parts of it, with zeros behind the
// last column.
template <typename T, int BT, int D, int BH, int THREADS, bool PART = false> struct Traversed {
  using Element = T;
  static constant constexpr int ROWS = BT * SLICES, COLUMNS = PART ? HELD<D> : D;
  static constant constexpr int PADDED = PANELS<COLUMNS> * PANEL, SHARED = PARTS > 1 && !PART ? PARTS * HELD<D> : 0;
  static constant constexpr int WIDTH = PADDED > SHARED ? PADDED : SHARED, FILLED = PARTS > 1 ? WIDTH : COLUMNS;
  static constant constexpr int BLOCK_ELEMENTS = ROWS * WIDTH * (LOW_PARTS && !PART ? 2 : 1);
#if QUANTIZED
  QuantizedBlock<T, ROWS, D, 32 * PRODUCER_WARPS> packed;
#elif SCATTERED
  Scattered<T> pages;
#else
  const device T* head;
#endif
  threadgroup T* stages;
  threadgroup T* block;
  nv::Pipeline<STAGES, CONSUMER_WARPS, 32 * PRODUCER_WARPS> pipe;
  long stride, column_stride;
  int valid;  // of the BT rows that this simdgroup multiplies, those before the end; below 1 for none
  bool held;  // a product in flight reads the last block
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    held = false;
    stages = memory.allocate(STAGES * BLOCK_ELEMENTS);
    lane = lane_;
    pipe.open(memory.allocate(8 * PANEL), lane.thread_index);
  }

  // First column of the array that is held, and the number of columns that exist from there on
  METAL_FUNC int begin() const thread { return PART ? lane.part() * HELD<D> : 0; }
  METAL_FUNC int columns() const thread { return PART ? min(HELD<D>, D - begin()) : D; }

#if QUANTIZED
  METAL_FUNC void view(thread const QuantizedView& view, int b, int h) thread {
    packed.open(view, b, h, lane.thread_index - 32 * CONSUMER_WARPS);
  }
#elif SCATTERED
  METAL_FUNC void view(thread const ScatteredView& view, int b, int h) thread {
    pages.open(view, b, h);
    pages.head += begin();
    stride = pages.stride;
    column_stride = 1;
  }

#if HAS_PIECES
  METAL_FUNC void next_head(thread const ScatteredView& view) thread { pages.next_head(view); }
#endif
#else
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h) + begin();
    stride = view.row_stride<T>();
    column_stride = column_stride_of(view);
  }

  METAL_FUNC void next_head(thread const View& view) thread { head = view.next<T>(head); }
#endif

#if !QUANTIZED
  METAL_FUNC void copy(int row, int end) thread {
    threadgroup T* to = stages + pipe.producer_acquire() * BLOCK_ELEMENTS;
#if HAS_PIECES
    pages.enter(row);
    if (min(row + ROWS, end) > pages.end) {  // in two pieces: each thread looks its rows up
      const int index = lane.thread_index - 32 * CONSUMER_WARPS;
      const bool aligned = (ulong(pages.head) | ulong(pages.rank_stride | stride) * sizeof(T)) % 16 == 0;
#pragma clang loop unroll(disable)
      for (int n = index / 8; n < ROWS; n += 4 * PRODUCER_WARPS) {
        copy_row<ROWS, FILLED>(
            to, n, pages.row(min(row + n, end - 1)), columns(), 1, aligned, row + n < end, index % 8 * CHUNK);
      }
      nv::fence_cta();
      commit(to);
      return;
    }
    const device T* head = pages.piece;
#elif SCATTERED
    const device T* head = pages.row(row) - row * stride;
#endif
    tile::copy<ROWS, FILLED, ROWS, 32 * PRODUCER_WARPS>(
        to, 0, head + row * stride, stride, column_stride, end - row, columns(),
        lane.thread_index - 32 * CONSUMER_WARPS);
    commit(to);
  }

  METAL_FUNC void commit(threadgroup T* to) thread {
#if LOW_PARTS
    if constexpr (!PART) write_low_parts<BT, D, WIDTH>(to, lane.thread_index - 32 * CONSUMER_WARPS);
#endif
    pipe.producer_commit();
  }
#endif

  METAL_FUNC void start(int) thread {}

  METAL_FUNC void pass() thread {}  // a block that is not visited takes no stage

  METAL_FUNC bool far() const thread { return false; }  // offsets have 64 bits

  // The block that begins at `row`: waits until its stage has been filled
  METAL_FUNC void acquire(int row, int end, bool = true) thread {
    const int first = lane.slice() * BT;
    block = stages + pipe.consumer_wait() * BLOCK_ELEMENTS + first * PANEL;
    valid = min(BT, end - row - first);
  }

  METAL_FUNC void release() thread { pipe.consumer_release(); }

  // Releases the last block if a product in flight needed it
  METAL_FUNC void release_held() thread {
    if (held) pipe.consumer_release();
    held = false;
  }

  // Rows [16 t, +16) x columns [DEPTH d, +DEPTH) as the second operand of A B^T: two neighbouring groups of 8 rows
  METAL_FUNC uint4 fragment(int t, int d) const thread {
    const int l = lane.thread_index % 32;
    return nv::load_matrices(block + place<ROWS>(t * 16 + l / 16 * 8 + l % 8, d * DEPTH + l / 8 % 2 * CHUNK));
  }

  // The same block as the second operand of P B, for 16 bits: two neighbouring groups of 8 columns
  METAL_FUNC uint4 transposed(int t, int d) const thread {
    const int l = lane.thread_index % 32;
    return nv::load_matrices_transposed(block + place<ROWS>(t * 16 + l % 16, d * 16 + l / 16 * 8));
  }
};

#if !QUANTIZED
// Producer warps copy the blocks that begin at `row` and return true
template <typename A, typename B> METAL_FUNC bool produce(thread A& a, thread B& b, int row, int end) {
  if (!a.lane.produces()) return false;
  a.copy(row, end);
  b.copy(row, end);
  return true;
}
#endif

}  // namespace tile
}  // namespace flash
