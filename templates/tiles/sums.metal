// Sums over the rows and columns of a tile, for the gradient of a broadcast mask (Apple's 8x8 simdgroup matrices).
namespace flash {
namespace tile {

template <int R, int C>
METAL_FUNC void add(thread Tile<float, R, C>& sum, thread const Tile<float, R, C>& tile) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) sum.at[i][c] += tile.at[i][c];
  }
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

}  // namespace tile
}  // namespace flash
