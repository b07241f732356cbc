// Results of products on NVIDIA's tensor cores: accumulators in registers, and P as an operand.
namespace flash {
namespace tile {

// A float32 result of R rows x D columns, or a part of its columns, in registers until `store`.
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  static_assert(CACHED, "accumulators stay in registers: choose a row that caches them");
  static constant constexpr int COLUMNS = HELD<D>;
  Pair<float> at[R / 8][COLUMNS / 8];
  int rows, row, column;
  int begin;  // first column of the part

  template <typename Out> METAL_FUNC void open(device Out*, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    row = lane.row;
    column = lane.column;
    begin = lane.part() * COLUMNS;
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < COLUMNS / 8; d++) at[i][d] = Pair<float>(0);
    }
  }

  METAL_FUNC void multiply(RowVector<R> factor) thread {
    // The factors are 1 once a row's largest score has come, which is soon.
    bool unchanged = true;
    for (int i = 0; i < R / 8; i++) unchanged = unchanged && factor.at[i] == 1;
    if (simd_all(unchanged)) return;
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < COLUMNS / 8; d++) at[i][d] *= factor.at[i];
    }
  }

  // Columns [8 d, 8 d + 8) for a d that is no constant: registers cannot be indexed.
  METAL_FUNC Pair<float> get(int i, int d) const thread {
    Pair<float> found = at[i][0];
#pragma clang loop unroll(full)
    for (int e = 1; e < COLUMNS / 8; e++) found = e == d ? at[i][e] : found;
    return found;
  }

  METAL_FUNC void set(int i, int d, Pair<float> value) thread {
#pragma clang loop unroll(full)
    for (int e = 0; e < COLUMNS / 8; e++) at[i][e] = e == d ? value : at[i][e];
  }

  // Out[first + row, :] = factor * result; rows of Out are `stride` elements apart.
  template <typename Out>
  METAL_FUNC void store(device Out* head, int stride, int first, RowVector<R> factor) const thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 >= rows) continue;
      device Out* out = head + long(first + i * 8 + row) * stride + begin + column;
#pragma clang loop unroll(full)
      for (int d = 0; d < COLUMNS / 8; d++) {
        if (begin + d * 8 < D) *(device Pair<Out>*)(out + d * 8) = Pair<Out>(at[i][d] * factor.at[i]);
      }
    }
  }
};

// Rows [16 i, +16) x columns [16 t, +16) of P as the first operand of mma
template <typename T, typename P, int R, int BT>
METAL_FUNC uint4 narrowed(thread const Tile<P, R, BT>& p, int i, int t) {
  return uint4(
      nv::narrow_pair<T>(p.at[2 * i][2 * t]), nv::narrow_pair<T>(p.at[2 * i + 1][2 * t]),
      nv::narrow_pair<T>(p.at[2 * i][2 * t + 1]), nv::narrow_pair<T>(p.at[2 * i + 1][2 * t + 1]));
}

}  // namespace tile
}  // namespace flash
