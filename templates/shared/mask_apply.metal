// Applies masks to a tile of scores: pair by pair, or as a whole where mask.metal says that all its pairs are visible.
namespace flash {
namespace mask {

template <int ROWS, int C> struct Look;  // mask_look.metal

// S[i, j] += bias, or -inf where query first_query + i must not see key first_key + j. Returns whether all pairs are
// visible. `valid`: the columns that this visit covers. `edge`: whether positions may hide pairs. `look`: the parts of
// the tile that the array mask shows, where it was looked at before.
template <int R, int C>
METAL_FUNC bool apply(
    thread tile::Tile<float, R, C>& s, thread const Visibility& visibility, thread const Look<R, C>& look,
    int first_query, int first_key, int valid, tile::Lane lane, bool edge = true) {
  // All simdgroups of a warpgroup must take the same path, so the rectangle has the rows of all of them.
  const int mma_rows = max(R, tile::MMA_ROWS), queries = TRANSPOSED ? C : mma_rows, keys = TRANSPOSED ? mma_rows : C;
  const int query0 = TRANSPOSED ? first_query : first_query / mma_rows * mma_rows;
  const int key0 = TRANSPOSED ? first_key / mma_rows * mma_rows : first_key;
  const bool covered =
      !edge || (valid == C && visibility.covers(query0, query0 + queries - 1, key0, key0 + keys - 1));
#if (LOOKS || MAPS) && !SCORE_HIDES
  const bool whole = covered && look.all;
#elif HAS_MASK || SCORE_HIDES
  const bool whole = false;  // values of the mask, or of the scores, decide
#else
  const bool whole = covered;
#endif
#if !ADDITIVE && !HAS_ALIBI
  if (whole) return true;
#endif
  const int first_row = TRANSPOSED ? first_key : first_query, first_column = TRANSPOSED ? first_query : first_key;
  constexpr bool BEGINS = HAS_WINDOW || (TRANSPOSED && CAUSAL);  // else every row sees the first column
  for (int i = 0; i < R / 8; i++) {
    // Rows past the end are never stored. Where positions hide no pair they repeat the last row, whose mask exists.
    const int own_row = first_row + i * 8 + lane.row, last_row = (TRANSPOSED ? visibility.keys : visibility.rows) - 1;
    const int row = edge ? own_row : min(own_row, last_row);
    const Range seen = visibility.seen_by(row);
    const int begin = seen.begin - first_column, end = min(seen.end - first_column, valid);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      // Comparing constants with numbers that all fragments share avoids one register for each sum of the two.
      const int own = tile::lane_place(C, c, lane.column);
      for (int e = 0; e < 2; e++) {
        const int fixed = tile::fixed_place(c) + e, column = first_column + own + fixed;
        const int query = TRANSPOSED ? column : row, key = TRANSPOSED ? row : column;
        bool visible = !edge || ((!BEGINS || fixed >= begin - own) && fixed < end - own);
#if LOOKS
        visible = visible && look.shows(i, c, e);
#endif
#if HAS_VISIBLE && !HAS_SEGMENTS && !HAS_SHIFTS && !HAS_MASK
        // A text may be evaluated for any pair. Where one loop serves all tiles, divergent lanes at every element would
        // cost more than evaluating pairs that are hidden anyway.
        if (!tile::SPLIT) visible = (int(visible) & int(visibility.admits(query, key))) != 0;
        if (!visible || (tile::SPLIT && !visibility.admits(query, key))) {
#else
        if (!visible || !visibility.admits(query, key)) {
#endif
          s.at[i][c][e] = -INFINITY;
          continue;
        }
#if ADDITIVE || HAS_ALIBI
        // A bias of -inf hides the key, also where its score is NaN.
        const float bias = visibility.bias(query, key);
        s.at[i][c][e] = bias == -INFINITY ? -INFINITY : s.at[i][c][e] + bias;
#endif
      }
    }
  }
  return whole;
}

}  // namespace mask
}  // namespace flash
