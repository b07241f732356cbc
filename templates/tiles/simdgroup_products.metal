// Products of tiles on 8x8 simdgroup matrices. NaN and infinities reach only the rows that see them.
namespace flash {
namespace tile {

// S += A[:, column : column + H] B[:, column : column + H]^T, one head block
#if USES_THREADGROUP
// In threadgroup memory, transposed: a run of a row serves WIDE_ROWS fragments of S.
template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void head_block_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  load_to_threadgroup<BT, H, true>(b, column);
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d++) {
    Pair<T> rows[R / 8];
    for (int i = 0; i < R / 8; i++) rows[i] = a.fragment(i, column / 8 + d);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t += WIDE_ROWS) {
      if (b.valid < BT && t * 8 >= b.valid) continue;
      const Run<Pair<T>, WIDE_ROWS> group = b.template transposed_group<H>(t, d);
#pragma clang loop unroll(full)
      for (int j = 0; j < min(WIDE_ROWS, BT / 8 - t); j++) {
        if (b.valid < BT && fixed_place(t + j) >= b.valid) continue;
        for (int i = 0; i < R / 8; i++) multiply(s.at[i][t + j], rows[i], group.at[j]);
      }
    }
  }
}
#else
// One fragment of columns of S, from the memory at `first` and `second` on: a run of memory serves DEEP fragments.
template <int H, int R, typename T, typename B, typename Place>
METAL_FUNC void direct_fragment(
    thread Pair<float> (&s)[R / 8], thread Pair<T> const (&rows)[R / 8][H / 8], thread const B& b,
    Place first, Place second, int column, int existing) {
  constexpr int FULL = H / 8 / DEEP * DEEP, REST = H / 8 - FULL;
#pragma clang loop unroll(full)
  for (int d = 0; d < FULL; d += DEEP) {
    const Run<Pair<T>, DEEP> group = b.template deep_group<DEEP>(first, second, column + d * 8, existing);
#pragma clang loop unroll(full)
    for (int j = 0; j < DEEP; j++) {
      for (int i = 0; i < R / 8; i++) multiply(s[i], rows[i][d + j], group.at[j]);
    }
  }
  if constexpr (REST > 0) {
    const Run<Pair<T>, REST> group = b.template deep_group<REST>(first, second, column + FULL * 8, existing);
#pragma clang loop unroll(full)
    for (int j = 0; j < REST; j++) {
      for (int i = 0; i < R / 8; i++) multiply(s[i], rows[i][FULL + j], group.at[j]);
    }
  }
}

template <int H, typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void head_block_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int column) {
  Pair<T> rows[R / 8][H / 8];
  for (int i = 0; i < R / 8; i++) a.template fragments<H>(i, column, rows[i]);
  auto at = b.down;
  Pair<float> sum[R / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++, at = b.next(at)) {
    if (b.valid < BT && t * 8 + 8 > b.valid) continue;
    for (int i = 0; i < R / 8; i++) sum[i] = s.at[i][t];
    direct_fragment<H, R>(sum, rows, b, at, b.rows_on(at, 1), column, 2);
    for (int i = 0; i < R / 8; i++) s.at[i][t] = sum[i];
  }
  if (b.valid % 8 == 0) return;
  // The fragment that contains the end, separately: only here some rows may not exist.
  const int last = b.valid / 8;
  at = b.rows_on(b.down, last * 8);
  pick(sum, s, last);
  direct_fragment<H, R>(sum, rows, b, at, b.rows_on(at, 1), column, b.valid - last * 8 - b.lane.column);
  put(s, sum, last);
}
#endif

// S = A B^T. Where A is in registers, which cannot be indexed, the loop over head blocks must be unrolled. Elsewhere,
// unrolling would only make the compiler keep the re-read fragments in registers.
template <typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b) {
  constexpr int BH = B::HEAD_BLOCK, FULL = D / BH * BH, REST = D - FULL;
  clear(s);
  if constexpr (CACHED) {
#pragma clang loop unroll(full)
    for (int column = 0; column < FULL; column += BH) head_block_abt<BH>(s, a, b, column);
  } else {
#pragma clang loop unroll(disable)
    for (int column = 0; column < FULL; column += BH) head_block_abt<BH>(s, a, b, column);
  }
  if constexpr (REST > 0) head_block_abt<REST>(s, a, b, FULL);
}

// Marks infinite and NaN elements of a pair by their sign bits: adding the smallest step of the exponent to the bits of
// a magnitude carries into the sign bit for these only.
#if SINGLE_PRECISION
template <typename T> METAL_FUNC uint2 not_finite(Pair<T> pair) {
  return ((as_type<uint2>(pair) & 0x7fffffffu) + 0x800000u) & 0x80000000u;
}

// The pair with 0 in place of the elements that `bad` marks
template <typename T> METAL_FUNC Pair<T> without(Pair<T> pair, uint2 bad) {
  return select(pair, Pair<T>(0), bad != 0u);
}

METAL_FUNC uint any_of(uint2 bits) { return bits.x | bits.y; }
#else
template <typename T> METAL_FUNC uint not_finite(Pair<T> pair) {
  const uint step = 0x80008000u - as_type<uint>(Pair<T>(T(INFINITY)));
  return ((as_type<uint>(pair) & 0x7fff7fffu) + step) & 0x80008000u;
}

template <typename T> METAL_FUNC Pair<T> without(Pair<T> pair, uint bad) {
  return as_type<Pair<T>>(as_type<uint>(pair) & ~((bad >> 15) * 0xffffu));
}

METAL_FUNC uint any_of(uint bits) { return bits; }
#endif

// block += one fragment of columns of P times rows [8 t, 8 t + 8) of B, which this lane reads from `at` on. FINITE:
// infinities and NaN of B count as 0; returns bits if there were any.
template <int H, bool FINITE, typename Narrow, int R, typename P, typename B, typename Source>
METAL_FUNC uint add_fragment(
    thread Pair<float> (&block)[R / 8][H / 8], thread Pair<P> const (&p)[R / 8], thread const B& b, Source at, int t,
    int column, bool exists = true) {
  using Element = typename B::Element;
  uint found = 0;
#pragma clang loop unroll(full)
  for (int d = 0; d < H / 8; d += WIDE) {
    const Run<Pair<Element>, WIDE> group = b.template group<H>(at, t, column, d, exists);
#pragma clang loop unroll(full)
    for (int j = 0; j < min(WIDE, H / 8 - d); j++) {
      Pair<Element> fragment = group.at[j];
      if constexpr (FINITE) {
        const auto bad = not_finite(fragment);
        fragment = without(fragment, bad);
        found |= any_of(bad);
      }
      for (int i = 0; i < R / 8; i++) multiply(block[i][d + j], Pair<Narrow>(p[i]), fragment);
    }
  }
  return found;
}

// block += P B[:, column : column + H]. FINITE: as above; returns whether there were any.
template <int H, bool FINITE, typename Narrow, typename P, int R, int BT, typename B>
METAL_FUNC bool add_product(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
  uint found = 0;
  auto at = b.source(b.lane.row);
  Pair<P> rows[R / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++, at = b.next(at)) {
#if USES_THREADGROUP
    if (b.valid < BT && fixed_place(t) >= b.valid) continue;
#else
    if (b.valid < BT && t * 8 + 8 > b.valid) continue;
#endif
    for (int i = 0; i < R / 8; i++) rows[i] = p.at[i][t];
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, at, t, column);
  }
#if !USES_THREADGROUP
  if (b.valid % 8 != 0) {  // the fragment that contains the end, as in head_block_abt
    const int last = b.valid / 8, row = last * 8 + b.lane.row;
    pick(rows, p, last);
    found |= add_fragment<H, FINITE, Narrow, R>(block, rows, b, b.source(row), last, column, row < b.valid);
  }
#endif
  return FINITE && simd_any(found != 0);
}

// Adds what `add_product` left out: an infinity or NaN of B goes to the rows with P != 0 there. This is rare, so the
// code aims at few registers, not at speed: row by row of B, with the weight of each row of P from the lane that holds
// it.
template <int H, typename P, int R, int BT, typename B>
METAL_FUNC void add_not_finite(
    thread Pair<float> (&block)[R / 8][H / 8], thread const Tile<P, R, BT>& p, thread const B& b, int column) {
#pragma clang loop unroll(disable)
  for (int t = 0; t < BT / 8; t++) {
    Pair<P> weights[R / 8];
    pick(weights, p, t);
#pragma clang loop unroll(disable)
    for (int k = 0; k < 8; k++) {
      B row = b;  // read as if every lane were in row k of its fragment
      row.lane.row = k;
#pragma clang loop unroll(full)
      for (int d = 0; d < H / 8; d += WIDE) {
        const auto group = row.template group<H>(b.source(t * 8 + k), t, column, d, t * 8 + k < b.valid);
        for (int i = 0; i < R / 8; i++) {
          const float weight = simd_shuffle(float(weights[i][k % 2]), b.lane.holder(k));
#pragma clang loop unroll(full)
          for (int j = 0; j < min(WIDE, H / 8 - d); j++) {
            const Pair<float> x = Pair<float>(group.at[j]);
            block[i][d + j] += select(Pair<float>(0), x * weight, !isfinite(x) && weight != 0);
          }
        }
      }
    }
  }
}

// C[:, column : column + H] = factor * C[:, ..] + P B[:, ..], one head block
template <int H, typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void head_block_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    int column, bool whole) {
#if USES_THREADGROUP
  load_to_threadgroup<BT, H, false>(b, column);
#endif
  Pair<float> block[R / 8][H / 8];
  // In float32 the summation is blocked, so that the error grows with the number of traversed blocks and not with the
  // number of keys.
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) block[i][d] = Pair<float>(0);
#if !SINGLE_PRECISION
    if (!c.exists(i)) continue;
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) block[i][d] = c.get(i, column, H, d) * factor.at[i];
#endif
  }
  // Keeps accesses to the page out of the matmul loop: interleaved with it they cost M4 a third of its throughput.
#if PAGES
  if (!CACHED) simdgroup_barrier(mem_flags::mem_none);
#endif
  if (whole && !b.edge) {
    add_product<H, false, Narrow>(block, p, b, column);
  } else if (add_product<H, true, Narrow>(block, p, b, column)) {
    add_not_finite<H>(block, p, b, column);
  }
#if PAGES
  if (!CACHED) simdgroup_barrier(mem_flags::mem_none);
#endif
  for (int i = 0; i < R / 8; i++) {
    if (!c.exists(i)) continue;
#pragma clang loop unroll(full)
    for (int d = 0; d < H / 8; d++) {
#if SINGLE_PRECISION
      block[i][d] += c.get(i, column, H, d) * factor.at[i];
#endif
      c.set(i, column, H, d, block[i][d]);
    }
  }
}

// C = factor * C + P B. P is converted to the type `Narrow` for the matrix unit.
// whole: every row of P sees every row of B, so that NaN or infinity in B propagates.
template <typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    bool whole) {
  constexpr int FULL = D / BH * BH, REST = D - FULL;
#if CACHES
  if constexpr (CACHED) {
#pragma clang loop unroll(full)
    for (int column = 0; column < FULL; column += BH) head_block_ab<BH, Narrow>(c, factor, p, b, column, whole);
  }
#endif
#if PAGES
  if constexpr (!CACHED) {
#pragma clang loop unroll(disable)
    for (int column = 0; column < FULL; column += BH) head_block_ab<BH, Narrow>(c, factor, p, b, column, whole);
  }
#endif
  if constexpr (REST > 0) head_block_ab<REST, Narrow>(c, factor, p, b, FULL, whole);
}

}  // namespace tile
}  // namespace flash
