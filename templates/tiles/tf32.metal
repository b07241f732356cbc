// The tile layer's products of float32 operands by mma.sync, which takes TF32: float32 with 11 significant bits
// (compute capability 8.0 and later). A number is the sum of two, and the product of two low parts is less than the
// rounding of float32:
//
//   x = high + low                                     high = x in TF32
//   x y = high high' + high low' + low high'
//
// The matrix unit truncates its sums, which would be an error of the same sign for every addition. So it starts from
// zero for a few steps at a time, with small products by themselves, and float32 additions join these sums.
//
// Infinity, NaN and the largest numbers, which TF32 rounds to infinity, are no such sums, and what they meet becomes
// infinity or NaN. Results that are not finite are computed again, which keeps the bits of all others. Cold path,
// optimised for code size.
namespace flash {
namespace tile {

constant constexpr int SUMMED = 4;  // steps of S that the matrix unit adds
constant constexpr float SPLITS_BELOW = 3.40199290171201906e38f;  // 2^128 - 2^116: from here on TF32 is infinity

// An operand's registers as two TF32 numbers each. The matrix unit ignores the bits that TF32 has not.
template <typename Words> struct Split {
  Words high, low;
};

METAL_FUNC uint less(uint x, uint high) { return as_type<uint>(as_type<float>(x) - as_type<float>(high)); }

// Rows are rounded, so that low parts have either sign, and the products of two low parts cancel.
METAL_FUNC Split<uint4> split(uint4 x) {
  Split<uint4> parts;
  parts.high = (x + 0x1000u) & 0xffffe000u;
  for (int e = 0; e < 4; e++) parts.low[e] = less(x[e], parts.high[e]);
  return parts;
}

// Columns, of which every fragment serves three products only, are truncated, by the matrix unit.
METAL_FUNC Split<uint2> split(uint2 x) {
  return {x, uint2(less(x.x, x.x & 0xffffe000u), less(x.y, x.y & 0xffffe000u))};
}

// A fragment of 16 x 8 sums: rows 0 to 7 in `upper`, 8 to 15 in `lower`. Each of the three products has its own sum, so
// that none waits for another.
struct Sums {
  Pair<float> upper, lower, small_upper[2], small_lower[2];

  METAL_FUNC void clear() thread {
    upper = lower = Pair<float>(0);
    for (int n = 0; n < 2; n++) small_upper[n] = small_lower[n] = Pair<float>(0);
  }

  METAL_FUNC void add(Split<uint4> a, Split<uint2> b) thread {
    nv::multiply<float>(small_upper[0], small_lower[0], a.low, b.high);
    nv::multiply<float>(small_upper[1], small_lower[1], a.high, b.low);
    nv::multiply<float>(upper, lower, a.high, b.high);
  }

  METAL_FUNC void join() thread {
    upper += small_upper[0] + small_upper[1];
    lower += small_lower[0] + small_lower[1];
  }
};

template <int R, int C> METAL_FUNC void narrow(thread Tile<float, R, C>& to, thread const Tile<float, R, C>& from) {
  to = from;
}

// Elements (row, column) and (row, column + 1) of a block of ROWS rows; column even
template <int ROWS> METAL_FUNC Pair<float> pair_of(const threadgroup float* block, int row, int column) {
  return *(const threadgroup Pair<float>*)(block + place<ROWS>(row, column) + column % CHUNK);
}

// Computes the elements of S = A B^T that are not finite as float32 does.
template <int BP, int R, int D, int BT, int BH, int THREADS>
METAL_FUNC void repair_abt(
    thread Tile<float, R, BT>& s, thread const Rows<float, BP, R, D, false>& a,
    thread const Traversed<float, BT, D, BH, THREADS>& b) {
#pragma clang loop unroll(full)
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t++) {
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; e++) {
        if (isfinite(s.at[i][t][e])) continue;
        float sum = 0;
#pragma clang loop unroll(disable)
        for (int d = 0; d < D; d += 2) {
          const Pair<float> x = pair_of<BP>(a.block, a.first + i * 8 + a.lane.row, d);
          const Pair<float> y = pair_of<BT>(b.block, t * 8 + b.lane.column + e, d);
          sum = fma(x[1], y[1], fma(x[0], y[0], sum));
        }
        s.at[i][t][e] = sum;
      }
    }
  }
}

template <int BP, int R, int D, int BT, int BH, int THREADS>
METAL_FUNC void repair_unless_finite(
    thread Tile<float, R, BT>& s, thread const Rows<float, BP, R, D, false>& a,
    thread const Traversed<float, BT, D, BH, THREADS>& b) {
  Pair<float> zero = Pair<float>(0);  // 0 * NaN = 0 * infinity = NaN
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++) zero = fma(s.at[0][t], Pair<float>(0), fma(s.at[1][t], Pair<float>(0), zero));
  if (!simd_all(zero[0] + zero[1] == 0)) repair_abt(s, a, b);
}

#if !LOW_PARTS
// S = A B^T
template <int BP, int R, int D, int BT, int BH, int THREADS>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<float, BP, R, D, false>& a,
    thread const Traversed<float, BT, D, BH, THREADS>& b) {
  static_assert(R == 16, "a simdgroup owns the rows of one instruction");
  constexpr bool WHOLE = STEPS<D> % SUMMED == 0;
  clear(s);
#pragma clang loop unroll(disable)
  for (int d = 0; d < STEPS<D>; d += SUMMED) {
    Split<uint4> rows[SUMMED];
#pragma clang loop unroll(full)
    for (int n = 0; n < SUMMED; n++) {
      if (WHOLE || d + n < STEPS<D>) rows[n] = split(a.fragment(0, d + n));
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 16; t++) {
      Sums left, right;
      left.clear();
      right.clear();
#pragma clang loop unroll(full)
      for (int n = 0; n < SUMMED; n++) {
        if (!WHOLE && d + n >= STEPS<D>) continue;
        const uint4 columns = b.fragment(t, d + n);
        left.add(rows[n], split(columns.xy));
        right.add(rows[n], split(columns.zw));
      }
      left.join();
      right.join();
      s.at[0][2 * t] += left.upper;
      s.at[1][2 * t] += left.lower;
      s.at[0][2 * t + 1] += right.upper;
      s.at[1][2 * t + 1] += right.lower;
    }
  }
  repair_unless_finite(s, a, b);
}
#endif

METAL_FUNC bool splits(float x) { return abs(x) < SPLITS_BELOW; }  // false for NaN

// P as first operand of mma. Its column t is key 2 t, its column t + 4 key 2 t + 1: lanes hold their own elements so.
// Numbers that do not split stay in `high`.
METAL_FUNC Split<uint4> split_rows(Pair<float> upper, Pair<float> lower) {
  const float4 x = float4(upper[0], lower[0], upper[1], lower[1]);
  Split<uint4> parts = split(as_type<uint4>(x));
#pragma clang loop unroll(full)
  for (int e = 0; e < 4; e++) {
    parts.high[e] = splits(x[e]) ? parts.high[e] : as_type<uint>(x[e]);
    parts.low[e] = splits(x[e]) ? parts.low[e] : 0;
  }
  return parts;
}

// Keys [8 t, +8), in the order of P's columns, x columns [8 d, +8) as the second operand of P B
template <int D, int BT, int BH, int THREADS, bool PART>
METAL_FUNC uint2 transposed(thread const Traversed<float, BT, D, BH, THREADS, PART>& b, int t, int d) {
  // As `place` has it, with what differs between lanes apart from what t and d say: few addresses serve all fragments.
  const int chunk = (d * 8 % PANEL / CHUNK) ^ (b.lane.row / CHUNK) ^ b.lane.column;
  const threadgroup float* row = b.block + ((d * 8 / PANEL * BT + t * 8 + b.lane.column) * PANEL + b.lane.row % CHUNK);
  return uint2(as_type<uint>(row[chunk * CHUNK]), as_type<uint>(row[PANEL + (chunk ^ 1) * CHUNK]));
}

METAL_FUNC uint split_or_zero(uint x) { return splits(as_type<float>(x)) ? x : 0; }

// sum += x y where one of them does not split. whole: where x is 0, too
METAL_FUNC void add_whole(thread Pair<float>& sum, float x, Pair<float> y, bool whole) {
  for (int e = 0; e < 2; e++) {
    if (!(splits(x) && splits(y[e])) && (whole || x != 0)) sum[e] += x * y[e];
  }
}

// C += P B for the fragments of columns in `missed`, bit d for columns [8 d, +8): the products of numbers that split,
// with the same bits as otherwise, and then the others.
template <int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void repair_ab(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Split<uint4> (&rows)[BT / 8],
    thread const Traversed<float, BT, D, BH, THREADS, PART>& b, bool whole, uint missed) {
#pragma clang loop unroll(disable)
  for (int d = 0; d < D / 8; d++) {
    if (simd_all((missed >> d & 1) == 0)) continue;
    Sums sums;
    sums.clear();
    Pair<float> upper = Pair<float>(0), lower = Pair<float>(0);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t++) {
      const uint2 columns = transposed(b, t, d);
      Split<uint4> own = rows[t];
      float4 x;
      for (int e = 0; e < 4; e++) {
        x[e] = as_type<float>(own.high[e]) + as_type<float>(own.low[e]);
        own.high[e] = split_or_zero(own.high[e]);
      }
      sums.add(own, split(uint2(split_or_zero(columns.x), split_or_zero(columns.y))));
#pragma clang loop unroll(disable)
      for (int n = 0; n < 4; n++) {  // the lanes that hold these rows of P
        const ushort lane = ushort(b.lane.thread_index % 32 / 4 * 4 + n);
        const Pair<float> even = pair_of<BT>(b.block, t * 8 + 2 * n, d * 8 + b.lane.column);
        const Pair<float> odd = pair_of<BT>(b.block, t * 8 + 2 * n + 1, d * 8 + b.lane.column);
        add_whole(upper, simd_shuffle(x[0], lane), even, whole);
        add_whole(lower, simd_shuffle(x[1], lane), even, whole);
        add_whole(upper, simd_shuffle(x[2], lane), odd, whole);
        add_whole(lower, simd_shuffle(x[3], lane), odd, whole);
      }
    }
    sums.join();
    if ((missed >> d & 1) == 0) continue;
    c.set(0, d, c.get(0, d) + (sums.upper + upper));
    c.set(1, d, c.get(1, d) + (sums.lower + lower));
  }
}

// C[:, 8 d : 8 d + 8] += sums, unless one of them is not finite; returns whether it is so.
template <int R, int D, int BH, bool CACHED>
METAL_FUNC bool add_finite(thread Accumulator<R, D, BH, CACHED>& c, int d, Sums sums) {
  sums.join();
  const Pair<float> both = sums.upper + sums.lower;
  const bool finite = (both[0] + both[1]) * 0 == 0;
  c.at[0][d] += finite ? sums.upper : Pair<float>(0);
  c.at[1][d] += finite ? sums.lower : Pair<float>(0);
  return !finite;
}

// C = factor * C + P B.  whole: every row of P sees every row of B, so that NaN or infinity in B propagates; otherwise
// a row of P does not see what it has a 0 for.
template <typename Narrow, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<float, R, BT>& p,
    thread const Traversed<float, BT, D, BH, THREADS, PART>& b, bool whole) {
  static_assert(D <= 256, "a bit of 32 for each fragment of columns");
  c.multiply(factor);
  Split<uint4> rows[BT / 8];
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 8; t++) rows[t] = split_rows(p.at[0][t], p.at[1][t]);
  uint missed = 0;
#pragma clang loop unroll(full)
  for (int d = 0; d < D / 8; d += 2) {
    const bool pair = d + 1 < D / 8;
    Sums left, right;
    left.clear();
    right.clear();
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t++) {
      left.add(rows[t], split(transposed(b, t, d)));
      if (pair) right.add(rows[t], split(transposed(b, t, d + 1)));
    }
    missed |= uint(add_finite(c, d, left)) << d;
    if (pair) missed |= uint(add_finite(c, d + 1, right)) << (d + 1);
  }
  if (!simd_all(missed == 0)) repair_ab(c, rows, b, whole, missed);
}

}  // namespace tile
}  // namespace flash
