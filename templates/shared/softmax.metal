// Scores, exponentials and row statistics, all in float32; masked scores are -inf.
//
// P = 2^(factor (S - m)) / l. Plain scores are S = Q K^T without the scale, which is part of the factor scale log2(e).
// Where something is added to the scores or caps them (SCALED_FIRST), they are scaled before, and the factor is
// log2(e). The difference comes first, so that no finite score overflows, and a term that all scores of a row share
// cancels without rounding, however large it is.
//
// The statistics of a row are m, its largest score in these units, and log2 l, where l is its sum of exponentials
// relative to m. They are stored separately, since beside a large m their sum would lose the digits of log2 l. m is
// exactly one of the scores, so that the backward kernels subtract the same number as the forward kernel, and a row of
// one key has P = 1 exactly. A row that sees no key has -inf and 0.
namespace flash {
namespace softmax {

#if HAS_SOFTCAP
// t = scale S;  u = tanh(t / cap);  S = cap u;  returns dS/dt = 1 - u^2 in `slope`. Far below the cap S = t exactly, so
// that a huge cap has no effect.
template <int R, int C>
METAL_FUNC void cap(
    thread tile::Tile<float, R, C>& s, thread tile::Tile<float, R, C>& slope, float scale, float cap) {
  const float inverse = 1 / max(cap, FLT_MIN);
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      const tile::Pair<float> t = s.at[i][c] * scale, u = precise::tanh(t * inverse);
      s.at[i][c] = select(u * cap, t, abs(t * inverse) < 0.000244140625f);
      slope.at[i][c] = 1 - u * u;
    }
  }
}

#endif

#if HAS_SOFTCAP || WANTS_SLOPE
// The derivative of the cap and of the user's score, one number per score
template <int R, int C> using Slope = tile::Tile<float, R, C>;
#else
template <int R, int C> struct Slope {};
#endif

// Scales and caps the scores where that must precede what is added to them
template <int R, int C>
METAL_FUNC void scale_or_cap(
    thread tile::Tile<float, R, C>& s, thread Slope<R, C>& slope, thread const Arguments& args) {
#if HAS_SOFTCAP
  cap(s, slope, args.scale, args.softcap);
#elif SCALED_FIRST
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] *= args.scale;
  }
#endif
}

}  // namespace softmax
}  // namespace flash
