// Applies masks to a tile of scores: pair by pair, or as a whole where mask.metal says that all its pairs are visible.
namespace flash {
namespace mask {

template <int ROWS, int C> struct Look;  // mask_look.metal

#if OVERLAPS
// Whether only positions hide pairs, so that all pairs of a block that is not at an edge are visible
#if LOOKS || MAPS || HAS_MASK || SCORE_HIDES
constant constexpr bool HIDES_AT_EDGES = false;
#else
constant constexpr bool HIDES_AT_EDGES = true;
#endif
#endif

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
  // Both conditions are evaluated: with two paths to the code of masks, registers would hold the scores for either.
  const bool covered =
      !edge || (int(valid == C) & int(visibility.covers(query0, query0 + queries - 1, key0, key0 + keys - 1))) != 0;
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
#if HAS_MASK || HAS_SEGMENTS || HAS_BLOCKS || HAS_VISIBLE || HAS_ALIBI
  // Memory holds masks and segments of rows and columns before the end only. Those past it repeat the last one: such
  // rows are never stored, and such columns are hidden.
  const int last_row = (TRANSPOSED ? visibility.keys : visibility.rows) - 1;
  const int last_column = (TRANSPOSED ? visibility.queries : visibility.keys) - 1;
#endif
  for (int i = 0; i < R / 8; i++) {
    const int own_row = first_row + i * 8 + lane.row;
#if HAS_MASK || HAS_SEGMENTS || HAS_BLOCKS || HAS_VISIBLE || HAS_ALIBI
    const int row = min(own_row, last_row);
#endif
    const Range seen = visibility.seen_by(own_row);
    const int begin = seen.begin - first_column, end = min(seen.end - first_column, valid);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      // Comparing constants with numbers that all fragments share avoids one register for each sum of the two.
      const int own = tile::lane_place(C, c, lane.column);
      for (int e = 0; e < 2; e++) {
        const int fixed = tile::fixed_place(c) + e;
#if HAS_MASK || HAS_SEGMENTS || HAS_BLOCKS || HAS_VISIBLE || HAS_ALIBI
        const int own_column = first_column + own + fixed;
#if ADDITIVE
        const int column = min(own_column, last_column);  // a plain sum would keep its addresses in registers
#else
        const int column = edge ? min(own_column, last_column) : own_column;
#endif
        const int query = TRANSPOSED ? column : row, key = TRANSPOSED ? row : column;
#endif
        bool visible = !edge || ((!BEGINS || fixed >= begin - own) && fixed < end - own);
#if LOOKS
        visible = visible && look.shows(i, c, e);
#endif
#if HAS_MASK && !LOOKS
        visible = visible && visibility.admits(query, key);  // reads no mask of hidden pairs
#elif HAS_SEGMENTS || HAS_BLOCKS || HAS_VISIBLE
        // Evaluated for all pairs: divergent lanes at every element would cost more than pairs that are hidden anyway,
        // and values that only some paths write would occupy registers throughout the loop of whole blocks.
        visible = (int(visible) & int(visibility.admits(query, key))) != 0;
#endif
#if ADDITIVE && !LOOKS
        if (!visible) {
          s.at[i][c][e] = -INFINITY;
          continue;
        }
#endif
#if ADDITIVE || HAS_ALIBI
        // A bias of -inf hides the key, also where its score is NaN.
        const float bias = visibility.bias(query, key);
        visible = (int(visible) & int(bias != -INFINITY)) != 0;
        s.at[i][c][e] = visible ? s.at[i][c][e] + bias : -INFINITY;
#else
        s.at[i][c][e] = visible ? s.at[i][c][e] : -INFINITY;
#endif
      }
    }
  }
  return whole;
}

}  // namespace mask
}  // namespace flash
