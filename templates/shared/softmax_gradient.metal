// Probabilities and their gradients, recomputed from the scores and L by the backward kernels.
namespace flash {
namespace softmax {

// Row statistics, as a RowVector, or as a ColumnVector where the tile is transposed. m = +inf for a row that sees no
// key makes its probabilities 0.
template <typename V> struct Reference {
  V m, log_l;

  template <typename T> METAL_FUNC void set(int n, T m_n, T log_l_n) thread {
    m.at[n] = select(m_n, T(INFINITY), m_n == -INFINITY);
    log_l.at[n] = log_l_n;
  }
};

// P = 2^(factor (S - m) - log2 l). Masked elements are 0 even in rows whose statistics are NaN. `whole`: the tile has
// no masked elements.
template <typename V>
METAL_FUNC tile::Pair<float> probability(
    tile::Pair<float> s, thread const Reference<V>& reference, int i, int c, float factor, bool whole) {
  const tile::Pair<float> m = tile::broadcast(reference.m, i, c), log_l = tile::broadcast(reference.log_l, i, c);
  const tile::Pair<float> p = fast_exp2((s - m) * factor - log_l);
  return whole ? p : select(p, tile::Pair<float>(0), s == -INFINITY);
}

// dS = P * (dP - delta). Unless the tile is visible as a `whole`, dS is 0 where P is 0, even if a masked key makes dP
// NaN.
METAL_FUNC tile::Pair<float> score_gradient(
    tile::Pair<float> dp, tile::Pair<float> p, tile::Pair<float> delta, bool whole) {
  const tile::Pair<float> ds = p * (dp - delta);
  return whole ? ds : select(ds, tile::Pair<float>(0), p == 0);
}

#if OVER_KEYS && !LOADS_EARLY
// One number for each column of fragment c of C columns, COUNT apart in memory, which has `rows` of them; the last one
// repeats. edge: there may be fewer than C.
template <int COUNT, int C>
METAL_FUNC tile::Pair<float> columns_of(const device float* source, int c, int rows, tile::Lane lane, bool edge) {
  const int fixed = tile::fixed_place(c), own = tile::lane_place(C, c, lane.column), last = rows - 1 - own;
  if (edge && fixed >= last) return tile::Pair<float>((source + COUNT * own)[COUNT * min(fixed, last)]);
  return tile::Pair<float>((source + COUNT * own)[COUNT * fixed], (source + COUNT * own)[COUNT * (fixed + 1)]);
}

// P in place of S, whose columns are queries. Statistics are read one fragment at a time, because those of a whole tile
// would take as many registers as its scores.
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

// In place of dP
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
#else
#if OVER_KEYS
// One number for each column of a tile, from memory that has `columns` of them; the last one repeats
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

// The statistics of rows [first, first + R) of this simdgroup, or of the columns of a tile, from memory that has those
// of `rows` rows; the last one repeats.
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

#if STAGES_STATISTICS
template <int C>
METAL_FUNC Reference<tile::ColumnVector<C>> read_reference(thread const tile::Statistics<C>& statistics) {
  Reference<tile::ColumnVector<C>> found;
#pragma clang loop unroll(full)
  for (int c = 0; c < C / 8; c++) {
    const float4 rows = statistics.row_pair(c);
    found.set(c, rows.xz, rows.yw);
  }
  return found;
}
#endif

// P in place of S
template <int R, int C, typename V>
METAL_FUNC void probabilities(
    thread tile::Tile<float, R, C>& s, thread const Reference<V>& reference, float factor, bool whole) {
#if LOADS_EARLY
  // One loop serves all tiles here, so this function has a copy without selections for tiles without masked elements.
  if (whole) {
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) s.at[i][c] = probability(s.at[i][c], reference, i, c, factor, true);
    }
    return;
  }
#endif
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] = probability(s.at[i][c], reference, i, c, factor, whole);
  }
}

// In place of dP
template <int R, int C, typename V>
METAL_FUNC void gradient(
    thread tile::Tile<float, R, C>& dp, thread const tile::Tile<float, R, C>& p, thread const V& delta,
    bool whole = false) {
#if LOADS_EARLY
  if (whole) {
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) {
        dp.at[i][c] = score_gradient(dp.at[i][c], p.at[i][c], tile::broadcast(delta, i, c), true);
      }
    }
    return;
  }
#endif
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      dp.at[i][c] = score_gradient(dp.at[i][c], p.at[i][c], tile::broadcast(delta, i, c), whole);
    }
  }
}
#endif

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
