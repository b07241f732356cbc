// The running softmax of the forward kernels (Milakov and Gimelshein 2018).
//
// Each lane sums the columns that it holds; the lanes of a row exchange their sums once, after the last block. Where O
// is paged (PAGES) they do so at every block: compilers would move an unused sum behind the loop over the pages, and
// the exponentials would occupy registers until then.
namespace flash {
namespace softmax {

#if RESCALES_LATE
// O and l keep their reference m while a row's largest score exceeds it by no more than this, in powers of two. P may
// then be 2^8, whose rounding to 16 bits is as fine, and few blocks rescale O, as in FlashAttention-4. The statistics
// of a row have its largest score all the same.
constant constexpr float LATE = 8;
#endif

template <int R> struct State {
#if RESCALES_LATE
  float largest[R / 8];  // score so far; RESCALES_APART: of this lane's columns, before `finish`
  float m[R / 8];        // reference of l and O
#else
  float m[R / 8];  // largest score so far
#endif
  float l[R / 8];  // sum of 2^(factor (score - m)) so far; before `finish` of this lane's columns, unless O is paged

  METAL_FUNC void clear() thread {
    for (int i = 0; i < R / 8; i++) {
      m[i] = -INFINITY;
      l[i] = 0;
#if RESCALES_LATE
      largest[i] = m[i];
#endif
    }
  }

#if HAS_SINKS
  // A sink is a score that every row sees, without a value: it only adds to the sum. Where scores lack the scale, m
  // lacks it too, and l corrects the rounding of the division. The largest numbers stand for sinks beyond float32
  // there.
  // `adds`: whether this lane of the row adds the sink to its sum.
  METAL_FUNC void clear(int i, float sink, float scale, bool adds) thread {
#if SCALED_FIRST
    m[i] = sink;
    l[i] = sink == -INFINITY ? 0 : 1;
#else
    const float own = sink / scale;
    m[i] = isinf(own) && isfinite(sink) ? copysign(FLT_MAX, sink) : own;
    l[i] = sink == -INFINITY ? 0 : isinf(own) ? 1 : fast_exp2(fma(-own, scale, sink) * M_LOG2E_F);
#endif
#if !PAGES
    if (!adds) l[i] = 0;
#endif
#if RESCALES_LATE
    largest[i] = m[i];
#endif
  }
#endif

  // After the last block
  METAL_FUNC void finish() thread {
#if RESCALES_APART || !PAGES
    for (int i = 0; i < R / 8; i++) {
#if !PAGES
      l[i] = tile::row_sum(l[i]);
#endif
#if RESCALES_APART
      largest[i] = tile::row_max(largest[i]);
#endif
    }
#endif
  }
};

#if FUSES_EXPONENTS
// Offsets = factor m, so that the exponents factor (S - m) = factor S - offset are one fma. Rounding an offset changes
// all exponents of its row by the same amount: below this limit by less than 2^-14, far below the rounding of P to 16
// bits. Where an offset would be larger, m is subtracted from S first.
constant constexpr float LARGEST_OFFSET = 1024;

template <int R, int C>
METAL_FUNC tile::RowVector<R> fuse(thread tile::Tile<float, R, C>& s, tile::RowVector<R> m, float factor) {
  tile::RowVector<R> offset;
  bool small = true;
  for (int i = 0; i < R / 8; i++) {
    offset.at[i] = m.at[i] * factor;
    small = small && abs(offset.at[i]) < LARGEST_OFFSET;
  }
  if (simd_all(small)) return offset;
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) s.at[i][c] -= m.at[i];
    offset.at[i] = 0;
  }
  return offset;
}
#endif

#if RESCALES_APART
// Whether a row with scores up to `largest` keeps its reference m. One with a large offset, or none, never does.
METAL_FUNC bool stays(float m, float largest, float factor) {
  return abs(m * factor) < LARGEST_OFFSET && fma(largest, factor, -(m * factor)) <= LATE;
}
#endif

// m' = max(m, rowmax S);  P = 2^(S - m');  l' = l 2^(m - m') + sum P;  returns 2^(m - m'); differences times factor.
// A row that has not seen a key has m = -inf and l = 0. Its exponentials use 0 in place of m, so that they are 0 and
// not 2^(-inf - (-inf)) = NaN.
#if RESCALES_APART
// References move in a branch of their own, which few blocks take, and which multiplies the registers of the
// accumulator `o` too. Before it, lanes look at the scores of their own columns, and do not ask for the row's largest.
// Each row moves by its own scores alone, and one that does not move gets the same numbers on both ways.
template <int R, int C, typename O>
METAL_FUNC tile::RowVector<R> step(
    thread tile::Tile<float, R, C>& s, thread State<R>& state, thread O& o, float factor) {
  tile::RowVector<R> correction, offset;
  bool kept = true;
  for (int i = 0; i < R / 8; i++) {
    tile::Pair<float> most(-INFINITY);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) most = select(most, s.at[i][c], most < s.at[i][c]);  // NaN counts as nothing
    state.largest[i] = max(state.largest[i], max(most[0], most[1]));
    correction.at[i] = 1;
    offset.at[i] = state.m[i] * factor;
    kept = kept && stays(state.m[i], state.largest[i], factor);
  }
  if (!simd_all(kept)) {
    for (int i = 0; i < R / 8; i++) {
      const float before = state.m[i], largest = tile::row_max(state.largest[i]);
      state.m[i] = stays(before, largest, factor) ? before : largest;
      float reference = state.m[i] == -INFINITY ? 0 : state.m[i];
      correction.at[i] = fast_exp2(exponent(before, reference, factor));
      state.l[i] *= correction.at[i];
      offset.at[i] = reference * factor;
      if (abs(offset.at[i]) < LARGEST_OFFSET) reference = 0;
      else offset.at[i] = 0;
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) s.at[i][c] -= reference;
    }
    o.rescale(correction);
  }
  for (int i = 0; i < R / 8; i++) {
    float sum = 0;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      s.at[i][c] = fast_exp2(fma(s.at[i][c], tile::Pair<float>(factor), tile::Pair<float>(-offset.at[i])));
      sum += s.at[i][c][0] + s.at[i][c][1];
    }
#if PAGES
    sum = tile::row_sum(sum);
#endif
    state.l[i] += sum;
  }
  return correction;
}
#else
template <int R, int C>
METAL_FUNC tile::RowVector<R> step(thread tile::Tile<float, R, C>& s, thread State<R>& state, float factor) {
  tile::RowVector<R> correction, m, reference;
  for (int i = 0; i < R / 8; i++) {
    float most = -INFINITY;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) most = max(most, max(s.at[i][c][0], s.at[i][c][1]));
#if RESCALES_LATE
    const float largest = max(state.largest[i], tile::row_max(most));
    state.largest[i] = largest;
    m.at[i] = (largest - state.m[i]) * factor <= LATE ? state.m[i] : largest;
#else
    m.at[i] = max(state.m[i], tile::row_max(most));
#endif
    reference.at[i] = m.at[i] == -INFINITY ? 0 : m.at[i];
  }
#if FUSES_EXPONENTS
  const tile::RowVector<R> offset = fuse(s, reference, factor);
#endif
  for (int i = 0; i < R / 8; i++) {
    float l = 0;
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
#if FUSES_EXPONENTS
      s.at[i][c] = fast_exp2(fma(s.at[i][c], tile::Pair<float>(factor), tile::Pair<float>(-offset.at[i])));
#else
      s.at[i][c] = fast_exp2(exponent(s.at[i][c], reference.at[i], factor));
#endif
      l += s.at[i][c][0] + s.at[i][c][1];
    }
    correction.at[i] = fast_exp2(exponent(state.m[i], reference.at[i], factor));
#if PAGES
    l = tile::row_sum(l);
#endif
    state.l[i] = state.l[i] * correction.at[i] + l;
    state.m[i] = m.at[i];
  }
  return correction;
}
#endif

// Writes a row's m and log2 l
#if RESCALES_LATE
// m is the row's largest score, and l relative to it.
METAL_FUNC void store_statistics(device float* to, float largest, float m, float l, float factor) {
  to[0] = l == 0 ? -INFINITY : largest;
  to[1] = l == 0 ? 0 : log2(l) + (largest == m ? 0 : (m - largest) * factor);
}
#else
METAL_FUNC void store_statistics(device float* to, float m, float l) {
  to[0] = l == 0 ? -INFINITY : m;
  to[1] = l == 0 ? 0 : log2(l);
}
#endif

}  // namespace softmax
}  // namespace flash
