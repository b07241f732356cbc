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

// What the exponents of rows subtract, V a RowVector, or a ColumnVector where the tile is transposed: of scores that
// are scaled first m and then log2 l, of plain ones both at once. +inf for a row that sees no key makes its
// probabilities 0.
template <typename V> struct Reference {
  V m;
#if SCALED_FIRST
  V log_l;
#endif

  template <typename T> METAL_FUNC void set(int n, T m_n, T log_l_n) thread {
#if SCALED_FIRST
    m.at[n] = select(m_n, T(INFINITY), m_n == -INFINITY);
    log_l.at[n] = log_l_n;
#else
    m.at[n] = select(m_n + log_l_n, T(INFINITY), m_n == -INFINITY);
#endif
  }
};

// Of rows [first, first + R) of this simdgroup, or of the columns of a tile, from the statistics of `rows` rows;
// past them the last one repeats.
#if OVER_KEYS
template <int C>
METAL_FUNC Reference<tile::ColumnVector<C>> read_reference(const device float* statistics, int rows, tile::Lane lane) {
  Reference<tile::ColumnVector<C>> found;
#pragma clang loop unroll(full)
  for (int c = 0; c < C / 8; c++) {
    const int fixed = tile::fixed_place(c), own = tile::lane_place(C, c, lane.column), last = rows - 1 - own;
    tile::Pair<float> m, log_l;
    for (int e = 0; e < 2; e++) {
      const int row = rows >= C ? fixed + e : min(fixed + e, last);
      m[e] = (statistics + 2 * own)[2 * row];
      log_l[e] = (statistics + 2 * own)[2 * row + 1];
    }
    found.set(c, m, log_l);
  }
  return found;
}
#else
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
#endif

// P = 2^(S - L). Masked elements are 0 even in rows whose statistics are NaN; a tile that is visible as a whole has
// none.
template <int R, int C, typename V>
METAL_FUNC void probabilities(
    thread tile::Tile<float, R, C>& s, thread const Reference<V>& reference, float factor, bool whole) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      tile::Pair<float> x = exponent(s.at[i][c], tile::broadcast(reference.m, i, c), factor);
#if SCALED_FIRST
      x -= tile::broadcast(reference.log_l, i, c);
#endif
      const tile::Pair<float> p = fast_exp2(x);
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

#if HAS_SOFTCAP || WANTS_SLOPE
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
