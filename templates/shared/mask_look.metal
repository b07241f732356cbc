// Looks at the array mask once per tile, before anything else: a block that it hides from all rows is not visited, and
// a block that it shows to all rows needs no protection from hidden NaN.
namespace flash {
namespace mask {

#if LOOKS
constant constexpr int SIMDGROUPS = BP / R;
// Elements at the end of threadgroup memory in which simdgroups that share blocks exchange their findings, in two turns
constant constexpr int VOTES = 2 * SIMDGROUPS * sizeof(uint) / sizeof(Element);

template <int ROWS, int C> struct Look {
  static_assert(C <= 128, "a word has a bit for each of a lane's elements of a row");
  uint shown[ROWS / 8];  // bit 2 c + e: is element e of fragment c shown?
  bool all;              // is every element of the tile shown?
  int turn = 0;

  METAL_FUNC bool shows(int i, int c, int e) const thread { return (shown[i] >> (2 * c + e) & 1) != 0; }

  // Looks at the tile that begins at (first_row, first_column), at columns before `end`. Returns whether any element is
  // shown to this simdgroup, or to one that shares its blocks.
  METAL_FUNC bool at(
      thread const Visibility& visibility, int first_row, int first_column, int end, bool edge,
      threadgroup Element* scratch, tile::Lane lane) thread {
    uint some = 0;
    all = true;
    for (int i = 0; i < ROWS / 8; i++) {
      // Rows past the end repeat the last one; an empty batch entry looks at row 0.
      const int last = max(0, (TRANSPOSED ? visibility.keys : visibility.rows) - 1);
      const int row = min(first_row + i * 8 + lane.row, last);
      shown[i] = 0;
#pragma clang loop unroll(full)
      for (int c = 0; c < C / 8; c++) {
        for (int e = 0; e < 2; e++) {
          const int column = first_column + tile::lane_place(C, c, lane.column) + tile::fixed_place(c) + e;
          if (edge && column >= end) continue;
          const MaskElement value = TRANSPOSED ? visibility.mask_at(column, row) : visibility.mask_at(row, column);
          const bool visible = ADDITIVE ? !(float(value) == -INFINITY) : value != MaskElement(0);
          shown[i] |= uint(visible) << (2 * c + e);
          all = all && visible;
        }
      }
      some |= shown[i];
    }
    all = simd_all(all);
    const bool any = simd_any(some != 0);
#if USES_THREADGROUP && !SPLITS_KEYS
    if (SIMDGROUPS > 1) return any_votes(any, scratch, lane);
#endif
    return any;
  }

#if USES_THREADGROUP && !SPLITS_KEYS
  // One barrier suffices: before a place is written again, all simdgroups pass the barrier of the other place.
  METAL_FUNC bool any_votes(bool any, threadgroup Element* scratch, tile::Lane lane) thread {
    threadgroup uint* votes = (threadgroup uint*)(scratch + (SCRATCH - VOTES)) + turn * SIMDGROUPS;
    turn = 1 - turn;
    if (lane.thread_index % 32 == 0) votes[lane.simdgroup] = any;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    bool found = false;
    for (int n = 0; n < SIMDGROUPS; n++) found = found || votes[n] != 0;
    return found;
  }
#endif
};
#elif MAPS
// Looks at the mask's map instead, for all rows of the threadgroup, so that consumer and producer warps agree.
template <int ROWS, int C> struct Look {
  bool all;

  METAL_FUNC bool at(
      thread const Visibility& visibility, int first_row, int first_column, int end, bool, threadgroup Element*,
      tile::Lane lane) thread {
    const int l = lane.thread_index % 32, block = first_row - int(lane.simdgroup) * ROWS;
    const Range rows = {block, min(block + BP, TRANSPOSED ? visibility.keys : visibility.rows)};
    const Range columns = {first_column, min(first_column + C * SLICES, end)};
#if GQA_PACKED
    const Range heads = {visibility.head_of(rows.begin), visibility.head_of(rows.end - 1) + 1}, keys = columns;
    const Range queries = {0, visibility.queries};
#else
    const Range heads = {0, 1}, queries = TRANSPOSED ? columns : rows, keys = TRANSPOSED ? rows : columns;
#endif
    bool some = false;
    all = true;
#pragma clang loop unroll(disable)
    for (int h = heads.begin; h < heads.end; h++) {
#pragma clang loop unroll(disable)
      for (int q = queries.begin / MAP_BLOCK + l / 8; q * MAP_BLOCK < queries.end; q += 4) {
#pragma clang loop unroll(disable)
        for (int k = keys.begin / MAP_BLOCK + l % 8; k * MAP_BLOCK < keys.end; k += 8) {
          const uint8_t state =
              visibility.map[h * visibility.mask_map_head + q * visibility.mask_map_row +
                             k * visibility.mask_map_column];
          some = some || state != EMPTY;
          all = all && state == FULL;
        }
      }
    }
    all = simd_all(all);
    return simd_any(some);
  }
};
#else
template <int ROWS, int C> struct Look {};
#endif

}  // namespace mask
}  // namespace flash
