// The running softmax of the forward kernels (Milakov and Gimelshein 2018).
namespace flash {
namespace softmax {

#if HAS_SINKS
// A sink in the units of m. In base 2 the largest float32 numbers have no place: the least or the largest stands for
// them, against which all scores weigh the same.
METAL_FUNC float exponent_of(float sink) {
#if SCALED_FIRST
  return sink;
#else
  const float exponent = sink * M_LOG2E_F;
  return isinf(exponent) && isfinite(sink) ? copysign(FLT_MAX, sink) : exponent;
#endif
}
#endif

template <int R> struct State {
  float m[R / 8];  // largest score so far
  float l[R / 8];  // sum of 2^(score - m) so far

  METAL_FUNC void clear() thread {
    for (int i = 0; i < R / 8; i++) {
      m[i] = -INFINITY;
      l[i] = 0;
    }
  }

#if HAS_SINKS
  // A sink is a score that every row sees and that has no value: it only adds to the sum.
  METAL_FUNC void clear(int i, float sink) thread {
    m[i] = exponent_of(sink);
    l[i] = sink == -INFINITY ? 0 : 1;
  }
#endif
};

// m' = max(m, rowmax S);  P = 2^(S - m');  l' = l 2^(m - m') + rowsum P;  returns 2^(m - m'), in softmax.metal's units.
// A row that has seen no key yet has m = -inf and l = 0; its exponentials use 0 in place of m, so that they come out as
// 0 and never as -inf - (-inf).
template <int R, int C>
METAL_FUNC tile::RowVector<R> step(thread tile::Tile<float, R, C>& s, thread State<R>& state, float factor) {
  tile::RowVector<R> correction;
  for (int i = 0; i < R / 8; i++) {
    float m = -INFINITY;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) m = max(m, max(s.at[i][c][0], s.at[i][c][1]));
#if SCALED_FIRST
    m = max(state.m[i], tile::row_max(m));
#else
    m = max(state.m[i], factor * tile::row_max(m));
#endif
    const float reference = m == -INFINITY ? 0 : m;
    float l = 0;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      s.at[i][c] = fast_exp2(exponent(s.at[i][c], reference, factor));
      l += s.at[i][c][0] + s.at[i][c][1];
    }
#if SCALED_FIRST
    correction.at[i] = fast_exp2(exponent(state.m[i], reference, factor));
#else
    correction.at[i] = fast_exp2(state.m[i] - reference);
#endif
    state.l[i] = state.l[i] * correction.at[i] + tile::row_sum(l);
    state.m[i] = m;
  }
  return correction;
}

// Writes a row's m and log2 l
METAL_FUNC void store_statistics(device float* to, float m, float l) {
  to[0] = l == 0 ? -INFINITY : m;
  to[1] = l == 0 ? 0 : log2(l);
}

}  // namespace softmax
}  // namespace flash
