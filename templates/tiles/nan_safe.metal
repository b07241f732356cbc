// NaN-safe P V for the tile layers of NVIDIA's tensor cores: masked keys may hold NaN or infinity, and 0 * NaN = NaN.
// Cold path, optimised for code size.
namespace flash {
namespace tile {

// 1 where an element of the pair meets the condition, else 0
template <typename T> METAL_FUNC uint nonzero(uint pair) {
  const uint one = as_type<uint>(Pair<T>(T(1)));
  return ((pair & 0x7fffu) != 0 ? one & 0xffffu : 0) | ((pair & 0x7fff0000u) != 0 ? one & 0xffff0000u : 0);
}

template <typename T> METAL_FUNC uint not_finite(uint pair) {
  const uint one = as_type<uint>(Pair<T>(T(1))), infinity = as_type<uint>(Pair<T>(T(INFINITY)));
  const uint low = infinity & 0xffffu, high = infinity & 0xffff0000u;
  return ((pair & low) == low ? one & 0xffffu : 0) | ((pair & high) == high ? one & 0xffff0000u : 0);
}

// The same, but 0 for one of the infinities
template <typename T> METAL_FUNC uint not_finite(uint pair, T but) {
  const uint same = pair ^ as_type<uint>(Pair<T>(but));
  return not_finite<T>(pair) & ~((same & 0xffffu ? 0 : 0xffffu) | (same & 0xffff0000u ? 0 : 0xffff0000u));
}

// The finite elements of a pair, zero in place of the others
template <typename T> METAL_FUNC uint finite(uint pair) {
  const uint bad = not_finite<T>(pair);
  return pair & ~((bad & 0xffffu ? 0xffffu : 0) | (bad & 0xffff0000u ? 0xffff0000u : 0));
}

// Whether every element of the block is finite, for blocks that a row sees only in part, since masked keys may hold
// NaN. The simdgroups of a warpgroup share the search.
template <typename T, int BT, int D, int BH, int THREADS, bool PART>
METAL_FUNC bool all_finite(thread const Traversed<T, BT, D, BH, THREADS, PART>& b) {
  constexpr int COLUMNS = Traversed<T, BT, D, BH, THREADS, PART>::COLUMNS;
  constexpr int VOTERS = (MMA_ROWS + 15) / 16;
  using Vote = nv::GroupVote<VOTERS>;
  // Adding the smallest step of the exponent to the bits of a magnitude carries into the sign for infinity and NaN
  // only.
  const uint step = 0x80008000u - as_type<uint>(Pair<T>(T(INFINITY)));
  uint found = 0, thread_index = b.lane.thread_index;
  nv::pin_register(thread_index);
  const int begin = Vote::begin(thread_index), end = Vote::end(thread_index);
  for (int part = begin; part < end; part++) {
    const threadgroup uint4* chunks = (const threadgroup uint4*)b.block + thread_index % 32 + part * (4 * PANEL / 8);
#pragma clang loop unroll(full)
    for (int panel = 0; panel < PANELS<COLUMNS>; panel++) {
#pragma clang loop unroll_count(4)
      for (int row = 0; row < BT; row += 4 * VOTERS) {
        const int r = row + part * 4 + thread_index % 32 / 8;
        const int column = panel * PANEL + (int(thread_index % 8) ^ (r & 7)) * 8;
        if (column >= COLUMNS) continue;  // chunks of the last panel that hold nothing
        const uint4 pairs = chunks[(panel * b.ROWS + row) * (PANEL / 8)];
        for (int e = 0; e < 4; e++) found |= (pairs[e] & 0x7fff7fffu) + step;
      }
    }
  }
  return Vote::all((found & 0x80008000u) == 0, thread_index);
}

// C += P B where B holds NaN or infinity that some row of P may not see. They enter the product as 0. Where P is not 0,
// an infinity is added afterwards, and for NaN both infinities, whose sum is NaN.
template <typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool PART>
METAL_FUNC void nan_safe_ab(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, PART>& block) {
  Traversed<T, BT, D, BH, THREADS, PART> b = block;
  const int first = (c.begin - b.begin()) / 16;
  nv::pin_register(b.lane.thread_index);  // no address of this path is computed before it
#pragma clang loop unroll(full)
  for (int i = 0; i < R / 16; i++) {
    uint4 rows[BT / 16];
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 16; t++) rows[t] = narrowed<T>(p, i, t);
#pragma clang loop unroll(disable)
    for (int d = 0; d < HELD<D> / 8; d++) {
      Pair<float> upper = c.get(2 * i, d), lower = c.get(2 * i + 1, d);
#pragma clang loop unroll(disable)
      for (int sign = 1; sign >= -1; sign -= 2) {
        Pair<float> upper_seen = Pair<float>(0), lower_seen = Pair<float>(0);
        const T other = T(-sign * INFINITY);  // counts in its own turn
#pragma clang loop unroll(disable)
        for (int t = 0; t < BT / 16; t++) {
          const uint4 both = b.transposed(t, first + d / 2);
          const uint2 columns = d % 2 ? both.zw : both.xy;
          const uint4 seen = uint4(
              nonzero<T>(rows[t].x), nonzero<T>(rows[t].y), nonzero<T>(rows[t].z), nonzero<T>(rows[t].w));
          nv::multiply<T>(
              upper_seen, lower_seen, seen, uint2(not_finite(columns.x, other), not_finite(columns.y, other)));
          if (sign > 0) nv::multiply<T>(upper, lower, rows[t], uint2(finite<T>(columns.x), finite<T>(columns.y)));
        }
        upper += select(Pair<float>(0), Pair<float>(sign * INFINITY), upper_seen > 0);
        lower += select(Pair<float>(0), Pair<float>(sign * INFINITY), lower_seen > 0);
      }
      c.set(2 * i, d, upper);
      c.set(2 * i + 1, d, lower);
    }
  }
}

}  // namespace tile
}  // namespace flash
