// flash_backward_key_value_float32_v64_p64_m384_d64_t32_h32_r16_c_threadgroup_dense_mask_float32_dropout

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
using Element = float;
constant constexpr int D = 64, DV = 64;
constant constexpr int BP = 64, BT = 32, BH = 32, R = 16;
constant constexpr int SLICES = 1;
constant constexpr int THREADS = 32 * BP / R;
constant constexpr int SCRATCH = 1032;
constant constexpr bool CAUSAL = false, HAS_WINDOW = 0;
constant constexpr bool ADDITIVE = true;
constant constexpr bool TRANSPOSED = 1;
using MaskElement = float;
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
  Strided<MaskElement> attention_mask;
  const constant uint* dropout_key;
  float survivor_scale;
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
template <int C> struct ColumnVector {
  Pair<float> at[C / 8];
};
template <int C> METAL_FUNC Pair<float> broadcast(thread const ColumnVector<C>& vector, int, int c) {
  return vector.at[c];
}
template <typename T, int R, int C> METAL_FUNC void clear(thread Tile<T, R, C>& tile) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) tile.at[i][c] = Pair<T>(T(0));
  }
}
template <typename T> METAL_FUNC Pair<T> read_pair(const device T* source) {
  const Run<T, 2> run = *(const device Run<T, 2>*)source;
  return Pair<T>(run.at[0], run.at[1]);
}
}
}
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
namespace flash {
namespace tile {
constant constexpr int MMA_ROWS = 1;
constant constexpr bool SPLIT = true;
constant constexpr int WIDE = 2, WIDE_ROWS = 2, DEEP = 1;
template <int GROUP> METAL_FUNC int fixed_part(int f) { return f / GROUP * GROUP * 8 + f % GROUP * 2; }
template <int GROUP> METAL_FUNC int lane_part(int columns, int f, int k) {
  const int fragments = min(GROUP, columns / 8 - f / GROUP * GROUP);
  return (k & ~1) * fragments + (k & 1);
}
METAL_FUNC int fixed_place(int f) { return fixed_part<WIDE_ROWS>(f); }
METAL_FUNC int lane_place(int rows, int f, int k) { return lane_part<WIDE_ROWS>(rows, f, k); }
METAL_FUNC int fixed_column(int f) { return fixed_part<WIDE>(f); }
METAL_FUNC int lane_column(int columns, int f, int k) { return lane_part<WIDE>(columns, f, k); }
METAL_FUNC int summed_column(int columns, int f, int k) {
  return f / DEEP * DEEP * 8 + f % DEEP + k * min(DEEP, columns / 8 - f / DEEP * DEEP);
}
struct Lane {
  int row, column;
  uint thread_index, simdgroup;
  static METAL_FUNC Lane of(uint thread_index) {
    const int lane = thread_index % 32;
    const int row = ((lane >> 2) & 4) + ((lane >> 1) & 3), column = ((lane >> 2) & 2) * 2 + (lane & 1) * 2;
    return {row, column, thread_index, thread_index / 32};
  }
  METAL_FUNC int slice() const thread { return 0; }
  METAL_FUNC bool produces() const thread { return false; }
  METAL_FUNC ushort holder(int k) const thread { return (thread_index % 32 & ~9u) | (k >> 1 & 1) | (k >> 2 & 1) << 3; }
};
template <typename To, typename From, int R, int C>
METAL_FUNC void narrow(thread Tile<To, R, C>& to, thread const Tile<From, R, C>& from) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) to.at[i][c] = Pair<To>(from.at[i][c]);
  }
}
METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(8)));
}
METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}
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
}
}
namespace flash {
namespace tile {
template <typename T> struct Memory {
  threadgroup T* scratch;
};
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  const device T* row[R / 8];
  int column;
  Pair<T> cached[R / 8][CACHED ? D / 8 : 1];
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
    return read_pair(row[i] + d * 8);
  }
  template <int H, int M> METAL_FUNC void read(int i, int begin, thread Pair<T> (&found)[M]) const thread {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) found[d] = read_pair(row[i] + (begin + d * 8));
  }
};
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
template <int BT, int H, typename T>
METAL_FUNC Run<Pair<T>, WIDE> from_threadgroup(const threadgroup T* scratch, int pitch, int t, int d, Lane lane) {
  const threadgroup T* own = scratch + (lane_place(BT, t, lane.row) * pitch + lane_column(H, d, lane.column));
  return side_by_side<WIDE>(own + (fixed_place(t) * pitch + fixed_column(d)), min(WIDE, H / 8 - d));
}
template <int BT, int H, typename T>
METAL_FUNC Run<Pair<T>, WIDE_ROWS> from_threadgroup_transposed(const threadgroup T* scratch, int t, int d, Lane lane) {
  const threadgroup T* own = scratch + (summed_column(H, d, lane.row) * BT + lane_place(BT, t, lane.column));
  return side_by_side<WIDE_ROWS>(own + fixed_place(t), min(WIDE_ROWS, BT / 8 - t));
}
METAL_FUNC void block_barrier() {
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
template <int H, int N> struct Share {
  static constant constexpr const int RUNS = H / N;
  static constant constexpr const int SLOTS =
      RUNS <= 1 ? 1 : RUNS <= 2 ? 2 : RUNS <= 4 ? 4 : RUNS <= 8 ? 8 : RUNS <= 16 ? 16 : 32;
  int row, column;
  static METAL_FUNC Share of(Lane lane) {
    return {int(lane.thread_index / uint(SLOTS)), int(lane.thread_index % uint(SLOTS)) * N};
  }
};
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
#pragma clang loop unroll_count(8)
  for (int pass = 0; pass < PASSES; pass++, at = b.rows_on(at, TRANSPOSED ? -STEP : STEP)) {
    const int n = TRANSPOSED ? PASSES - 1 - pass : pass;
    if ((RUNS < SLOTS && c >= H) || (BT % STEP != 0 && row0 + n * STEP >= BT)) continue;
    Run<T, N> values = {};
    if (b.valid == BT || n * STEP < b.valid - row0) values = b.run(at);
    if constexpr (TRANSPOSED) {
#pragma clang loop unroll(full)
      for (int e = 0; e < N; e++) (b.scratch + (c * BT + row0))[e * BT + n * STEP] = values.at[e];
    } else {
      *(threadgroup Run<T, N>*)(b.scratch + (row0 * B::HEAD_BLOCK + c) + n * STEP * B::HEAD_BLOCK) = values;
    }
  }
  block_barrier();
}
template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 16 / sizeof(T), COPYING_THREADS = THREADS;
  const device T* head;
  using Place = const device T*;
  Place copied;
  threadgroup T* scratch;
  long stride;
  int valid;
  bool edge;
  Lane lane;
  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }
  METAL_FUNC void go_to(const device T* begin) thread {
    const Place corner = begin;
    const Share<BH, RUN> share = Share<BH, RUN>::of(lane);
    copied = rows_on(corner, share.row) + share.column;
  }
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h);
    stride = view.row_stride<T>();
  }
  METAL_FUNC void next_head(thread const View& view) thread { head = view.next<T>(head); }
  METAL_FUNC void start(int row) thread { go_to(head + (row - BT) * stride); }
  METAL_FUNC void pass() thread {
    copied = rows_on(copied, BT);
  }
  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    pass();
    valid = edge ? min(BT, end - row) : BT;
  }
  METAL_FUNC bool far() const thread { return false; }
  METAL_FUNC Place rows_on(Place at, int rows) const thread { return at + rows * stride; }
  METAL_FUNC const device T* pointer(Place at) const thread { return at; }
  METAL_FUNC void release() thread {}
  template <int H> METAL_FUNC Place share(int column) const thread {
    if constexpr (H == BH) return copied + column;
    const Share<BH, RUN> all = Share<BH, RUN>::of(lane);
    const Share<H, RUN> own = Share<H, RUN>::of(lane);
    return rows_on(copied, own.row - all.row) + (column + own.column - all.column);
  }
  METAL_FUNC Run<T, RUN> run(Place at) const thread { return *(const device Run<T, RUN>*)pointer(at); }
  METAL_FUNC const threadgroup T* source(int) const thread { return scratch; }
  METAL_FUNC const threadgroup T* next(const threadgroup T* source) const thread { return source; }
  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(const threadgroup T*, int t, int, int d, bool = true) const thread {
    return from_threadgroup<BT, H>(scratch, BH, t, d, lane);
  }
  template <int H> METAL_FUNC Run<Pair<T>, WIDE_ROWS> transposed_group(int t, int d) const thread {
    return from_threadgroup_transposed<BT, H>(scratch, t, d, lane);
  }
};
template <typename A, typename B> METAL_FUNC bool produce(thread A&, thread B&, int, int) { return false; }
METAL_FUNC void await_rows(Lane) {}
}
}
namespace flash {
namespace tile {
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  device float* page;
  int row, column;
  int rows;
  template <typename Out> METAL_FUNC void open(device Out* head, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    row = lane.row;
    column = lane.column;
    if constexpr (!CACHED) page = own((device float*)head, first);
    for (int i = 0; i < R / 8; i++) {
      if (!exists(i)) continue;
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) {
        const int begin = d * 8 / BH * BH;
        set(i, begin, min(BH, D - begin), d - begin / 8, Pair<float>(0));
      }
    }
  }
  template <typename Out> METAL_FUNC device Out* own(device Out* head, int first) const thread {
    return head + (long(first + row) * D + lane_column(8 * WIDE, 0, column));
  }
  METAL_FUNC int at(int i, int columns, int f) const thread {
    return i * 8 * D + fixed_column(f) + (lane_column(columns, f, column) - lane_column(8 * WIDE, 0, column));
  }
  METAL_FUNC bool exists(int i) const thread { return CACHED || i * 8 < rows; }
  METAL_FUNC Pair<float> get(int i, int begin, int columns, int f) const thread {
    return *(const device Pair<float>*)(page + begin + at(i, columns, f));
  }
  METAL_FUNC void set(int i, int begin, int columns, int f, Pair<float> value) thread {
    if (!CACHED) *(device Pair<float>*)(page + begin + at(i, columns, f)) = value;
  }
  METAL_FUNC Pair<float> get(int i, int d) const thread {
    const int begin = d * 8 / BH * BH;
    return exists(i) ? get(i, begin, min(BH, D - begin), d - begin / 8) : Pair<float>(0);
  }
  template <typename Out>
  METAL_FUNC void store(device Out* head, int, int first, RowVector<R> factor) const thread {
    device Out* out;
    if constexpr (!CACHED) out = (device Out*)page;
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 >= rows) continue;
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) {
        const int begin = d * 8 / BH * BH;
        const Pair<float> value = get(i, d) * factor.at[i];
        Run<Out, 2> run = {Out(value[0]), Out(value[1])};
        *(device Run<Out, 2>*)(out + begin + at(i, min(BH, D - begin), d - begin / 8)) = run;
      }
    }
  }
};
}
}
namespace flash {
namespace tile {
template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void head_block_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  load_to_threadgroup<BT, H, true>(b, column);
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d++) {
    Pair<T> rows[R / 8];
    for (int i = 0; i < R / 8; i++) rows[i] = a.fragment(i, column / 8 + d);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t += WIDE_ROWS) {
      if (b.valid < BT && t * 8 >= b.valid) continue;
      const Run<Pair<T>, WIDE_ROWS> group = b.template transposed_group<H>(t, d);
#pragma clang loop unroll(full)
      for (int j = 0; j < min(WIDE_ROWS, BT / 8 - t); j++) {
        if (b.valid < BT && fixed_place(t + j) >= b.valid) continue;
        for (int i = 0; i < R / 8; i++) multiply(s.at[i][t + j], rows[i], group.at[j]);
      }
    }
  }
}
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
template <typename T> METAL_FUNC uint2 not_finite(Pair<T> pair) {
  return ((as_type<uint2>(pair) & 0x7fffffffu) + 0x800000u) & 0x80000000u;
}
template <typename T> METAL_FUNC Pair<T> without(Pair<T> pair, uint2 bad) {
  return select(pair, Pair<T>(0), bad != 0u);
}
METAL_FUNC uint any_of(uint2 bits) { return bits.x | bits.y; }
template <int H, bool FINITE, typename Narrow, int R, typename P, typename B, typename Source>
METAL_FUNC uint add_fragment(
    thread Pair<float> (&block)[R / 8][H / 8], thread Pair<P> const (&p)[R / 8], thread const B& b, Source at, int t,
    int column, bool exists = true) {
  using Element = typename B::Element;
  uint found = 0;
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d += WIDE) {
    const Run<Pair<Element>, WIDE> group = b.template group<H>(at, t, column, d, exists);
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
template <int H, bool FINITE, typename Narrow, typename P, int R, int BT, typename B>
METAL_FUNC bool add_product(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
  uint found = 0;
  auto at = b.source(b.lane.row);
  Pair<P> rows[R / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++, at = b.next(at)) {
    if (b.valid < BT && fixed_place(t) >= b.valid) continue;
    for (int i = 0; i < R / 8; i++) rows[i] = p.at[i][t];
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, at, t, column);
  }
  return FINITE && simd_any(found != 0);
}
template <int H, typename P, int R, int BT, typename B>
METAL_FUNC void add_not_finite(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
#pragma clang loop unroll(disable)
  for (int t = 0; t < BT / 8; t++) {
    Pair<P> weights[R / 8];
    pick(weights, p, t);
#pragma clang loop unroll(disable)
    for (int k = 0; k < 8; k++) {
      B row = b;
      row.lane.row = k;
#pragma clang loop unroll(full)
      for (int d = 0; d < H / 8; d += WIDE) {
        const auto group = row.template group<H>(b.source(t * 8 + k), t, column, d, t * 8 + k < b.valid);
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
template <int H, typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void head_block_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    int column, bool whole) {
  load_to_threadgroup<BT, H, false>(b, column);
  Pair<float> block[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) block[i][d] = Pair<float>(0);
  }
  if (!CACHED) simdgroup_barrier(mem_flags::mem_none);
  if (whole && !b.edge) {
    add_product<H, false, Narrow>(block, p, b, column);
  } else if (add_product<H, true, Narrow>(block, p, b, column)) {
    add_not_finite<H>(block, p, b, column);
  }
  if (!CACHED) simdgroup_barrier(mem_flags::mem_none);
  for (int i = 0; i < R / 8; i++) {
    if (!c.exists(i)) continue;
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) {
      block[i][d] += c.get(i, column, H, d) * factor.at[i];
      c.set(i, column, H, d, block[i][d]);
    }
  }
}
template <typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    bool whole) {
  constexpr int FULL = D / BH * BH, REST = D - FULL;
  if constexpr (!CACHED) {
#pragma clang loop unroll(disable)
    for (int column = 0; column < FULL; column += BH) head_block_ab<BH, Narrow>(c, factor, p, b, column, whole);
  }
  if constexpr (REST > 0) head_block_ab<REST, Narrow>(c, factor, p, b, FULL, whole);
}
}
}
namespace flash {
namespace tile {
template <typename S, typename A, typename B> METAL_FUNC void begin_abt(thread S&, thread const A&, thread const B&) {}
template <int LATER, typename S, typename A, typename B>
METAL_FUNC void finish_abt(thread S& s, thread const A& a, thread const B& b) {
  multiply_abt(s, a, b);
}
template <int BP, int D> struct PingPong {
  METAL_FUNC void open(Lane) thread {}
  METAL_FUNC void wait() thread {}
  METAL_FUNC void arrive() thread {}
};
}
}
namespace flash {
template <typename T> METAL_FUNC T fast_exp2(T x) { return fast::exp2(x); }
namespace softmax {
METAL_FUNC float factor_of(float) { return M_LOG2E_F; }
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
  const device MaskElement* mask;
  long mask_head, mask_row, mask_column;
  METAL_FUNC void open(thread const Arguments& args, int b) thread {
    queries = args.Lq;
    rows = queries;
    keys = args.Lk;
  }
  METAL_FUNC void open_head(thread const Arguments& args, int b, int h, int row) thread {
    const constant int64_t* mask_strides = args.attention_mask.strides;
    mask = args.attention_mask.at + b * mask_strides[0] + h * mask_strides[1];
    mask_head = mask_strides[1];
    mask_row = mask_strides[2];
    mask_column = mask_strides[3];
  }
  METAL_FUNC void open_rows(int begin, int end, tile::Lane lane) thread {
  }
  METAL_FUNC int query_of(int row) const thread { return row; }
  METAL_FUNC int head_of(int) const thread { return 0; }
  METAL_FUNC int shift_of_query(int) const thread { return keys - queries; }
  METAL_FUNC int shift_of_key(int) const thread { return keys - queries; }
  METAL_FUNC int least_shift() const thread { return keys - queries; }
  METAL_FUNC int largest_shift() const thread { return keys - queries; }
  METAL_FUNC MaskElement mask_at(int row, int j) const thread {
    return mask[head_of(row) * mask_head + query_of(row) * mask_row + j * mask_column];
  }
  METAL_FUNC float bias(int row, int j) const thread {
    float sum = 0;
    sum += float(mask_at(row, j));
    return sum;
  }
  METAL_FUNC Range queries_at(int first, int last) const thread {
    Range seen = {0, queries};
    if (CAUSAL) seen.begin = max(0, first);
    return seen;
  }
  METAL_FUNC Range queries_of(int first_key, int last_key) const thread {
    return queries_at(first_key - largest_shift(), min(last_key, keys - 1) - least_shift());
  }
  METAL_FUNC Range seen_by(int key) const thread {
    if (key >= keys) return {0, 0};
    return queries_at(key - shift_of_key(key), key - shift_of_key(key));
  }
  METAL_FUNC int ranges() const thread {
    return 1;
  }
  METAL_FUNC Range range(thread int& n, Range within) thread {
    return within;
  }
  METAL_FUNC void look_at(int begin, int end, tile::Lane lane) thread {
  }
  METAL_FUNC bool skip() const thread {
    return false;
  }
  METAL_FUNC bool edge_of(Range range, int first, int last, int place, tile::Lane lane) thread {
    look_at(place, min(place + BT * SLICES, range.end), lane);
    if (!tile::SPLIT || place + BT > range.end) return true;
    return !covers(place, place + BT - 1, first, min(last, keys - 1));
  }
  METAL_FUNC bool covers(int first_query, int last_query, int first_key, int last_key) const thread {
    if (last_query >= queries || last_key >= keys) return false;
    const int nearest = first_key - last_query - largest_shift(), farthest = last_key - first_query - least_shift();
    if (CAUSAL && farthest > 0) return false;
    return true;
  }
};
}
}
namespace flash {
namespace mask {
constant constexpr int SIMDGROUPS = BP / R;
constant constexpr int VOTES = 2 * SIMDGROUPS * sizeof(uint) / sizeof(Element);
template <int ROWS, int C> struct Look {
  static_assert(C <= 128, "a word has a bit for each of a lane's elements of a row");
  uint shown[ROWS / 8];
  bool all;
  int turn = 0;
  METAL_FUNC bool shows(int i, int c, int e) const thread { return (shown[i] >> (2 * c + e) & 1) != 0; }
  METAL_FUNC bool at(
      thread const Visibility& visibility, int first_row, int first_column, int end, bool edge,
      threadgroup Element* scratch, tile::Lane lane) thread {
    uint some = 0;
    all = true;
    for (int i = 0; i < ROWS / 8; i++) {
      const int last = max(0, (TRANSPOSED ? visibility.keys : visibility.rows) - 1);
      const int row = min(first_row + i * 8 + lane.row, last);
      shown[i] = 0;
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) {
        for (int e = 0; e < 2; e++) {
          const int column = first_column + tile::lane_place(C, c, lane.column) + tile::fixed_place(c) + e;
          if (edge && column >= end) continue;
          const MaskElement value = TRANSPOSED ? visibility.mask_at(column, row) : visibility.mask_at(row, column);
          const bool visible = ADDITIVE ? !(float(value) == -INFINITY) : value != MaskElement(0);
          shown[i] |= uint(visible) << (2 * c + e);
          all = all && visible;
        }
      }
      some |= shown[i];
    }
    all = simd_all(all);
    const bool any = simd_any(some != 0);
    if (SIMDGROUPS > 1) return any_votes(any, scratch, lane);
    return any;
  }
  METAL_FUNC bool any_votes(bool any, threadgroup Element* scratch, tile::Lane lane) thread {
    threadgroup uint* votes = (threadgroup uint*)(scratch + (SCRATCH - VOTES)) + turn * SIMDGROUPS;
    turn = 1 - turn;
    if (lane.thread_index % 32 == 0) votes[lane.simdgroup] = any;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    bool found = false;
    for (int n = 0; n < SIMDGROUPS; n++) found = found || votes[n] != 0;
    return found;
  }
};
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
  const bool whole = covered && look.all;
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
        const int column = min(own_column, last_column);
        const int query = TRANSPOSED ? column : row, key = TRANSPOSED ? row : column;
        bool visible = !edge || ((!BEGINS || fixed >= begin - own) && fixed < end - own);
        visible = visible && look.shows(i, c, e);
        const float bias = visibility.bias(query, key);
        visible = (int(visible) & int(bias != -INFINITY)) != 0;
        s.at[i][c][e] = visible ? s.at[i][c][e] + bias : -INFINITY;
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
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] *= args.scale;
  }
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
template <int COUNT, int C>
METAL_FUNC tile::Pair<float> columns_of(const device float* source, int c, int rows, tile::Lane lane, bool edge) {
  const int fixed = tile::fixed_place(c), own = tile::lane_place(C, c, lane.column), last = rows - 1 - own;
  if (edge && fixed >= last) return tile::Pair<float>((source + COUNT * own)[COUNT * min(fixed, last)]);
  return tile::Pair<float>((source + COUNT * own)[COUNT * fixed], (source + COUNT * own)[COUNT * (fixed + 1)]);
}
template <int R, int C>
METAL_FUNC void probabilities(
    thread tile::Tile<float, R, C>& s, const device float* statistics, int rows, float factor, bool whole,
    tile::Lane lane, bool edge) {
#pragma clang loop unroll(full)
  for (int c = 0; c < C / 8; c++) {
    Reference<tile::ColumnVector<8>> reference;
    reference.set(
        0, columns_of<2, C>(statistics, c, rows, lane, edge), columns_of<2, C>(statistics + 1, c, rows, lane, edge));
    for (int i = 0; i < R / 8; i++) s.at[i][c] = probability(s.at[i][c], reference, i, 0, factor, whole);
  }
}
template <int R, int C>
METAL_FUNC void gradient(
    thread tile::Tile<float, R, C>& dp, thread const tile::Tile<float, R, C>& p, const device float* delta, int rows,
    bool whole, tile::Lane lane, bool edge) {
#pragma clang loop unroll(full)
  for (int c = 0; c < C / 8; c++) {
    const tile::Pair<float> column = columns_of<1, C>(delta, c, rows, lane, edge);
    for (int i = 0; i < R / 8; i++) dp.at[i][c] = score_gradient(dp.at[i][c], p.at[i][c], column, whole);
  }
}
template <int R, int C> METAL_FUNC void apply_slope(thread tile::Tile<float, R, C>&, thread const Slope<R, C>&) {}
}
}
namespace flash {
namespace dropout {
METAL_FUNC uint philox(uint x, uint y, uint key) {
  for (int round = 0; round < 10; round++) {
    const uint high = mulhi(x, 0xD256D193u), low = x * 0xD256D193u;
    x = high ^ key ^ y;
    y = low;
    key += 0x9E3779B9u;
  }
  return x;
}
struct Dropout {
  uint key, threshold;
  float scale;
  METAL_FUNC void open(thread const Arguments& args, int b, int h) thread {
    key = philox(b * args.Hq + h, args.dropout_key[1], args.dropout_key[0]);
    threshold = args.dropout_key[2];
    scale = args.survivor_scale;
  }
};
template <int R, int C>
METAL_FUNC void apply(
    thread tile::Tile<float, R, C>& p, thread const Dropout& dropout, int first_query, int first_key,
    tile::Lane lane) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      for (int e = 0; e < 2; e++) {
        const int row = i * 8 + lane.row, column = tile::fixed_place(c) + tile::lane_place(C, c, lane.column) + e;
        const uint word = philox(
            first_query + (TRANSPOSED ? column : row), first_key + (TRANSPOSED ? row : column), dropout.key);
        p.at[i][c][e] = word < dropout.threshold ? 0 : p.at[i][c][e] * dropout.scale;
      }
    }
  }
}
}
}
namespace flash {
constant constexpr bool CACHE_K = false, CACHE_V = false, CACHE_DK = false, CACHE_DV = false;
template <typename OutK = float, typename OutV = float>
METAL_FUNC void backward_key_value(
    thread const Arguments& args,
    device OutK* dK,
    device OutV* dV,
    threadgroup Element* scratch, uint3 position, uint thread_index) {
  const tile::Lane lane = tile::Lane::of(thread_index);
  const int h_k = position.y, b = position.z, group = args.Hq / args.Hk, Lq = args.Lq, Lk = args.Lk;
  const int block = int(position.x) * BP, first = block + int(lane.simdgroup) * R;
  const long row0 = (long(b) * args.Hk + h_k) * Lk;
  const int step = 1;
  tile::Memory<Element> memory = {scratch};
  const float factor = softmax::factor_of(args.scale);
  tile::Rows<Element, BP, R, D, CACHE_K> k;
  tile::Traversed<Element, BT, D, BH, THREADS> q;
  tile::Traversed<Element, BT, DV, BH, THREADS> d_o;
  k.open(args.K, b, h_k, first, Lk, memory, lane);
  tile::Rows<Element, BP, R, DV, CACHE_V> v;
  tile::Accumulator<R, D, BH, CACHE_DK> d_k;
  v.open(args.V, b, h_k, first, Lk, memory, lane);
  d_k.open(dK + row0 * D, first, Lk, lane);
  tile::Accumulator<R, DV, BH, CACHE_DV> d_v;
  d_v.open(dV + row0 * DV, first, Lk, lane);
  q.open(memory, lane);
  d_o.open(memory, lane);
  tile::RowVector<R> one, scale_row;
  for (int i = 0; i < R / 8; i++) {
    one.at[i] = 1;
    scale_row.at[i] = args.scale;
  }
  mask::Visibility visibility;
  visibility.open(args, b);
  visibility.open_rows(block, min(block + BP, Lk), lane);
  mask::Look<R, BT> look;
  tile::await_rows(lane);
  const mask::Range seeing = visibility.queries_of(block, block + BP - 1);
  const int first_head = h_k * group;
  long statistics0 = (long(b) * args.Hq + first_head) * Lq;
  q.view(args.Q, b, first_head);
  d_o.view(args.dO, b, first_head);
  for (int n = 0; n < group; n++, statistics0 += Lq, q.next_head(args.Q), d_o.next_head(args.dO)) {
    const int h = first_head + n;
    visibility.open_head(args, b, h, block);
    dropout::Dropout drop;
    drop.open(args, b, h);
    for (int run = 0; run < visibility.ranges(); run++) {
      const mask::Range range = visibility.range(run, seeing);
      for (int r = range.begin; r < range.end;) {
        q.start(r);
        d_o.start(r);
#pragma clang loop unroll(full)
        for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
          for (; r < range.end; r += BT) {
            const bool at_edge = visibility.edge_of(range, block, block + BP - 1, r, lane) || q.far() || d_o.far();
            if (at_edge != (edge == 1)) break;
            bool shown = !visibility.skip();
            shown = shown && look.at(visibility, first, r, range.end, edge == 1, scratch, lane);
            if (!shown) {
              q.pass();
              d_o.pass();
              continue;
            }
            if (tile::produce(q, d_o, r, range.end)) continue;
            q.acquire(r, range.end, edge);
            d_o.acquire(r, range.end, edge);
            tile::Tile<float, R, BT> p;
            tile::multiply_abt(p, k, q);
            softmax::Slope<R, BT> slope;
            softmax::scale_or_cap(p, slope, args);
            const bool whole = mask::apply(p, visibility, look, r, first, q.valid, lane, edge);
            softmax::probabilities(p, args.L + 2 * (statistics0 + r), Lq - r, factor, whole, lane, edge);
            tile::Tile<float, R, BT> kept = p;
            dropout::apply(kept, drop, r, first, lane);
            tile::multiply_ab<Element>(d_v, one, kept, d_o, whole);
            tile::Tile<float, R, BT> ds;
            tile::multiply_abt(ds, v, d_o);
            d_o.release();
            dropout::apply(ds, drop, r, first, lane);
            softmax::gradient(ds, p, args.delta + (statistics0 + r), Lq - r, whole && !edge, lane, edge);
            softmax::apply_slope(ds, slope);
            tile::multiply_ab<float>(d_k, one, ds, q, whole);
            q.release();
          }
        }
      }
    }
  }
  if (lane.produces()) return;
  d_k.store(dK + row0 * D, step * D, first, scale_row);
  d_v.store(dV + row0 * DV, step * DV, first, one);
}
}
[[max_total_threads_per_threadgroup(384)]]

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
args.attention_mask = {attention_mask, attention_mask_strides};
args.dropout_key = dropout_key;
args.survivor_scale = survivor_scale;
args.Hq = Q_shape[1];
args.Hk = K_shape[1];
args.Lq = Q_shape[2];
args.Lk = K_shape[2];
flash::backward_key_value(
    args, dK, dV, scratch, threadgroup_position_in_grid, thread_index_in_threadgroup);
