// flash_forward_float16_v64_p16_m0_d64_t128_h64_r8_cQO_direct_causal

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
}
namespace flash {
using Element = half;
constant constexpr int D = 64, DV = 64;
constant constexpr int BP = 16, BT = 128, BH = 64, R = 8;
constant constexpr int SLICES = 1;
constant constexpr int THREADS = 32 * BP / R;
constant constexpr int SCRATCH = 1;
constant constexpr bool CAUSAL = true, HAS_WINDOW = 0;
constant constexpr bool ADDITIVE = false;
constant constexpr bool TRANSPOSED = 0;
}
namespace flash {
struct Arguments {
  View Q;
  View K;
  View V;
  float scale;
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
constant constexpr int WIDE = 4, WIDE_ROWS = 1, DEEP = 8;
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
template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 16 / sizeof(T), COPYING_THREADS = THREADS;
  const device T* head;
  using Place = const device T*;
  Place across, down;
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
    across = rows_on(corner, lane.row) + lane_column(8 * WIDE, 0, lane.column);
    down = rows_on(corner, lane.column) + lane.row * DEEP;
  }
  METAL_FUNC void view(thread const View& view, int b, int h) thread {
    head = view.head<T>(b, h);
    stride = view.row_stride<T>();
  }
  METAL_FUNC void next_head(thread const View& view) thread { head = view.next<T>(head); }
  METAL_FUNC void start(int row) thread { go_to(head + (row - BT) * stride); }
  METAL_FUNC void pass() thread {
    across = rows_on(across, BT);
    down = rows_on(down, BT);
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
  METAL_FUNC Place source(int row) const thread { return rows_on(across, row - lane.row); }
  METAL_FUNC Place next(Place source) const thread { return rows_on(source, 8); }
  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(Place at, int t, int column, int d, bool exists = true) const thread {
    if (!exists) return {};
    const int narrower = lane_column(H, d, lane.column) - lane_column(8 * WIDE, 0, lane.column);
    return pairs<T, WIDE>(pointer(at + (column + fixed_column(d) + narrower)), min(WIDE, H / 8 - d));
  }
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
};
template <typename A, typename B> METAL_FUNC bool produce(thread A&, thread B&, int, int) { return false; }
METAL_FUNC void await_rows(Lane) {}
}
}
namespace flash {
namespace tile {
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  Pair<float> cached[R / 8][CACHED ? D / 8 : 1];
  int row, column;
  int rows;
  template <typename Out> METAL_FUNC void open(device Out* head, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    row = lane.row;
    column = lane.column;
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
    if constexpr (CACHED) return cached[i][begin / 8 + f];
  }
  METAL_FUNC void set(int i, int begin, int columns, int f, Pair<float> value) thread {
    if constexpr (CACHED) cached[i][begin / 8 + f] = value;
  }
  METAL_FUNC void rescale(thread RowVector<R>& factor) thread {
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) cached[i][d] *= factor.at[i];
      factor.at[i] = 1;
    }
  }
  METAL_FUNC Pair<float> get(int i, int d) const thread {
    const int begin = d * 8 / BH * BH;
    return exists(i) ? get(i, begin, min(BH, D - begin), d - begin / 8) : Pair<float>(0);
  }
  template <typename Out>
  METAL_FUNC void store(device Out* head, int, int first, RowVector<R> factor) const thread {
    device Out* out;
    if constexpr (CACHED) out = own(head, first);
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
template <int H, int R, typename T, typename B, typename Place>
METAL_FUNC void direct_fragment(
    thread Pair<float> (&s)[R / 8], thread Pair<T> const (&rows)[R / 8][H / 8], thread const B& b,
    Place first, Place second, int column, int existing) {
  constexpr int FULL = H / 8 / DEEP * DEEP, REST = H / 8 - FULL;
#pragma clang loop unroll(full)
  for (int d = 0; d < FULL; d += DEEP) {
    const Run<Pair<T>, DEEP> group = b.template deep_group<DEEP>(first, second, column + d * 8, existing);
#pragma clang loop unroll(full)
    for (int j = 0; j < DEEP; j++) {
      for (int i = 0; i < R / 8; i++) multiply(s[i], rows[i][d + j], group.at[j]);
    }
  }
  if constexpr (REST > 0) {
    const Run<Pair<T>, REST> group = b.template deep_group<REST>(first, second, column + FULL * 8, existing);
#pragma clang loop unroll(full)
    for (int j = 0; j < REST; j++) {
      for (int i = 0; i < R / 8; i++) multiply(s[i], rows[i][FULL + j], group.at[j]);
    }
  }
}
template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void head_block_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  Pair<T> rows[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) a.template fragments<H>(i, column, rows[i]);
  auto at = b.down;
  Pair<float> sum[R / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++, at = b.next(at)) {
    if (b.valid < BT && t * 8 + 8 > b.valid) continue;
    for (int i = 0; i < R / 8; i++) sum[i] = s.at[i][t];
    direct_fragment<H, R>(sum, rows, b, at, b.rows_on(at, 1), column, 2);
    for (int i = 0; i < R / 8; i++) s.at[i][t] = sum[i];
  }
  if (b.valid % 8 == 0) return;
  const int last = b.valid / 8;
  at = b.rows_on(b.down, last * 8);
  pick(sum, s, last);
  direct_fragment<H, R>(sum, rows, b, at, b.rows_on(at, 1), column, b.valid - last * 8 - b.lane.column);
  put(s, sum, last);
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
template <typename T> METAL_FUNC uint not_finite(Pair<T> pair) {
  const uint step = 0x80008000u - as_type<uint>(Pair<T>(T(INFINITY)));
  return ((as_type<uint>(pair) & 0x7fff7fffu) + step) & 0x80008000u;
}
template <typename T> METAL_FUNC Pair<T> without(Pair<T> pair, uint bad) {
  return as_type<Pair<T>>(as_type<uint>(pair) & ~((bad >> 15) * 0xffffu));
}
METAL_FUNC uint any_of(uint bits) { return bits; }
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
    if (b.valid < BT && t * 8 + 8 > b.valid) continue;
    for (int i = 0; i < R / 8; i++) rows[i] = p.at[i][t];
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, at, t, column);
  }
  if (b.valid % 8 != 0) {
    const int last = b.valid / 8, row = last * 8 + b.lane.row;
    pick(rows, p, last);
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, b.source(row), last, column, row < b.valid);
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
  Pair<float> block[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) block[i][d] = Pair<float>(0);
    if (!c.exists(i)) continue;
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) block[i][d] = c.get(i, column, H, d) * factor.at[i];
  }
  if (whole && !b.edge) {
    add_product<H, false, Narrow>(block, p, b, column);
  } else if (add_product<H, true, Narrow>(block, p, b, column)) {
    add_not_finite<H>(block, p, b, column);
  }
  for (int i = 0; i < R / 8; i++) {
    if (!c.exists(i)) continue;
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) {
      c.set(i, column, H, d, block[i][d]);
    }
  }
}
template <typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    bool whole) {
  constexpr int FULL = D / BH * BH, REST = D - FULL;
  if constexpr (CACHED) {
#pragma clang loop unroll(full)
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
  METAL_FUNC void open(thread const Arguments& args, int b) thread {
    queries = args.Lq;
    rows = queries;
    keys = args.Lk;
  }
  METAL_FUNC void open_head(thread const Arguments& args, int b, int h, int row) thread {
  }
  METAL_FUNC void open_rows(int begin, int end, tile::Lane lane) thread {
  }
  METAL_FUNC int query_of(int row) const thread { return row; }
  METAL_FUNC int shift_of_query(int) const thread { return keys - queries; }
  METAL_FUNC int least_shift() const thread { return keys - queries; }
  METAL_FUNC int largest_shift() const thread { return keys - queries; }
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
    return !covers(first, min(last, rows - 1), place, place + BT - 1);
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
  for (int i = 0; i < R / 8; i++) {
    const int own_row = first_row + i * 8 + lane.row;
    const Range seen = visibility.seen_by(own_row);
    const int begin = seen.begin - first_column, end = min(seen.end - first_column, valid);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const int own = tile::lane_place(C, c, lane.column);
      for (int e = 0; e < 2; e++) {
        const int fixed = tile::fixed_place(c) + e;
        bool visible = !edge || ((!BEGINS || fixed >= begin - own) && fixed < end - own);
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
constant constexpr float LATE = 8;
template <int R> struct State {
  float largest[R / 8];
  float m[R / 8];
  float l[R / 8];
  METAL_FUNC void clear() thread {
    for (int i = 0; i < R / 8; i++) {
      m[i] = -INFINITY;
      l[i] = 0;
      largest[i] = m[i];
    }
  }
  METAL_FUNC void finish() thread {
    for (int i = 0; i < R / 8; i++) {
      l[i] = tile::row_sum(l[i]);
      largest[i] = tile::row_max(largest[i]);
    }
  }
};
constant constexpr float LARGEST_OFFSET = 1024;
template <int R, int C>
METAL_FUNC tile::RowVector<R> fuse(thread tile::Tile<float, R, C>& s, tile::RowVector<R> m, float factor) {
  tile::RowVector<R> offset;
  bool small = true;
  for (int i = 0; i < R / 8; i++) {
    offset.at[i] = m.at[i] * factor;
    small = small && abs(offset.at[i]) < LARGEST_OFFSET;
  }
  if (simd_all(small)) return offset;
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] -= m.at[i];
    offset.at[i] = 0;
  }
  return offset;
}
METAL_FUNC bool stays(float m, float largest, float factor) {
  return abs(m * factor) < LARGEST_OFFSET && fma(largest, factor, -(m * factor)) <= LATE;
}
template <int R, int C, typename O>
METAL_FUNC tile::RowVector<R> step(
    thread tile::Tile<float, R, C>& s, thread State<R>& state, thread O& o, float factor) {
  tile::RowVector<R> correction, offset;
  bool kept = true;
  for (int i = 0; i < R / 8; i++) {
    tile::Pair<float> most(-INFINITY);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) most = select(most, s.at[i][c], most < s.at[i][c]);
    state.largest[i] = max(state.largest[i], max(most[0], most[1]));
    correction.at[i] = 1;
    offset.at[i] = state.m[i] * factor;
    kept = kept && stays(state.m[i], state.largest[i], factor);
  }
  if (!simd_all(kept)) {
    for (int i = 0; i < R / 8; i++) {
      const float before = state.m[i], largest = tile::row_max(state.largest[i]);
      state.m[i] = stays(before, largest, factor) ? before : largest;
      float reference = state.m[i] == -INFINITY ? 0 : state.m[i];
      correction.at[i] = fast_exp2(exponent(before, reference, factor));
      state.l[i] *= correction.at[i];
      offset.at[i] = reference * factor;
      if (abs(offset.at[i]) < LARGEST_OFFSET) reference = 0;
      else offset.at[i] = 0;
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) s.at[i][c] -= reference;
    }
    o.rescale(correction);
  }
  for (int i = 0; i < R / 8; i++) {
    float sum = 0;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      s.at[i][c] = fast_exp2(fma(s.at[i][c], tile::Pair<float>(factor), tile::Pair<float>(-offset.at[i])));
      sum += s.at[i][c][0] + s.at[i][c][1];
    }
    state.l[i] += sum;
  }
  return correction;
}
METAL_FUNC void store_statistics(device float* to, float largest, float m, float l, float factor) {
  to[0] = l == 0 ? -INFINITY : largest;
  to[1] = l == 0 ? 0 : log2(l) + (largest == m ? 0 : (m - largest) * factor);
}
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
constant constexpr bool CACHE_Q = true, CACHE_O = true;
template <typename Out>
METAL_FUNC void forward(
    thread const Arguments& args, device Out* O, device float* L, threadgroup Element* scratch, uint3 position,
    uint thread_index) {
  const tile::Lane lane = tile::Lane::of(thread_index);
  const QueryBlock at = QueryBlock::of(args, position, lane);
  tile::Memory<Element> memory = {scratch};
  tile::Rows<Element, BP, R, D, CACHE_Q> q;
  tile::Traversed<Element, BT, D, BH, THREADS> k;
  tile::Traversed<Element, BT, DV, BH, THREADS> v;
  tile::Accumulator<R, DV, BH, CACHE_O> o;
  softmax::State<R> state;
  const float factor = softmax::factor_of(args.scale);
  q.open(args.Q, at.b, at.h, at.first, args.Lq, memory, lane);
  k.open(memory, lane);
  k.view(args.K, at.b, at.h_k);
  v.open(memory, lane);
  v.view(args.V, at.b, at.h_k);
  o.open(O + at.row0 * DV, at.first, args.Lq, lane);
  state.clear();
  mask::Visibility visibility;
  visibility.open(args, at.b);
  visibility.open_head(args, at.b, at.h, at.block);
  visibility.open_rows(at.block, min(at.block + BP, args.Lq), lane);
  mask::Look<R, BT> look;
  tile::await_rows(lane);
  tile::PingPong<BP, DV> ping_pong;
  ping_pong.open(lane);
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
          tile::Tile<float, R, BT> s;
          tile::begin_abt(s, q, k);
          ping_pong.arrive();
          tile::finish_abt<0>(s, q, k);
          k.release();
          softmax::Slope<R, BT> slope;
          softmax::scale_or_cap(s, slope, args);
          const bool whole = mask::apply(s, visibility, look, at.first, c, k.valid, lane, edge);
          const tile::RowVector<R> correction = softmax::step(s, state, o, factor);
          tile::Tile<Element, R, BT> p;
          tile::narrow(p, s);
          v.acquire(c, range.end, edge);
          ping_pong.wait();
          tile::multiply_ab<Element>(o, correction, p, v, whole);
          v.release();
        }
      }
    }
  }
  if (lane.produces()) return;
  state.finish();
  ping_pong.arrive();
  tile::RowVector<R> normaliser;
  for (int i = 0; i < R / 8; i++) {
    const int row = at.first + i * 8 + lane.row;
    normaliser.at[i] = state.l[i] == 0 ? 0 : 1 / state.l[i];
    if (row < args.Lq && lane.column == 0) {
      softmax::store_statistics(L + 2 * (at.row0 + row), state.largest[i], state.m[i], state.l[i], factor);
    }
  }
  o.store(O + at.row0 * DV, DV, at.first, normaliser);
}
}

// The body
alignas(16) threadgroup flash::Element scratch[flash::SCRATCH];
flash::Arguments args;
args.Q = {Q, Q_strides[0], Q_strides[1], Q_strides[2]};
args.K = {K, K_strides[0], K_strides[1], K_strides[2]};
args.V = {V, V_strides[0], V_strides[1], V_strides[2]};
args.scale = scale;
args.Hq = Q_shape[1];
args.Hk = K_shape[1];
args.Lq = Q_shape[2];
args.Lk = K_shape[2];
flash::forward(
    args, O, L, scratch, threadgroup_position_in_grid, thread_index_in_threadgroup);
