// Softmax in base 2; masked scores are -inf. Scores are S = Q K^T times `factor`, scale log2(e), which is positive.
// Where something is added to the scores or caps them, they are scaled first and the factor is 1.
//
// Everything stays float32. A row that has seen no key yet has m = -inf and l = 0; its exponentials use 0 in place
// of m, so that they come out as 0 and never as -inf - (-inf).
#define HAS_SOFTCAP $HAS_SOFTCAP
#define HAS_SINKS $HAS_SINKS

namespace softmax {

constant constexpr bool SCALED_FIRST = HAS_SOFTCAP || HAS_ALIBI || (HAS_MASK && ADDITIVE);

template <int R> struct State {
  float m[R / 8];  // largest score so far
  float l[R / 8];  // sum of 2^(score - m) so far

  METAL_FUNC void clear() thread {
    for (int i = 0; i < R / 8; i++) {
      m[i] = -INFINITY;
      l[i] = 0;
    }
  }

  // A sink is a score that every row sees and that has no value: it only adds to the sum.
  METAL_FUNC void clear(float sink) thread {
    for (int i = 0; i < R / 8; i++) clear(i, sink);
  }

  METAL_FUNC void clear(int i, float sink) thread {
    m[i] = sink * M_LOG2E_F;
    l[i] = sink == -INFINITY ? 0 : 1;
  }
};

template <int R, int C> METAL_FUNC void multiply(thread tile::Tile<float, R, C>& s, float factor) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] *= factor;
  }
}

// u = tanh(scale S / cap);  S = cap log2(e) u;  returns dS/d(scale S) = 1 - u^2 in `slope`
template <int R, int C>
METAL_FUNC void cap(
    thread tile::Tile<float, R, C>& s, thread tile::Tile<float, R, C>& slope, float scale, float cap) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const tile::Pair<float> u = precise::tanh(s.at[i][c] * (scale / cap));
      s.at[i][c] = u * (cap * M_LOG2E_F);
      slope.at[i][c] = 1 - u * u;
    }
  }
}

// S = S * factor; 0 stays 0 even where the factor is NaN, as it may be at masked keys
template <int R, int C>
METAL_FUNC void multiply(thread tile::Tile<float, R, C>& s, thread const tile::Tile<float, R, C>& factor) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      s.at[i][c] = select(s.at[i][c] * factor.at[i][c], tile::Pair<float>(0), s.at[i][c] == 0);
    }
  }
}

// m' = max(m, factor rowmax S);  P = 2^(factor S - m');  l' = l 2^(m - m') + rowsum P;  returns 2^(m - m')
template <int R, int C>
METAL_FUNC tile::RowVector<R> step(thread tile::Tile<float, R, C>& s, thread State<R>& state, float factor) {
  tile::RowVector<R> correction;
  for (int i = 0; i < R / 8; i++) {
    float m = -INFINITY;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) m = max(m, max(s.at[i][c][0], s.at[i][c][1]));
    m = max(state.m[i], factor * tile::row_max(m));
    const float reference = m == -INFINITY ? 0 : m;
    float l = 0;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      s.at[i][c] = exp2(s.at[i][c] * factor - reference);
      l += s.at[i][c][0] + s.at[i][c][1];
    }
    correction.at[i] = exp2(state.m[i] - reference);
    state.l[i] = state.l[i] * correction.at[i] + tile::row_sum(l);
    state.m[i] = m;
  }
  return correction;
}

// One number per column of a tile from memory that has `columns`; past them the last one repeats. A pointer of any
// address space: MLX hands small arrays to a kernel as constants.
template <int C, typename P>
METAL_FUNC void read_columns(thread tile::ColumnVector<C>& vector, P source, int columns, tile::Lane lane) {
#pragma clang loop unroll(full)
  for (int c = 0; c < C / 8; c++) {
    const int fixed = tile::fixed_place(c), own = tile::lane_place(C, c, lane.column);
    const int last = columns - 1 - own;
    for (int e = 0; e < 2; e++) vector.at[c][e] = (source + own)[columns >= C ? fixed + e : min(fixed + e, last)];
  }
}

// P = 2^(factor S - L); L is a RowVector, or a ColumnVector where the tile is transposed. A row whose L is NaN makes
// only what it sees NaN: unless the tile is seen as a whole, masked elements are 0 whatever L.
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

// dS = P * (dP - delta), in place of dP; 0 where P is, whatever lies behind a masked key,
// unless none is masked
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

// L = m + log2(l), the base-2 logarithm of the sum of the row's exponentials; -inf where no key was seen
METAL_FUNC float log_sum(float m, float l) { return l == 0 ? -INFINITY : m + log2(l); }

// The backward kernels subtract L from scores: +inf for an empty row makes each of its probabilities 0.
METAL_FUNC float row_reference(float L) { return L == -INFINITY ? INFINITY : L; }

}  // namespace softmax
