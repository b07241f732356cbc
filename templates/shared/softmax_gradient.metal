// Probabilities and their gradients, recomputed from the scores and L by the backward kernels.
namespace flash {
namespace softmax {

#if OVER_KEYS
// One number per column of a tile from memory that has `columns`; past them the last one repeats
template <int C>
METAL_FUNC void read_columns(
    thread tile::ColumnVector<C>& vector, const device float* source, int columns, tile::Lane lane) {
#pragma clang loop unroll(full)
  for (int c = 0; c < C / 8; c++) {
    const int fixed = tile::fixed_place(c), own = tile::lane_place(C, c, lane.column);
    const int last = columns - 1 - own;
    for (int e = 0; e < 2; e++) vector.at[c][e] = (source + own)[columns >= C ? fixed + e : min(fixed + e, last)];
  }
}
#endif

// P = 2^(factor S - L); L is a RowVector, or a ColumnVector where the tile is transposed. Masked elements are 0 even in
// rows whose L is NaN; a tile that is visible as a whole has none.
template <int R, int C, typename V>
METAL_FUNC void probabilities(thread tile::Tile<float, R, C>& s, thread const V& L, float factor, bool whole) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const tile::Pair<float> p = exp2(s.at[i][c] * factor - tile::broadcast(L, i, c));
      s.at[i][c] = whole ? p : select(p, tile::Pair<float>(0), s.at[i][c] == -INFINITY);
    }
  }
}

// dS = P * (dP - delta), in place of dP; unless the tile is visible as a whole, 0 where P is 0, even if dP is NaN
// because a masked key holds NaN
template <int R, int C, typename V>
METAL_FUNC void gradient(
    thread tile::Tile<float, R, C>& dp, thread const tile::Tile<float, R, C>& p, thread const V& delta,
    bool whole = false) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const tile::Pair<float> ds = p.at[i][c] * (dp.at[i][c] - tile::broadcast(delta, i, c));
      dp.at[i][c] = whole ? ds : select(ds, tile::Pair<float>(0), p.at[i][c] == 0);
    }
  }
}

// The backward kernels subtract L from scores: +inf for an empty row makes each of its probabilities 0.
METAL_FUNC float row_reference(float L) { return L == -INFINITY ? INFINITY : L; }

#if HAS_SOFTCAP
// dS = dS * slope; 0 stays 0 even where the slope is NaN, as it may be at masked keys
template <int R, int C>
METAL_FUNC void apply_slope(thread tile::Tile<float, R, C>& ds, thread const Slope<R, C>& slope) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      ds.at[i][c] = select(ds.at[i][c] * slope.at[i][c], tile::Pair<float>(0), ds.at[i][c] == 0);
    }
  }
}
#else
template <int R, int C> METAL_FUNC void apply_slope(thread tile::Tile<float, R, C>&, thread const Slope<R, C>&) {}
#endif

}  // namespace softmax
}  // namespace flash
