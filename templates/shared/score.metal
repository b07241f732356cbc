// The user's score: S[i, j] = score(S[i, j], b, h, q, k), after scale and softcap, before biases and masks.
namespace flash {
namespace formula {

// In place, for query first_query + i and key first_key + j. In backward kernels `slope` becomes its derivative, times
// the cap's. Pairs past the end, whose columns are in blocks at the `edge`, get the score of the last row or column,
// which the mask replaces.
template <int R, int C>
METAL_FUNC void apply(
    thread tile::Tile<float, R, C>& s, thread softmax::Slope<R, C>& slope, thread const mask::Visibility& visibility,
    int first_query, int first_key, tile::Lane lane, bool edge = true) {
  const int first_row = TRANSPOSED ? first_key : first_query, first_column = TRANSPOSED ? first_query : first_key;
  const int last_row = (TRANSPOSED ? visibility.keys : visibility.rows) - 1;
  const int last_column = (TRANSPOSED ? visibility.queries : visibility.keys) - 1;
  for (int i = 0; i < R / 8; i++) {
    const int row = min(first_row + i * 8 + lane.row, last_row);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const int own = tile::lane_place(C, c, lane.column);
      for (int e = 0; e < 2; e++) {
        const int own_column = first_column + own + tile::fixed_place(c) + e;
        const int column = edge ? min(own_column, last_column) : own_column;
        const Pair at = pair(visibility, TRANSPOSED ? column : row, TRANSPOSED ? row : column);
#if WANTS_SLOPE
#if SEEDED
        const Dual found = visibility.texts.score.of(s.at[i][c][e], at);  // the slope in an array, not in s
#elif HAS_SOFTCAP
        const Dual found = visibility.texts.score.of(Dual{s.at[i][c][e], slope.at[i][c][e]}, at);
#else
        const Dual found = visibility.texts.score.of(Dual{s.at[i][c][e], 1}, at);
#endif
        s.at[i][c][e] = found.value;
        slope.at[i][c][e] = found.slope;
#else
        s.at[i][c][e] = visibility.texts.score.of(s.at[i][c][e], at);
#endif
      }
    }
  }
}

}  // namespace formula
}  // namespace flash
