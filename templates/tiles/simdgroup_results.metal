// Results of products on 8x8 simdgroup matrices: accumulators in registers, or paged.
namespace flash {
namespace tile {

// A float32 result of R rows x D columns. CACHED: in registers until `store`. Otherwise paged, the deliberate
// register spill: it lives in its own float32 output buffer and visits registers BH columns at a time, once per block
// of the traversal. Every element is read and written by one lane only, so no barrier is needed.
template <int R, int D, int BH, bool CACHED> struct Accumulator {
#if CACHES
  Pair<float> cached[R / 8][CACHED ? D / 8 : 1];
#endif
#if PAGES
  device float* page;  // at this lane's row and its column of a whole group of fragments
#endif
  int row, column;
  int rows;  // the number of this simdgroup's rows that exist, from this lane's row on

  template <typename Out> METAL_FUNC void open(device Out* head, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    row = lane.row;
    column = lane.column;
#if PAGES
    if constexpr (!CACHED) page = own((device float*)head, first);
#endif
    for (int i = 0; i < R / 8; i++) {
      if (!exists(i)) continue;
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) {
        const int begin = d * 8 / BH * BH;
        set(i, begin, min(BH, D - begin), d - begin / 8, Pair<float>(0));
      }
    }
  }

  // This lane's row, and its column in a whole group of fragments
  template <typename Out> METAL_FUNC device Out* own(device Out* head, int first) const thread {
    return head + (long(first + row) * D + lane_column(8 * WIDE, 0, column));
  }

  // From there on, where fragment f of the i-th group of rows lies in a head block of `columns`
  METAL_FUNC int at(int i, int columns, int f) const thread {
    return i * 8 * D + fixed_column(f) + (lane_column(columns, f, column) - lane_column(8 * WIDE, 0, column));
  }

  // Whether the i-th group of rows has this lane's row; asked once for all its fragments, whose accesses then merge.
  METAL_FUNC bool exists(int i) const thread { return CACHED || i * 8 < rows; }

  // Fragment f of the head block of `columns` that begins at column `begin`, of rows that exist. No group of
  // fragments lies in two head blocks.
  METAL_FUNC Pair<float> get(int i, int begin, int columns, int f) const thread {
#if CACHES
    if constexpr (CACHED) return cached[i][begin / 8 + f];
#endif
#if PAGES
    return *(const device Pair<float>*)(page + begin + at(i, columns, f));
#endif
  }

  METAL_FUNC void set(int i, int begin, int columns, int f, Pair<float> value) thread {
#if CACHES
    if constexpr (CACHED) cached[i][begin / 8 + f] = value;
#endif
#if PAGES
    if (!CACHED) *(device Pair<float>*)(page + begin + at(i, columns, f)) = value;
#endif
  }

#if RESCALES_APART
  // Multiplies what registers hold, so that the factors are 1 from then on. Pages are multiplied when they are read.
  METAL_FUNC void rescale(thread RowVector<R>& factor) thread {
#if CACHES
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) cached[i][d] *= factor.at[i];
      factor.at[i] = 1;
    }
#endif
  }
#endif

  // Fragment d of all columns, a constant
  METAL_FUNC Pair<float> get(int i, int d) const thread {
    const int begin = d * 8 / BH * BH;
    return exists(i) ? get(i, begin, min(BH, D - begin), d - begin / 8) : Pair<float>(0);
  }

#if SPLITS_KEYS
  METAL_FUNC void set(int i, int d, Pair<float> value) thread {
    const int begin = d * 8 / BH * BH;
    if (exists(i)) set(i, begin, min(BH, D - begin), d - begin / 8, value);
  }
#endif

  // Out[first + row, :] = factor * result; rows are not apart (HEADS_BETWEEN).
  template <typename Out>
  METAL_FUNC void store(device Out* head, int, int first, RowVector<R> factor) const thread {
    device Out* out;
#if PAGES
    if constexpr (!CACHED) out = (device Out*)page;
#endif
#if CACHES
    if constexpr (CACHED) out = own(head, first);
#endif
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 >= rows) continue;
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) {
        const int begin = d * 8 / BH * BH;
        const Pair<float> value = get(i, d) * factor.at[i];
        Run<Out, 2> run = {Out(value[0]), Out(value[1])};
        *(device Run<Out, 2>*)(out + begin + at(i, min(BH, D - begin), d - begin / 8)) = run;
      }
    }
  }
};

}  // namespace tile
}  // namespace flash
