// Softmax in base 2; masked scores are -inf. Scores are S = Q K^T times `factor`, scale log2(e), which is positive.
// Where something is added to the scores or caps them, they are scaled first and the factor is 1.
//
// Everything stays float32. A row that has seen no key yet has m = -inf and l = 0; its exponentials use 0 in place
// of m, so that they come out as 0 and never as -inf - (-inf).
namespace flash {
namespace softmax {

#if HAS_SOFTCAP
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

// The derivative of the cap, one number per score
template <int R, int C> using Slope = tile::Tile<float, R, C>;
#else
template <int R, int C> struct Slope {};
#endif

// The factor that is left for the exponentials
METAL_FUNC float factor_of(float scale) { return SCALED_FIRST ? 1 : scale * M_LOG2E_F; }

// Scales the scores, and caps them, where this has to come before anything is added
template <int R, int C>
METAL_FUNC void scale_or_cap(
    thread tile::Tile<float, R, C>& s, thread Slope<R, C>& slope, thread const Arguments& args) {
#if HAS_SOFTCAP
  cap(s, slope, args.scale, args.softcap);
#elif HAS_ALIBI || ADDITIVE
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] *= args.scale * M_LOG2E_F;
  }
#endif
}

}  // namespace softmax
}  // namespace flash
