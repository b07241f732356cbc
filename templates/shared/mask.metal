// Which keys a query sees and what is added to its scores: the only place that decides it, for every kernel.
//
//   seen_by(...)    which run of a tile's columns may a row see, by their positions?
//   admits(i, j)    may query i see key j, by everything except its position?
//   bias(i, j)      what is added to their score, in base 2
//   range(n)        the n-th run of traversed rows to visit, which causality, windows and block lists leave
//   look_at, skip   does no pair of a block belong to one segment? Then the block is not visited
//   covers(...)     is every pair of a rectangle visible, array masks aside? Then positions are not tested per element
//
// A row is a query, except in decoding (GQA_PACKED): there the rows of an operand are all queries that share a key
// head, and row i is query i % queries of the group's head i / queries. Only query_of and head_of know.
//
// A query's own position among the keys is i + keys - queries: causality and windows align to the lower right. With
// HAS_SHIFTS it is i + q_shifts[i], and k_shifts[j] for the queries that key j meets: segments of unequal lengths align
// to their own lower right. Both are in one operand, shifts [B, Lq + Lk]; with segments they follow q_segments' rows,
// because Metal gives a kernel no more than 31 buffers.
// Features that are off leave no code and no kernel argument; those that are on name their arguments below the marker.
#define GQA_PACKED $GQA_PACKED
#define HAS_WINDOW $HAS_WINDOW
#define HAS_MASK $HAS_MASK
#define HAS_ALIBI $HAS_ALIBI
#define HAS_SEGMENTS $HAS_SEGMENTS
#define HAS_SHIFTS $HAS_SHIFTS
#define HAS_BLOCKS $HAS_BLOCKS
constant constexpr bool CAUSAL = $CAUSAL, ADDITIVE = $ADDITIVE;  // ADDITIVE: the array mask is added, not tested
constant constexpr int BLOCK = $BLOCK;                           // rows and columns of a block of the block mask
using MaskElement = $MASK_ELEMENT;

namespace mask {

struct Range {
  int begin, end;
};

// The least and largest segment, or shift, in a run of rows.
METAL_FUNC Range span(const device int* segments, int begin, int end, tile::Lane lane) {
  Range found = {INT_MAX, INT_MIN};
  for (int i = begin + int(lane.thread_index % 32); i < end; i += 32) {
    found.begin = min(found.begin, segments[i]);
    found.end = max(found.end, segments[i]);
  }
  found.begin = simd_min(found.begin);
  found.end = simd_max(found.end);
  return found;
}

struct Visibility {
  int rows, queries, keys;  // rows = queries except in decoding
  int left, right;          // the window: keys this far before and after the query's own position
  float slope;              // of ALiBi, times log2(e)
  const device float* slopes;  // of the heads from the first one on
  const device MaskElement* mask;
  long mask_head, mask_row, mask_column;
  const device int* q_segments;
  const device int* k_segments;
  const device int* q_shifts;
  const device int* k_shifts;
  const device int* block_map;       // 0: empty, 1: full, n + 2: partial with bitmap n
  const device uint8_t* bitmaps;
  const device int* block_list;      // traversed blocks of this threadgroup's rows
  // num_blocks: length of the list; block_is_full: 1 if every pair of the visited block is visible
  int block_columns, num_blocks, block_is_full;
  long map_head;
  Range row_segments, tile_segments;  // segments of this threadgroup's rows, and of the traversed block
  Range row_shifts;                   // shifts of this threadgroup's rows

  METAL_FUNC int query_of(int row) const thread { return GQA_PACKED ? row % queries : row; }
  METAL_FUNC int head_of(int row) const thread { return GQA_PACKED ? row / queries : 0; }

  METAL_FUNC int shift_of_query(int i) const thread { return HAS_SHIFTS ? q_shifts[i] : keys - queries; }
  METAL_FUNC int shift_of_key(int j) const thread { return HAS_SHIFTS ? k_shifts[j] : keys - queries; }
  METAL_FUNC int least_shift() const thread { return HAS_SHIFTS ? row_shifts.begin : keys - queries; }
  METAL_FUNC int largest_shift() const thread { return HAS_SHIFTS ? row_shifts.end : keys - queries; }

  METAL_FUNC int distance(int i, int j) const thread { return j - i - shift_of_query(i); }

  METAL_FUNC MaskElement mask_at(int row, int j) const thread {
    return mask[head_of(row) * mask_head + query_of(row) * mask_row + j * mask_column];
  }

  METAL_FUNC bool admits(int row, int j) const thread {
    const int i = query_of(row);
    if (HAS_SEGMENTS && q_segments[i] != k_segments[j]) return false;
    if (HAS_MASK && !ADDITIVE && mask_at(row, j) == MaskElement(0)) return false;
    if (HAS_BLOCKS) {
      const int block = block_map[head_of(row) * map_head + i / BLOCK * block_columns + j / BLOCK];
      if (block < 2) return block == 1;
      return bitmaps[long(block - 2) * (BLOCK * BLOCK) + i % BLOCK * BLOCK + j % BLOCK] != 0;
    }
    return true;
  }

  METAL_FUNC float bias(int row, int j) const thread {
    float sum = 0;
    if (HAS_MASK && ADDITIVE) sum += float(mask_at(row, j)) * M_LOG2E_F;
    if (HAS_ALIBI) {
      const float head_slope = GQA_PACKED ? slopes[head_of(row)] * M_LOG2E_F : slope;
      sum -= head_slope * float(abs(distance(query_of(row), j)));
    }
    return sum;
  }

  METAL_FUNC Range keys_of(int first_query, int last_query) const thread {
    return keys_at(first_query + least_shift(), min(last_query, queries - 1) + largest_shift());
  }

  METAL_FUNC Range queries_of(int first_key, int last_key) const thread {
    return queries_at(first_key - largest_shift(), min(last_key, keys - 1) - least_shift());
  }

  // The keys that queries with positions from `first` to `last` see by causality and windows
  METAL_FUNC Range keys_at(int first, int last) const thread {
    Range seen = {0, keys};
    if (CAUSAL) seen.end = min(seen.end, last + 1);
    if (HAS_WINDOW) seen = Range{max(0, first - left), min(seen.end, last + right + 1)};
    return seen;
  }

  // The queries that see keys by causality and windows, where queries `first` and `last` have the keys' positions
  METAL_FUNC Range queries_at(int first, int last) const thread {
    Range seen = {0, queries};
    if (CAUSAL) seen.begin = max(0, first);
    if (HAS_WINDOW) seen = Range{max(seen.begin, first - right), min(queries, last + left + 1)};
    return seen;
  }

  // The keys that a row sees by causality and windows, or (TRANSPOSED) the queries that see a key
  template <bool TRANSPOSED> METAL_FUNC Range seen_by(int row) const thread {
    if (row >= (TRANSPOSED ? keys : rows)) return {0, 0};
    if (TRANSPOSED) return queries_at(row - shift_of_key(row), row - shift_of_key(row));
    const int query = query_of(row), position = query + shift_of_query(query);
    return keys_at(position, position);
  }

  METAL_FUNC int ranges() const thread { return HAS_BLOCKS ? num_blocks : 1; }

  METAL_FUNC Range range(int n, Range within) thread {
    if (!HAS_BLOCKS) return within;
    const int entry = block_list[n], block = entry >> 1;
    block_is_full = entry & 1;
    return {max(within.begin, block * BLOCK), min(within.end, (block + 1) * BLOCK)};
  }

  // Is this block of BT keys an edge: partly past the end, or seen by these queries only in part, array masks aside?
  // Blocks that are not have a loop of their own, whose code knows no edges. Queries past the last see what they like.
  template <int BT>
  METAL_FUNC bool edge_of_keys(Range range, int first_query, int last_query, int key, tile::Lane lane) thread {
    look_at(k_segments, key, min(key + BT, range.end), lane);
    return !tile::SPLIT || key + BT > range.end || !covers(first_query, min(last_query, rows - 1), key, key + BT - 1);
  }

  // The same for a block of queries that these keys are walked by
  template <int BT>
  METAL_FUNC bool edge_of_queries(Range range, int first_key, int last_key, int query, tile::Lane lane) thread {
    look_at(q_segments, query, min(query + BT, range.end), lane);
    return !tile::SPLIT || query + BT > range.end || !covers(query, query + BT - 1, first_key, min(last_key, keys - 1));
  }

  // For kernels that walk no list: enters the block of this query and key; false if it is empty
  METAL_FUNC bool enter(int i, int j) thread {
    block_is_full = block_map[i / BLOCK * block_columns + j / BLOCK];
    return block_is_full != 0;
  }

  // In decoding, where every head may have blocks of its own: false if the block of key j is empty for all heads
  METAL_FUNC bool enter_gqa_block(int first_row, int last_row, int j) thread {
    bool found = false;
    block_is_full = 1;
    for (int h = head_of(first_row); h <= head_of(min(last_row, rows - 1)); h++) {
      const int block = block_map[h * map_head + j / BLOCK];
      found = found || block != 0;
      if (block != 1) block_is_full = 0;
    }
    return found;
  }

  // Learns the segments of the traversed block: of rows [begin, end)
  METAL_FUNC void look_at(const device int* segments, int begin, int end, tile::Lane lane) thread {
    if (HAS_SEGMENTS) tile_segments = span(segments, begin, end, lane);
  }

  METAL_FUNC bool skip() const thread {
    if (!HAS_SEGMENTS) return false;
    return tile_segments.begin > row_segments.end || tile_segments.end < row_segments.begin;
  }

  // Is every pair of the rectangle visible, array masks aside?
  METAL_FUNC bool covers(int first_query, int last_query, int first_key, int last_key) const thread {
    if (GQA_PACKED) {  // any query may be among the rows; rows past the end repeat the last one and are never stored
      first_query = 0;
      last_query = queries - 1;
    }
    if (last_query >= queries || last_key >= keys) return false;
    const int nearest = first_key - last_query - largest_shift(), farthest = last_key - first_query - least_shift();
    if (CAUSAL && farthest > 0) return false;
    if (HAS_WINDOW && (nearest < -left || farthest > right)) return false;
    if (HAS_SEGMENTS) {  // one segment, and the same
      if (row_segments.begin != row_segments.end || tile_segments.begin != tile_segments.end) return false;
      if (row_segments.begin != tile_segments.begin) return false;
    }
    return !HAS_BLOCKS || block_is_full == 1;
  }
};

// S[i, j] += bias, or -inf where query first_query + i must not see key first_key + j. Returns whether all are seen.
// TRANSPOSED: the rows of the tile are keys and its columns queries. `valid`: columns this visit of the block covers.
// `edge`: whether positions may hide any.
template <bool TRANSPOSED, int R, int C>
METAL_FUNC bool apply(
    thread tile::Tile<float, R, C>& s, thread const Visibility& visibility, int first_query, int first_key, int valid,
    tile::Lane lane, bool edge = true) {
  // All simdgroups of a warpgroup must take the same path: the question is asked for all their rows.
  const int mma_rows = max(R, tile::MMA_ROWS), queries = TRANSPOSED ? C : mma_rows, keys = TRANSPOSED ? mma_rows : C;
  const int query0 = TRANSPOSED ? first_query : first_query / mma_rows * mma_rows;
  const int key0 = TRANSPOSED ? first_key / mma_rows * mma_rows : first_key;
  const bool covered =
      !edge || (valid == C && visibility.covers(query0, query0 + queries - 1, key0, key0 + keys - 1));
  const bool whole = covered && !(HAS_MASK && !ADDITIVE);
  if (whole && !(HAS_MASK && ADDITIVE) && !HAS_ALIBI) return true;
  const int first_row = TRANSPOSED ? first_key : first_query, first_column = TRANSPOSED ? first_query : first_key;
  constexpr bool BEGINS = HAS_WINDOW || (TRANSPOSED && CAUSAL);  // else every row sees the first column
  for (int i = 0; i < R / 8; i++) {
    // Rows past the end are never stored. Where positions hide none, they repeat the last row, whose mask exists.
    const int own_row = first_row + i * 8 + lane.row, last_row = (TRANSPOSED ? visibility.keys : visibility.rows) - 1;
    const int row = edge ? own_row : min(own_row, last_row);
    const Range seen = visibility.seen_by<TRANSPOSED>(row);
    const int begin = seen.begin - first_column, end = min(seen.end - first_column, valid);
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      // Compared are constants with what is the same for all fragments: sums of the two would take a register each.
      const int own = tile::lane_place(C, c, lane.column);
      for (int e = 0; e < 2; e++) {
        const int fixed = tile::fixed_place(c) + e, column = first_column + own + fixed;
        const int query = TRANSPOSED ? column : row, key = TRANSPOSED ? row : column;
        const bool visible = !edge || ((!BEGINS || fixed >= begin - own) && fixed < end - own);
        if (visible && visibility.admits(query, key)) {
          // A bias of -inf hides the key, and with it a score that is no number.
          const float bias = visibility.bias(query, key);
          s.at[i][c][e] = bias == -INFINITY ? -INFINITY : s.at[i][c][e] + bias;
        } else {
          s.at[i][c][e] = -INFINITY;
        }
      }
    }
  }
  // An additive mask may hide a key too: only its values tell.
  return whole && !(HAS_MASK && ADDITIVE);
}

}  // namespace mask
// ---- body
mask::Visibility visibility;
visibility.rows = Q_shape[2];
visibility.keys = K_shape[2];
#if GQA_PACKED
visibility.queries = decode_params[0];
#else
visibility.queries = Q_shape[2];
#endif
#if HAS_WINDOW
visibility.left = window[0];
visibility.right = window[1];
#endif
#if HAS_SEGMENTS
visibility.q_segments = q_segments + int(threadgroup_position_in_grid.z) * q_segments_strides[0];
visibility.k_segments = k_segments + int(threadgroup_position_in_grid.z) * k_segments_strides[0];
#endif
#if HAS_SHIFTS && HAS_SEGMENTS
visibility.q_shifts = visibility.q_segments + visibility.queries;
visibility.k_shifts = visibility.q_shifts + visibility.queries;
#elif HAS_SHIFTS
visibility.q_shifts = shifts + long(threadgroup_position_in_grid.z) * (visibility.queries + visibility.keys);
visibility.k_shifts = visibility.q_shifts + visibility.queries;
#endif

// What varies with the head (the group's first head in decoding); `row` is the first of this threadgroup's rows.
#if HAS_MASK
#define OPEN_MASK(b, h) \
  visibility.mask = attention_mask + (b) * attention_mask_strides[0] + (h) * attention_mask_strides[1]; \
  visibility.mask_head = attention_mask_strides[1]; \
  visibility.mask_row = attention_mask_strides[2]; \
  visibility.mask_column = attention_mask_strides[3];
#else
#define OPEN_MASK(b, h)
#endif
#if HAS_ALIBI
#define OPEN_ALIBI(h) \
  visibility.slopes = slopes + (h); \
  visibility.slope = slopes[h] * M_LOG2E_F;
#else
#define OPEN_ALIBI(h)
#endif
#if HAS_BLOCKS
#define OPEN_MAP(b, h) \
  visibility.bitmaps = block_bitmaps; \
  visibility.block_map = block_map + (b) * block_map_strides[0] + (h) * block_map_strides[1]; \
  visibility.map_head = block_map_strides[1]; \
  visibility.block_columns = block_map_strides[2];
#endif
#if HAS_BLOCKS && GQA_PACKED
#define OPEN_BLOCKS(b, h, row) OPEN_MAP(b, h)
#elif HAS_BLOCKS
#define OPEN_BLOCKS(b, h, row) \
  OPEN_MAP(b, h) \
  visibility.block_list = \
      block_lists + (b) * block_lists_strides[0] + (h) * block_lists_strides[1] + \
      (row) / BLOCK * block_lists_strides[2]; \
  visibility.num_blocks = \
      block_counts[(b) * block_counts_strides[0] + (h) * block_counts_strides[1] + (row) / BLOCK];
#else
#define OPEN_BLOCKS(b, h, row)
#endif
#define OPEN_HEAD(b, h, row) OPEN_MASK(b, h) OPEN_ALIBI(h) OPEN_BLOCKS(b, h, row)
