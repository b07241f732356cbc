// The tile layer for Apple's 8x8 simdgroup matrices: only its files know which lane holds which element of a tile.
//
// The operations that kernels are written in; the layers for other matrix hardware have the same:
//
//   Lane                     which (row, column) of every fragment this lane holds
//   Rows<...>                an operand of which this simdgroup owns rows: cached in registers, or re-read per block
//   Traversed<...>           an operand that every simdgroup traverses: through threadgroup memory, or read directly
//   Accumulator<...>         a float32 result of R x D: cached in registers, or paged to its output buffer
//   multiply_abt             S = A B^T
//   begin_abt, finish_abt<N> the same, asynchronously: issue the product, and wait for it with at most N later products
//                            in flight; on this hardware finish_abt computes the whole product
//   multiply_ab              C = factor * C + P B
//   row_max, row_sum         reductions over the columns of a tile
//
// Hardware facts: a lane's place in a fragment follows Morton order (MLX steel and metal-flash-attention agree).
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>

namespace flash {
namespace tile {

constant constexpr int MMA_ROWS = $MMA_ROWS;  // rows of one matrix instruction: 1, a simdgroup works alone
constant constexpr bool SPLIT = true;         // blocks that are no edge have a separate loop without code for edges
// Fragments that one read of 16 bytes serves, 1 where each is read by itself: along the columns of a block's rows,
// along the rows of a block that lies transposed in threadgroup memory, and along the columns that S = A B^T sums over.
constant constexpr int WIDE = $WIDE, WIDE_ROWS = $WIDE_ROWS, DEEP = $DEEP;

// The fragments of a product may hold the columns of memory in any order, as long as both factors agree. So
// neighbouring fragments hold neighbouring pairs: each of the four lanes of a row owns a quarter of the group's
// columns, and reads it at once. A last group of fewer fragments is narrower. Places are sums of a part that all lanes
// share and a part of the lane, because the shared part is constant and takes no register.
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

// Column k of fragment f among the columns that S = A B^T sums over: those of one lane are neighbours.
METAL_FUNC int summed_column(int columns, int f, int k) {
  return f / DEEP * DEEP * 8 + f % DEEP + k * min(DEEP, columns / 8 - f / DEEP * DEEP);
}

#if SPLITS_HEAD
constant constexpr int HEAD_PARTS = $HEAD_PARTS;  // simdgroups that own the same rows, each with a part of the columns
#endif

struct Lane {
  int row, column;  // of the pair (row, column), (row, column + 1) inside every fragment
  uint thread_index, simdgroup;
#if SPLITS_HEAD
  // The number of the simdgroup; those with the same rows, which share the columns of the head dimension, count as one.
  METAL_FUNC int part() const thread { return thread_index / 32 % HEAD_PARTS; }
#endif
  static METAL_FUNC Lane of(uint thread_index) {
    const int lane = thread_index % 32;
    const int row = ((lane >> 2) & 4) + ((lane >> 1) & 3), column = ((lane >> 2) & 2) * 2 + (lane & 1) * 2;
#if SPLITS_HEAD
    return {row, column, thread_index, thread_index / (32 * HEAD_PARTS)};
#else
    return {row, column, thread_index, thread_index / 32};
#endif
  }
  METAL_FUNC int slice() const thread { return 0; }
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

// One fragment of columns of a tile; its index must be constant, because registers cannot be indexed
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

}  // namespace tile
}  // namespace flash
