// The running softmax of the forward kernels (Milakov and Gimelshein 2018).
namespace flash {
namespace softmax {

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
    m[i] = sink * M_LOG2E_F;
    l[i] = sink == -INFINITY ? 0 : 1;
  }
#endif
};

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

// L = m + log2(l), the base-2 logarithm of the sum of the row's exponentials; -inf where no key was seen
METAL_FUNC float log_sum(float m, float l) { return l == 0 ? -INFINITY : m + log2(l); }

}  // namespace softmax
}  // namespace flash
