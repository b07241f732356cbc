// flash_backward_query_bfloat16_v64_p128_m0_d64_t64_h64_r16_cdQ_wgmma2_dense_blocks128

#include <metal_stdlib>
using namespace metal;
namespace flash {
template <typename T, int N> struct Run { T at[N]; };
struct View {
  const device uint8_t* bytes;
  long batch, heads, row;
  template <typename T> METAL_FUNC const device T* head(uint b, uint h) const thread {
    return (const device T*)(bytes + b * batch + h * heads);
  }
  template <typename T> METAL_FUNC const device T* next(const device T* head) const thread {
    return (const device T*)((const device uint8_t*)head + heads);
  }
  template <typename T> METAL_FUNC long row_stride() const thread { return row >> (sizeof(T) / 2); }
};
template <typename T> struct Strided {
  const device T* at;
  const constant int64_t* strides;
};
}
namespace flash {
using Element = bfloat;
constant constexpr int D = 64, DV = 64;
constant constexpr int BP = 128, BT = 64, BH = 64, R = 16;
constant constexpr int SLICES = 1;
constant constexpr int THREADS = 32 * BP / R;
constant constexpr int SCRATCH = 33792;
constant constexpr bool CAUSAL = false, HAS_WINDOW = 0;
constant constexpr bool ADDITIVE = false;
constant constexpr bool TRANSPOSED = 0;
constant constexpr int BLOCK = 128;
}
namespace flash {
struct Arguments {
  View Q;
  View K;
  View V;
  View dO;
  const device float* L;
  const device float* delta;
  float scale;
  Strided<int> block_map;
  const device uint8_t* block_bitmaps;
  Strided<int> block_lists;
  Strided<int> block_counts;
  int Hq, Hk, Lq, Lk;
};
}
namespace flash {
namespace tile {
template <typename T> using Pair = vec<T, 2>;
template <typename T, int R, int C> struct Tile {
  Pair<T> at[R / 8][C / 8];
};
template <int R> struct RowVector {
  float at[R / 8];
};
template <int R> METAL_FUNC Pair<float> broadcast(thread const RowVector<R>& vector, int i, int) {
  return Pair<float>(vector.at[i]);
}
template <typename T, int R, int C> METAL_FUNC void clear(thread Tile<T, R, C>& tile) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) tile.at[i][c] = Pair<T>(T(0));
  }
}
METAL_FUNC long first_row(int b, int h, int heads, int length) { return long(b) * length * heads + h; }
template <typename T> METAL_FUNC Pair<T> read_pair(const device T* source) {
  const Run<T, 2> run = *(const device Run<T, 2>*)source;
  return Pair<T>(run.at[0], run.at[1]);
}
}
}
#include <nv>
namespace flash {
namespace tile {
constant constexpr int CHUNK = 16 / sizeof(Element), PANEL = 8 * CHUNK, STAGES = 2;
constant constexpr int DEPTH = 2 * CHUNK;
constant constexpr int MMA_ROWS = 64;
constant constexpr uint CONSUMER_WARPS = 8;
constant constexpr uint PRODUCER_WARPS = 4;
constant constexpr int PARTS = 1;
template <int D> constant constexpr int HELD = D;
METAL_FUNC int fixed_place(int f) { return f * 8; }
METAL_FUNC int lane_place(int, int, int k) { return k; }
constant constexpr bool LOW_PARTS = 0;
constant constexpr bool SPLIT = MMA_ROWS > 1 && !LOW_PARTS;
struct Lane {
  int row, column;
  uint thread_index, simdgroup;
  METAL_FUNC int part() const thread { return 0; }
  static METAL_FUNC Lane of(uint thread_index) {
    Lane self;
    self.row = thread_index % 32 / 4;
    self.column = thread_index % 4 * 2;
    self.thread_index = thread_index;
    self.simdgroup = thread_index / (32 * SLICES);
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
METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(2)));
}
METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(2));
}
template <int D> constant constexpr int STEPS = (D + DEPTH - 1) / DEPTH;
template <int D> constant constexpr int PANELS = (D + PANEL - 1) / PANEL;
template <int ROWS> METAL_FUNC int place(int row, int column) {
  return (column / PANEL * ROWS + row) * PANEL + ((column % PANEL / CHUNK) ^ (row & 7)) * CHUNK;
}
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
template <int ROWS, int D, int COUNT, int THREADS, typename T>
METAL_FUNC void copy(
    threadgroup T* to, int first, const device T* from, long stride, long column_stride, int valid, int columns,
    uint thread_index) {
  constexpr int STEP = THREADS / 8;
  static_assert(COUNT % STEP == 0, "rows are copied in whole steps");
  const int chunk = thread_index % 8 * CHUNK, row0 = thread_index / 8;
  const bool aligned = column_stride == 1 && (ulong(from) | ulong(stride * sizeof(T))) % 16 == 0;
  if (aligned && D % DEPTH == 0 && (SLICES > 1 || valid >= COUNT)) {
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
METAL_FUNC long column_stride_of(thread const View&) { return 1; }
template <typename T> METAL_FUNC uint pair_at(const device T* row, int column, long column_stride) {
  if (column_stride == 1) return as_type<uint>(read_pair(row + column));
  return as_type<uint>(Pair<T>(row[column * column_stride], row[(column + 1) * column_stride]));
}
template <typename T> struct Memory {
  threadgroup T* next;
  METAL_FUNC threadgroup T* allocate(int elements) thread {
    threadgroup T* allocated = next;
    next += elements;
    return allocated;
  }
};
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  uint4 cached[R / 16][CACHED ? STEPS<D> : 1];
  threadgroup T* block;
  int first;
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
  METAL_FUNC uint4 fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    const int l = lane.thread_index % 32;
    return nv::load_matrices(block + place<BP>(first + i * 16 + l % 16, d * DEPTH + l / 16 * CHUNK));
  }
};
METAL_FUNC void await_rows(Lane lane) {
  if (lane.produces()) return;
  nv::wait_copies();
  nv::group_barrier<(MMA_ROWS + 15) / 16>(lane.thread_index);
}
template <typename T, int BT, int D, int BH, int THREADS, bool PART = false> struct Traversed {
  using Element = T;
  static constant constexpr int ROWS = BT * SLICES, COLUMNS = PART ? HELD<D> : D;
  static constant constexpr int PADDED = PANELS<COLUMNS> * PANEL, SHARED = PARTS > 1 && !PART ? PARTS * HELD<D> : 0;
  static constant constexpr int WIDTH = PADDED > SHARED ? PADDED : SHARED, FILLED = PARTS > 1 ? WIDTH : COLUMNS;
  static constant constexpr int BLOCK_ELEMENTS = ROWS * WIDTH * (LOW_PARTS && !PART ? 2 : 1);
  const device T* head;
  threadgroup T* stages;
  threadgroup T* block;
  nv::Pipeline<STAGES, CONSUMER_WARPS, 32 * PRODUCER_WARPS> pipe;
  long stride, column_stride;
  int valid;
  bool held;
  Lane lane;
  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    held = false;
    stages = memory.allocate(STAGES * BLOCK_ELEMENTS);
    lane = lane_;
    pipe.open(memory.allocate(8 * PANEL), lane.thread_index);
  }
  METAL_FUNC int begin() const thread { return PART ? lane.part() * HELD<D> : 0; }
  METAL_FUNC int columns() const thread { return PART ? min(HELD<D>, D - begin()) : D; }
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h) + begin();
    stride = view.row_stride<T>();
    column_stride = column_stride_of(view);
  }
  METAL_FUNC void next_head(thread const View& view) thread { head = view.next<T>(head); }
  METAL_FUNC void copy(int row, int end) thread {
    threadgroup T* to = stages + pipe.producer_acquire() * BLOCK_ELEMENTS;
    tile::copy<ROWS, FILLED, ROWS, 32 * PRODUCER_WARPS>(
        to, 0, head + row * stride, stride, column_stride, end - row, columns(),
        lane.thread_index - 32 * CONSUMER_WARPS);
    commit(to);
  }
  METAL_FUNC void commit(threadgroup T* to) thread {
    pipe.producer_commit();
  }
  METAL_FUNC void start(int) thread {}
  METAL_FUNC void pass() thread {}
  METAL_FUNC bool far() const thread { return false; }
  METAL_FUNC void acquire(int row, int end, bool = true) thread {
    const int first = lane.slice() * BT;
    block = stages + pipe.consumer_wait() * BLOCK_ELEMENTS + first * PANEL;
    valid = min(BT, end - row - first);
  }
  METAL_FUNC void release() thread { pipe.consumer_release(); }
  METAL_FUNC void release_held() thread {
    if (held) pipe.consumer_release();
    held = false;
  }
  METAL_FUNC uint4 fragment(int t, int d) const thread {
    const int l = lane.thread_index % 32;
    return nv::load_matrices(block + place<ROWS>(t * 16 + l / 16 * 8 + l % 8, d * DEPTH + l / 8 % 2 * CHUNK));
  }
  METAL_FUNC uint4 transposed(int t, int d) const thread {
    const int l = lane.thread_index % 32;
    return nv::load_matrices_transposed(block + place<ROWS>(t * 16 + l % 16, d * 16 + l / 16 * 8));
  }
};
template <typename A, typename B> METAL_FUNC bool produce(thread A& a, thread B& b, int row, int end) {
  if (!a.lane.produces()) return false;
  a.copy(row, end);
  b.copy(row, end);
  return true;
}
}
}
namespace flash {
namespace tile {
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  static_assert(CACHED, "accumulators stay in registers: choose a row that caches them");
  static constant constexpr int COLUMNS = HELD<D>;
  Pair<float> at[R / 8][COLUMNS / 8];
  int rows, row, column;
  int begin;
  template <typename Out> METAL_FUNC void open(device Out*, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    row = lane.row;
    column = lane.column;
    begin = lane.part() * COLUMNS;
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < COLUMNS / 8; d++) at[i][d] = Pair<float>(0);
    }
  }
  METAL_FUNC void multiply(RowVector<R> factor) thread {
    bool unchanged = true;
    for (int i = 0; i < R / 8; i++) unchanged = unchanged && factor.at[i] == 1;
    if (simd_all(unchanged)) return;
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < COLUMNS / 8; d++) at[i][d] *= factor.at[i];
    }
  }
  METAL_FUNC Pair<float> get(int i, int d) const thread {
    Pair<float> found = at[i][0];
#pragma clang loop unroll(full)
    for (int e = 1; e < COLUMNS / 8; e++) found = e == d ? at[i][e] : found;
    return found;
  }
  METAL_FUNC void set(int i, int d, Pair<float> value) thread {
#pragma clang loop unroll(full)
    for (int e = 0; e < COLUMNS / 8; e++) at[i][e] = e == d ? value : at[i][e];
  }
  template <typename Out>
  METAL_FUNC void store(device Out* head, int stride, int first, RowVector<R> factor) const thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 >= rows) continue;
      device Out* out = head + long(first + i * 8 + row) * stride + begin + column;
#pragma clang loop unroll(full)
      for (int d = 0; d < COLUMNS / 8; d++) {
        if (begin + d * 8 < D) *(device Pair<Out>*)(out + d * 8) = Pair<Out>(at[i][d] * factor.at[i]);
      }
    }
  }
};
template <typename T, typename P, int R, int BT>
METAL_FUNC uint4 narrowed(thread const Tile<P, R, BT>& p, int i, int t) {
  return uint4(
      nv::narrow_pair<T>(p.at[2 * i][2 * t]), nv::narrow_pair<T>(p.at[2 * i + 1][2 * t]),
      nv::narrow_pair<T>(p.at[2 * i][2 * t + 1]), nv::narrow_pair<T>(p.at[2 * i + 1][2 * t + 1]));
}
}
}
namespace flash {
namespace tile {
template <typename T> METAL_FUNC uint nonzero(uint pair) {
  const uint one = as_type<uint>(Pair<T>(T(1)));
  return ((pair & 0x7fffu) != 0 ? one & 0xffffu : 0) | ((pair & 0x7fff0000u) != 0 ? one & 0xffff0000u : 0);
}
template <typename T> METAL_FUNC uint not_finite(uint pair) {
  const uint one = as_type<uint>(Pair<T>(T(1))), infinity = as_type<uint>(Pair<T>(T(INFINITY)));
  const uint low = infinity & 0xffffu, high = infinity & 0xffff0000u;
  return ((pair & low) == low ? one & 0xffffu : 0) | ((pair & high) == high ? one & 0xffff0000u : 0);
}
template <typename T> METAL_FUNC uint not_finite(uint pair, T but) {
  const uint same = pair ^ as_type<uint>(Pair<T>(but));
  return not_finite<T>(pair) & ~((same & 0xffffu ? 0 : 0xffffu) | (same & 0xffff0000u ? 0 : 0xffff0000u));
}
template <typename T> METAL_FUNC uint finite(uint pair) {
  const uint bad = not_finite<T>(pair);
  return pair & ~((bad & 0xffffu ? 0xffffu : 0) | (bad & 0xffff0000u ? 0xffff0000u : 0));
}
template <typename T, int BT, int D, int BH, int THREADS, bool PART>
METAL_FUNC bool all_finite(thread const Traversed<T, BT, D, BH, THREADS, PART>& b) {
  constexpr int COLUMNS = Traversed<T, BT, D, BH, THREADS, PART>::COLUMNS;
  constexpr int VOTERS = (MMA_ROWS + 15) / 16;
  using Vote = nv::GroupVote<VOTERS>;
  const uint step = 0x80008000u - as_type<uint>(Pair<T>(T(INFINITY)));
  uint found = 0, thread_index = b.lane.thread_index;
  nv::pin_register(thread_index);
  const int begin = Vote::begin(thread_index), end = Vote::end(thread_index);
  for (int part = begin; part < end; part++) {
    const threadgroup uint4* chunks = (const threadgroup uint4*)b.block + thread_index % 32 + part * (4 * PANEL / 8);
#pragma clang loop unroll(full)
    for (int panel = 0; panel < PANELS<COLUMNS>; panel++) {
#pragma clang loop unroll_count(4)
      for (int row = 0; row < BT; row += 4 * VOTERS) {
        const int r = row + part * 4 + thread_index % 32 / 8;
        const int column = panel * PANEL + (int(thread_index % 8) ^ (r & 7)) * 8;
        if (column >= COLUMNS) continue;
        const uint4 pairs = chunks[(panel * b.ROWS + row) * (PANEL / 8)];
        for (int e = 0; e < 4; e++) found |= (pairs[e] & 0x7fff7fffu) + step;
      }
    }
  }
  return Vote::all((found & 0x80008000u) == 0, thread_index);
}
template <typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void nan_safe_ab(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& block) {
  Traversed<T, BT, D, BH, THREADS, PART> b = block;
  const int first = (c.begin - b.begin()) / 16;
  nv::pin_register(b.lane.thread_index);
#pragma clang loop unroll(full)
  for (int i = 0; i < R / 16; i++) {
    uint4 rows[BT / 16];
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 16; t++) rows[t] = narrowed<T>(p, i, t);
#pragma clang loop unroll(disable)
    for (int d = 0; d < HELD<D> / 8; d++) {
      Pair<float> upper = c.get(2 * i, d), lower = c.get(2 * i + 1, d);
#pragma clang loop unroll(disable)
      for (int sign = 1; sign >= -1; sign -= 2) {
        Pair<float> upper_seen = Pair<float>(0), lower_seen = Pair<float>(0);
        const T other = T(-sign * INFINITY);
#pragma clang loop unroll(disable)
        for (int t = 0; t < BT / 16; t++) {
          const uint4 both = b.transposed(t, first + d / 2);
          const uint2 columns = d % 2 ? both.zw : both.xy;
          const uint4 seen = uint4(
              nonzero<T>(rows[t].x), nonzero<T>(rows[t].y), nonzero<T>(rows[t].z), nonzero<T>(rows[t].w));
          nv::multiply<T>(
              upper_seen, lower_seen, seen, uint2(not_finite(columns.x, other), not_finite(columns.y, other)));
          if (sign > 0) nv::multiply<T>(upper, lower, rows[t], uint2(finite<T>(columns.x), finite<T>(columns.y)));
        }
        upper += select(Pair<float>(0), Pair<float>(sign * INFINITY), upper_seen > 0);
        lower += select(Pair<float>(0), Pair<float>(sign * INFINITY), lower_seen > 0);
      }
      c.set(2 * i, d, upper);
      c.set(2 * i + 1, d, lower);
    }
  }
}
}
}
namespace flash {
namespace tile {
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
template <typename S, typename A, typename B>
METAL_FUNC void begin_abt(thread S& s, thread const A& a, thread const B& b) {
  nv::fence_async_proxy();
  issue_abt(s, a, b);
}
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
template <typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void issue_ab(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& b) {
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
template <typename C> METAL_FUNC void finish_ab(thread C& c) {
  nv::wgmma_wait<0>();
  nv::pin_register(c.at);
}
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
template <typename Narrow, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& b, bool whole) {
  c.multiply(factor);
  add_ab(c, p, b, whole || simd_all(all_finite(b)));
}
constant constexpr int PING_PONG_COLUMNS = 192;
template <int BP, int D> struct PingPong {
  nv::PingPong<(D <= PING_PONG_COLUMNS ? BP / MMA_ROWS : 1)> ping_pong;
  METAL_FUNC void open(Lane lane) thread { ping_pong.open(lane.thread_index); }
  METAL_FUNC void wait() thread { ping_pong.wait(); }
  METAL_FUNC void arrive() thread { ping_pong.arrive(); }
};
}
}
namespace flash {
template <typename T> METAL_FUNC T fast_exp2(T x) { return fast::exp2(x); }
namespace softmax {
METAL_FUNC float factor_of(float scale) { return scale * M_LOG2E_F; }
template <typename S, typename M> METAL_FUNC S exponent(S s, M m, float factor) { return (s - m) * factor; }
}
}
namespace flash {
namespace mask {
struct Range {
  int begin, end;
};
struct Visibility {
  int rows, queries, keys;
  const device int* block_map;
  const device uint8_t* bitmaps;
  const device int* block_list;
  int block_columns, num_blocks;
  long map_head;
  bool block_is_full;
  METAL_FUNC void open(thread const Arguments& args, int b) thread {
    queries = args.Lq;
    rows = queries;
    keys = args.Lk;
  }
  METAL_FUNC void open_head(thread const Arguments& args, int b, int h, int row) thread {
    const constant int64_t* map_strides = args.block_map.strides;
    bitmaps = args.block_bitmaps;
    block_map = args.block_map.at + b * map_strides[0] + h * map_strides[1];
    map_head = map_strides[1];
    block_columns = map_strides[2];
    const constant int64_t* list_strides = args.block_lists.strides;
    const constant int64_t* count_strides = args.block_counts.strides;
    block_list = args.block_lists.at + b * list_strides[0] + h * list_strides[1] + row / BLOCK * list_strides[2];
    num_blocks = args.block_counts.at[b * count_strides[0] + h * count_strides[1] + row / BLOCK];
  }
  METAL_FUNC void open_rows(int begin, int end, tile::Lane lane) thread {
  }
  METAL_FUNC int query_of(int row) const thread { return row; }
  METAL_FUNC int head_of(int) const thread { return 0; }
  METAL_FUNC int shift_of_query(int) const thread { return keys - queries; }
  METAL_FUNC int least_shift() const thread { return keys - queries; }
  METAL_FUNC int largest_shift() const thread { return keys - queries; }
  METAL_FUNC bool admits(int row, int j) const thread {
    bool met = true;
    const int i = query_of(row);
    const int block = block_map[head_of(row) * map_head + i / BLOCK * block_columns + j / BLOCK];
    const uint8_t bit = bitmaps[long(max(block - 2, 0)) * (BLOCK * BLOCK) + i % BLOCK * BLOCK + j % BLOCK];
    met = (int(met) & (int(block == 1) | (int(block > 1) & int(bit != 0)))) != 0;
    return met;
  }
  METAL_FUNC Range keys_at(int first, int last) const thread {
    Range seen = {0, keys};
    if (CAUSAL) seen.end = min(seen.end, last + 1);
    return seen;
  }
  METAL_FUNC Range keys_of(int first_query, int last_query) const thread {
    return keys_at(first_query + least_shift(), min(last_query, queries - 1) + largest_shift());
  }
  METAL_FUNC Range seen_by(int row) const thread {
    if (row >= rows) return {0, 0};
    const int query = query_of(row), position = query + shift_of_query(query);
    return keys_at(position, position);
  }
  METAL_FUNC int ranges() const thread {
    return num_blocks;
  }
  METAL_FUNC Range range(thread int& n, Range within) thread {
    const int first = block_list[n];
    int last = first;
    for (; n + 1 < num_blocks && block_list[n + 1] == last + 2; n++) last += 2;
    block_is_full = (first & 1) != 0;
    return {max(within.begin, (first >> 1) * BLOCK), min(within.end, ((last >> 1) + 1) * BLOCK)};
  }
  METAL_FUNC void look_at(int begin, int end, tile::Lane lane) thread {
  }
  METAL_FUNC bool skip() const thread {
    return false;
  }
  METAL_FUNC bool edge_of(Range range, int first, int last, int place, tile::Lane lane) thread {
    look_at(place, min(place + BT * SLICES, range.end), lane);
    if (!tile::SPLIT || place + BT > range.end) return true;
    return !covers(first, min(last, rows - 1), place, place + BT - 1);
  }
  METAL_FUNC bool covers(int first_query, int last_query, int first_key, int last_key) const thread {
    if (last_query >= queries || last_key >= keys) return false;
    const int nearest = first_key - last_query - largest_shift(), farthest = last_key - first_query - least_shift();
    if (CAUSAL && farthest > 0) return false;
    return block_is_full;
  }
};
}
}
namespace flash {
namespace mask {
template <int ROWS, int C> struct Look {};
}
}
namespace flash {
namespace mask {
template <int ROWS, int C> struct Look;
template <int R, int C>
METAL_FUNC bool apply(
    thread tile::Tile<float, R, C>& s, thread const Visibility& visibility, thread const Look<R, C>& look,
    int first_query, int first_key, int valid, tile::Lane lane, bool edge = true) {
  const int mma_rows = max(R, tile::MMA_ROWS), queries = TRANSPOSED ? C : mma_rows, keys = TRANSPOSED ? mma_rows : C;
  const int query0 = TRANSPOSED ? first_query : first_query / mma_rows * mma_rows;
  const int key0 = TRANSPOSED ? first_key / mma_rows * mma_rows : first_key;
  const bool covered =
      !edge || (int(valid == C) & int(visibility.covers(query0, query0 + queries - 1, key0, key0 + keys - 1))) != 0;
  const bool whole = covered;
  if (whole) return true;
  const int first_row = TRANSPOSED ? first_key : first_query, first_column = TRANSPOSED ? first_query : first_key;
  constexpr bool BEGINS = HAS_WINDOW || (TRANSPOSED && CAUSAL);
  const int last_row = (TRANSPOSED ? visibility.keys : visibility.rows) - 1;
  const int last_column = (TRANSPOSED ? visibility.queries : visibility.keys) - 1;
  for (int i = 0; i < R / 8; i++) {
    const int own_row = first_row + i * 8 + lane.row;
    const int row = min(own_row, last_row);
    const Range seen = visibility.seen_by(own_row);
    const int begin = seen.begin - first_column, end = min(seen.end - first_column, valid);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const int own = tile::lane_place(C, c, lane.column);
      for (int e = 0; e < 2; e++) {
        const int fixed = tile::fixed_place(c) + e;
        const int own_column = first_column + own + fixed;
        const int column = edge ? min(own_column, last_column) : own_column;
        const int query = TRANSPOSED ? column : row, key = TRANSPOSED ? row : column;
        bool visible = !edge || ((!BEGINS || fixed >= begin - own) && fixed < end - own);
        visible = (int(visible) & int(visibility.admits(query, key))) != 0;
        s.at[i][c][e] = visible ? s.at[i][c][e] : -INFINITY;
      }
    }
  }
  return whole;
}
}
}
namespace flash {
namespace softmax {
template <int R, int C> struct Slope {};
template <int R, int C>
METAL_FUNC void scale_or_cap(
    thread tile::Tile<float, R, C>& s, thread Slope<R, C>& slope, thread const Arguments& args) {
}
}
}
namespace flash {
namespace softmax {
template <typename V> struct Reference {
  V m, log_l;
  template <typename T> METAL_FUNC void set(int n, T m_n, T log_l_n) thread {
    m.at[n] = select(m_n, T(INFINITY), m_n == -INFINITY);
    log_l.at[n] = log_l_n;
  }
};
template <typename V>
METAL_FUNC tile::Pair<float> probability(
    tile::Pair<float> s, thread const Reference<V>& reference, int i, int c, float factor, bool whole) {
  const tile::Pair<float> m = tile::broadcast(reference.m, i, c), log_l = tile::broadcast(reference.log_l, i, c);
  const tile::Pair<float> p = fast_exp2((s - m) * factor - log_l);
  return whole ? p : select(p, tile::Pair<float>(0), s == -INFINITY);
}
METAL_FUNC tile::Pair<float> score_gradient(
    tile::Pair<float> dp, tile::Pair<float> p, tile::Pair<float> delta, bool whole) {
  const tile::Pair<float> ds = p * (dp - delta);
  return whole ? ds : select(ds, tile::Pair<float>(0), p == 0);
}
template <int R>
METAL_FUNC Reference<tile::RowVector<R>> read_reference(
    const device float* statistics, int first, int rows, tile::Lane lane) {
  Reference<tile::RowVector<R>> found;
  for (int i = 0; i < R / 8; i++) {
    const int row = min(first + i * 8 + lane.row, rows - 1);
    found.set(i, statistics[2 * row], statistics[2 * row + 1]);
  }
  return found;
}
template <int R, int C, typename V>
METAL_FUNC void probabilities(
    thread tile::Tile<float, R, C>& s, thread const Reference<V>& reference, float factor, bool whole) {
  if (whole) {
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) s.at[i][c] = probability(s.at[i][c], reference, i, c, factor, true);
    }
    return;
  }
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] = probability(s.at[i][c], reference, i, c, factor, whole);
  }
}
template <int R, int C, typename V>
METAL_FUNC void gradient(
    thread tile::Tile<float, R, C>& dp, thread const tile::Tile<float, R, C>& p, thread const V& delta,
    bool whole = false) {
  if (whole) {
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) {
        dp.at[i][c] = score_gradient(dp.at[i][c], p.at[i][c], tile::broadcast(delta, i, c), true);
      }
    }
    return;
  }
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      dp.at[i][c] = score_gradient(dp.at[i][c], p.at[i][c], tile::broadcast(delta, i, c), whole);
    }
  }
}
template <int R, int C> METAL_FUNC void apply_slope(thread tile::Tile<float, R, C>&, thread const Slope<R, C>&) {}
}
}
namespace flash {
struct QueryBlock {
  int b, h, h_k;
  int block, first;
  long row0;
  static METAL_FUNC QueryBlock of(thread const Arguments& args, uint3 position, tile::Lane lane) {
    const int blocks = (args.Lq + BP - 1) / BP, x = position.x, h = position.y, b = position.z;
    const int block = (CAUSAL ? blocks - 1 - x : x) * BP;
    return {
        b, h, h / (args.Hq / args.Hk), block, block + int(lane.simdgroup) * R, (long(b) * args.Hq + h) * args.Lq};
  }
};
}
namespace flash {
constant constexpr bool CACHE_Q = false, CACHE_DO = false, CACHE_DQ = true;
template <typename Out>
METAL_FUNC void backward_query(
    thread const Arguments& args, device Out* dQ,
    threadgroup Element* scratch, uint3 position, uint thread_index) {
  const tile::Lane lane = tile::Lane::of(thread_index);
  const QueryBlock at = QueryBlock::of(args, position, lane);
  tile::Memory<Element> memory = {scratch};
  const float factor = softmax::factor_of(args.scale);
  tile::Rows<Element, BP, R, D, CACHE_Q> q;
  tile::Rows<Element, BP, R, DV, CACHE_DO> d_o;
  tile::Traversed<Element, BT, D, BH, THREADS> k;
  tile::Traversed<Element, BT, DV, BH, THREADS> v;
  tile::Accumulator<R, D, BH, CACHE_DQ> d_q;
  q.open(args.Q, at.b, at.h, at.first, args.Lq, memory, lane);
  d_o.open(args.dO, at.b, at.h, at.first, args.Lq, memory, lane);
  k.open(memory, lane);
  k.view(args.K, at.b, at.h_k);
  v.open(memory, lane);
  v.view(args.V, at.b, at.h_k);
  d_q.open(dQ + at.row0 * D, at.first, args.Lq, lane);
  const softmax::Reference<tile::RowVector<R>> reference =
      softmax::read_reference<R>(args.L + 2 * at.row0, at.first, args.Lq, lane);
  tile::RowVector<R> delta_row, one, scale_row;
  for (int i = 0; i < R / 8; i++) {
    const int group = at.first + i * 8, last = args.Lq - 1;
    delta_row.at[i] = args.delta[at.row0 + min(group + lane.row, last)];
    one.at[i] = 1;
    scale_row.at[i] = args.scale;
  }
  mask::Visibility visibility;
  visibility.open(args, at.b);
  visibility.open_head(args, at.b, at.h, at.block);
  visibility.open_rows(at.block, min(at.block + BP, args.Lq), lane);
  mask::Look<R, BT> look;
  tile::await_rows(lane);
  const mask::Range seen = visibility.keys_of(at.block, at.block + BP - 1);
  for (int n = 0; n < visibility.ranges(); n++) {
    const mask::Range range = visibility.range(n, seen);
    for (int c = range.begin; c < range.end;) {
      k.start(c);
      v.start(c);
#pragma clang loop unroll(full)
      for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
        for (; c < range.end; c += BT) {
          const bool at_edge = visibility.edge_of(range, at.block, at.block + BP - 1, c, lane) || k.far() || v.far();
          if (at_edge != (edge == 1)) break;
          if (tile::produce(k, v, c, range.end)) continue;
          k.acquire(c, range.end, edge);
          v.acquire(c, range.end, edge);
          tile::Tile<float, R, BT> p, ds;
          tile::begin_abt(p, q, k);
          tile::begin_abt(ds, d_o, v);
          tile::finish_abt<1>(p, q, k);
          softmax::Slope<R, BT> slope;
          softmax::scale_or_cap(p, slope, args);
          const bool whole = mask::apply(p, visibility, look, at.first, c, k.valid, lane, edge);
          softmax::probabilities(p, reference, factor, whole);
          tile::finish_abt<0>(ds, d_o, v);
          v.release();
          softmax::gradient(ds, p, delta_row, whole);
          softmax::apply_slope(ds, slope);
          tile::multiply_ab<float>(d_q, one, ds, k, whole);
          k.release();
        }
      }
    }
  }
  if (lane.produces()) return;
  d_q.store(dQ + tile::first_row(at.b, at.h, args.Hq, args.Lq) * D, args.Hq * D, at.first, scale_row);
}
}

// The body
alignas(16) threadgroup flash::Element scratch[flash::SCRATCH];
flash::Arguments args;
args.Q = {Q, Q_strides[0], Q_strides[1], Q_strides[2]};
args.K = {K, K_strides[0], K_strides[1], K_strides[2]};
args.V = {V, V_strides[0], V_strides[1], V_strides[2]};
args.dO = {dO, dO_strides[0], dO_strides[1], dO_strides[2]};
args.L = L;
args.delta = delta;
args.scale = scale;
args.block_map = {block_map, block_map_strides};
args.block_bitmaps = block_bitmaps;
args.block_lists = {block_lists, block_lists_strides};
args.block_counts = {block_counts, block_counts_strides};
args.Hq = Q_shape[1];
args.Hk = K_shape[1];
args.Lq = Q_shape[2];
args.Lk = K_shape[2];
flash::backward_query(
    args, dQ, scratch, threadgroup_position_in_grid, thread_index_in_threadgroup);
