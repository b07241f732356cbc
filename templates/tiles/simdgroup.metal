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

struct Lane {
  int row, column;  // of the pair (row, column), (row, column + 1) inside every fragment
  uint thread_index, simdgroup;
  static METAL_FUNC Lane of(uint thread_index) {
    const int lane = thread_index % 32;
    const int row = ((lane >> 2) & 4) + ((lane >> 1) & 3), column = ((lane >> 2) & 2) * 2 + (lane & 1) * 2;
    return {row, column, thread_index, thread_index / 32};
  }
  METAL_FUNC bool produces() const thread { return false; }
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
        const int row = i * 8 + lane.row, column = c * 8 + lane.column + e;
        if (row < rows && column < columns) out[long(row) * stride + column] = sums.at[i][c][e];
      }
    }
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
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  const device T* block;
  long offset[R / 8];
  Pair<T> cached[R / 8][CACHED ? D / 8 : 1];

  // head: element (0, 0) of this head; stride: elements between rows; first: this simdgroup's first row
  METAL_FUNC void open(
      const device T* head, long stride, int first, int rows, thread Memory<T>&, Lane lane) thread {
    const int base = min(first, rows - 1);
    block = head + base * stride;
    for (int i = 0; i < R / 8; i++) {
      offset[i] = (min(first + i * 8 + lane.row, rows - 1) - base) * stride + lane.column;
    }
    if constexpr (CACHED) {
      for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
        for (int d = 0; d < D / 8; d++) cached[i][d] = read_pair(block + offset[i] + d * 8);
      }
    }
  }

  METAL_FUNC Pair<T> fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    return read_pair(block + offset[i] + d * 8);
  }
};

// An operand that all simdgroups walk along in blocks of BT rows. With USES_THREADGROUP each BT x BH block goes
// to threadgroup memory first (M1, M2); otherwise lanes read device memory (M3 and later, through a large L1).
template <typename T, int BT, int D, int BH, int THREADS, bool USES_THREADGROUP> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH;
  const device T* head;
  const device T* block;
  threadgroup T* scratch;
  long stride;
  int valid;  // rows of the current block that exist and are wanted, at most BT
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }

  METAL_FUNC void view(const device T* head_, long stride_) thread {
    head = head_;
    stride = stride_;
  }

  // To the block that begins at `row`; `end`: the last row that is wanted, plus one
  METAL_FUNC void acquire(int row, int end) thread {
    block = head + row * stride;
    valid = min(BT, end - row);
  }

  // Nothing to hand back where products are synchronous
  METAL_FUNC void release() thread {}

  // Columns [column, column + H) of the block to threadgroup memory, zeros where there is no row
  template <int H> METAL_FUNC void load_to_threadgroup(int column) const thread {
    if constexpr (!USES_THREADGROUP) return;
    constexpr int N = 16 / sizeof(T), RUNS = H / N;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int run = lane.thread_index; run < BT * RUNS; run += THREADS) {
      const int row = run / RUNS, c = run % RUNS * N;
      Run<T, N> values = {};
      if (row < valid) values = *(const device Run<T, N>*)(block + row * stride + column + c);
      *(threadgroup Run<T, N>*)(scratch + row * BH + c) = values;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Fragment (8 t .., column + 8 d ..) as it lies in memory; EDGE: rows at or past `valid` read as zero
  template <bool EDGE> METAL_FUNC Pair<T> fragment(int t, int column, int d) const thread {
    const int row = t * 8 + lane.row;
    if constexpr (USES_THREADGROUP) {
      const threadgroup T* source = scratch + row * BH + d * 8 + lane.column;
      return Pair<T>(source[0], source[1]);
    }
    if (EDGE && row >= valid) return Pair<T>(T(0));
    return read_pair(block + t * 8 * stride + lane.row * stride + column + d * 8 + lane.column);
  }

  // The same fragment with rows and columns exchanged
  template <bool EDGE> METAL_FUNC Pair<T> transposed(int t, int column, int d) const thread {
    const int row = t * 8 + lane.column;
    if constexpr (USES_THREADGROUP) {
      const threadgroup T* source = scratch + row * BH + d * 8 + lane.row;
      return Pair<T>(source[0], source[BH]);
    }
    const device T* source = block + t * 8 * stride + lane.column * stride + column + d * 8 + lane.row;
    if (!EDGE) return Pair<T>(source[0], source[stride]);
    Pair<T> pair = Pair<T>(T(0));
    if (row < valid) pair[0] = source[0];
    if (row + 1 < valid) pair[1] = source[stride];
    return pair;
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
  int offset[R / 8];
  int rows;  // rows of this simdgroup that exist

  template <typename Out> METAL_FUNC void open(device Out* head, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    for (int i = 0; i < R / 8; i++) offset[i] = (i * 8 + lane.row) * D + lane.column;
    if constexpr (!CACHED) page = (device float*)head + long(first) * D;
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) set(i, d, Pair<float>(0));
    }
  }

  METAL_FUNC Pair<float> get(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    if (i * 8 >= rows) return Pair<float>(0);
    return *(const device Pair<float>*)(page + offset[i] + d * 8);
  }

  METAL_FUNC void set(int i, int d, Pair<float> value) thread {
    if constexpr (CACHED) {
      cached[i][d] = value;
    } else if (i * 8 < rows) {
      *(device Pair<float>*)(page + offset[i] + d * 8) = value;
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
        *(device Run<Out, 2>*)(out + d * 8) = run;
      }
    }
  }
};

// S += A[:, column : column + H] B[:, column : column + H]^T, one head block
template <int H, bool EDGE, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void head_block_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d++) {
    Pair<T> rows[R / 8];
    for (int i = 0; i < R / 8; i++) rows[i] = a.fragment(i, column / 8 + d);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t++) {
      if (EDGE && t * 8 >= b.valid) continue;
      const Pair<T> fragment = b.template transposed<EDGE>(t, column, d);
      for (int i = 0; i < R / 8; i++) multiply(s.at[i][t], rows[i], fragment);
    }
  }
}

template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void load_and_multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  b.template load_to_threadgroup<H>(column);
  if (b.valid == BT) {
    head_block_abt<H, false>(s, a, b, column);
  } else {
    head_block_abt<H, true>(s, a, b, column);
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
    for (int column = 0; column < FULL; column += BH) load_and_multiply_abt<BH>(s, a, b, column);
  } else {
#pragma clang loop unroll(disable)
    for (int column = 0; column < FULL; column += BH) load_and_multiply_abt<BH>(s, a, b, column);
  }
  if constexpr (REST > 0) load_and_multiply_abt<REST>(s, a, b, FULL);
}

// The rare second pass: where P, a probability, is not 0, an infinity of B adds itself to the result, NaN adds both.
template <int H, int R, int BT, typename P, typename B>
METAL_FUNC void add_infinities(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
  for (int n = 0; n < H / 8 * 2; n++) {
    const float infinity = n % 2 ? -INFINITY : INFINITY;
    Pair<float> count[R / 8] = {};
    for (int t = 0; t < BT / 8; t++) {
      if (t * 8 >= b.valid) continue;
      const Pair<float> fragment = Pair<float>(b.template fragment<true>(t, column, n / 2));
      const Pair<float> bad = select(Pair<float>(0), Pair<float>(1), isnan(fragment) | (fragment == infinity));
      for (int i = 0; i < R / 8; i++) {
        multiply(count[i], select(Pair<float>(1), Pair<float>(0), Pair<float>(p.at[i][t]) == 0), bad);
      }
    }
    for (int i = 0; i < R / 8; i++) block[i][n / 2] += select(Pair<float>(0), Pair<float>(infinity), count[i] > 0);
  }
}

// block += P B[:, column : column + H].  EDGE: B may hold masked rows, which may contain NaN or infinity. These enter
// the product as 0, since 0 * NaN = NaN, and `add_infinities` then adds them to the rows of P that do see them.
template <int H, bool EDGE, typename Narrow, typename P, int R, int BT, typename B>
METAL_FUNC void add_product(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
  using Element = typename B::Element;
  bool found = false;
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++) {
    if (EDGE && t * 8 >= b.valid) continue;
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) {
      Pair<Element> fragment = b.template fragment<EDGE>(t, column, d);
      if (EDGE) {
        for (int e = 0; e < 2; e++) {
          if (isfinite(float(fragment[e]))) continue;
          fragment[e] = Element(0);
          found = true;
        }
      }
      for (int i = 0; i < R / 8; i++) multiply(block[i][d], Pair<Narrow>(p.at[i][t]), fragment);
    }
  }
  if (EDGE && simd_any(found)) add_infinities<H, R, BT>(block, p, b, column);
}

// C[:, column : column + H] = factor * C[...] + P B[:, column : column + H], one head block. In float32 the summation
// is blocked, so that the error grows with the number of traversed blocks and not with the number of keys.
template <int H, typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void head_block_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    int column, bool whole) {
  constexpr bool BLOCKED_SUM = sizeof(typename B::Element) == 4;
  b.template load_to_threadgroup<H>(column);
  Pair<float> block[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++)
      block[i][d] = BLOCKED_SUM ? Pair<float>(0) : c.get(i, column / 8 + d) * factor.at[i];
  }
  // Keeps page accesses out of the matmul loop: interleaved they cost M4 a third of its throughput.
  if (!CACHED) simdgroup_barrier(mem_flags::mem_none);
  if (whole && b.valid == BT) {
    add_product<H, false, Narrow>(block, p, b, column);
  } else {
    add_product<H, true, Narrow>(block, p, b, column);
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
