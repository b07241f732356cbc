// Visible pairs of queries and keys, and the bias of their scores: the only place that decides these, for all kernels.
//
//   seen_by(...)    the run of a tile's columns that a row sees by their positions
//   admits(i, j)    whether query i sees key j by everything except positions
//   bias(i, j)      the number that is added to their score
//   range(n)        the n-th run of traversed rows to visit, which causality, windows and block lists leave
//   look_at, skip   whether no pair of a block belongs to one segment, so that the block is not visited
//   covers(...)     whether every pair of a rectangle is visible, array masks aside: then elements are not tested
//
// A row is a query, except in decoding (GQA_PACKED): there the rows of an operand are all queries that share a key
// head, and row i is query i % queries of the group's head i / queries. Only query_of and head_of depend on that.
//
// The position of query i among the keys is i + keys - queries: causality and windows align to the lower right. With
// HAS_LENGTHS, queries and keys are those of the batch entry, lengths [B, 2]. Queries behind the end of their entry see
// no key, and no query sees keys behind it. With HAS_SHIFTS the position of query i is i + q_shifts[i], and k_shifts[j]
// that of the queries that key j meets: segments align to their own lower right. Kernels read those of their own rows.
// Both are in one operand, [B, Lq + Lk]; with segments they follow the rows of q_segments, as kernels have 31 buffers.
namespace flash {
namespace mask {

struct Range {
  int begin, end;
};

#if HAS_SEGMENTS || HAS_SHIFTS
// The smallest and the largest segment, or shift, in a run of rows
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
#endif

struct Visibility {
  int rows, queries, keys;  // rows = queries except in decoding
#if HAS_LENGTHS
  int all_queries;  // of the longest batch entry; `queries` are those of this one
#endif
#if HAS_WINDOW
  int left, right;  // keys this far before and after the query's own position
#endif
#if HAS_MASK
  const device MaskElement* mask;
  long mask_head, mask_row, mask_column;
#endif
#if MAPS
  const device uint8_t* map;  // of the array mask
  long mask_map_head, mask_map_row, mask_map_column;
#endif
#if HAS_ALIBI
#if GQA_PACKED
  const device float* slopes;  // of the heads from the first one on
#else
  float slope;
#endif
#endif
#if HAS_SEGMENTS
  const device int* q_segments;
  const device int* k_segments;
  Range row_segments, tile_segments;  // segments of this threadgroup's rows, and of the traversed block
#endif
#if HAS_SHIFTS
  const device int* q_shifts;
  const device int* k_shifts;
  Range row_shifts;  // shifts of this threadgroup's rows
#endif
#if HAS_TEXTS
  formula::Texts texts;
#endif
#if HAS_BLOCKS
  const device int* block_map;  // 0: empty, 1: full, n + 2: partial with bitmap n
  const device uint8_t* bitmaps;
  const device int* block_list;  // traversed blocks of this threadgroup's rows
  int block_columns, num_blocks;
  long map_head;
  bool block_is_full;  // is every pair of the visited block visible?
#endif

  // Sets everything that does not vary with the head.
  METAL_FUNC void open(thread const Arguments& args, int b) thread {
    queries = args.Lq;
#if GQA_PACKED
    rows = args.rows;
#else
    rows = queries;
#endif
    keys = args.Lk;
#if HAS_LENGTHS
    all_queries = queries;
    queries = clamp(args.lengths[2 * b], 0, queries);
    keys = clamp(args.lengths[2 * b + 1], 0, keys);
#endif
#if HAS_WINDOW
    left = args.window[0];
    right = args.window[1];
#endif
#if HAS_SEGMENTS
    q_segments = args.q_segments.at + b * args.q_segments.strides[0];
    k_segments = args.k_segments.at + b * args.k_segments.strides[0];
#endif
#if HAS_SHIFTS && HAS_SEGMENTS
    q_shifts = q_segments + queries;
    k_shifts = q_shifts + queries;
#elif HAS_SHIFTS
    q_shifts = args.shifts + long(b) * (queries + keys);
    k_shifts = q_shifts + queries;
#endif
  }

  // Sets everything that varies with the head (in decoding, the group's first). `row`: this threadgroup's first row.
  METAL_FUNC void open_head(thread const Arguments& args, int b, int h, int row) thread {
#if HAS_TEXTS
    texts.open(args, b, h);
#endif
#if HAS_MASK
    const constant int64_t* mask_strides = args.attention_mask.strides;
    mask = args.attention_mask.at + b * mask_strides[0] + h * mask_strides[1];
    mask_head = mask_strides[1];
    mask_row = mask_strides[2];
    mask_column = mask_strides[3];
#endif
#if MAPS
    const constant int64_t* mask_map_strides = args.mask_map.strides;
    map = args.mask_map.at + b * mask_map_strides[0] + h * mask_map_strides[1];
    mask_map_head = mask_map_strides[1];
    mask_map_row = mask_map_strides[2];
    mask_map_column = mask_map_strides[3];
#endif
#if HAS_ALIBI
#if GQA_PACKED
    slopes = args.slopes + h;
#else
    slope = args.slopes[h];
#endif
#endif
#if HAS_BLOCKS
    const constant int64_t* map_strides = args.block_map.strides;
#if !HAS_VISIBLE
    bitmaps = args.block_bitmaps;
#endif
    block_map = args.block_map.at + b * map_strides[0] + h * map_strides[1];
    map_head = map_strides[1];
    block_columns = map_strides[2];
#if !GQA_PACKED
    const constant int64_t* list_strides = args.block_lists.strides;
    const constant int64_t* count_strides = args.block_counts.strides;
    block_list = args.block_lists.at + b * list_strides[0] + h * list_strides[1] + row / BLOCK * list_strides[2];
    num_blocks = args.block_counts.at[b * count_strides[0] + h * count_strides[1] + row / BLOCK];
#endif
#endif
  }

  // Remembers the segments and shifts of rows [begin, end) of this threadgroup
  METAL_FUNC void open_rows(int begin, int end, tile::Lane lane) thread {
#if HAS_SEGMENTS
    row_segments = span(TRANSPOSED ? k_segments : q_segments, begin, end, lane);
#endif
#if HAS_SHIFTS
    row_shifts = span(TRANSPOSED ? k_shifts : q_shifts, begin, end, lane);
#endif
  }

#if GQA_PACKED && HAS_LENGTHS
  METAL_FUNC int query_of(int row) const thread { return row % all_queries; }
  METAL_FUNC int head_of(int row) const thread { return row / all_queries; }
#elif GQA_PACKED
  METAL_FUNC int query_of(int row) const thread { return row % queries; }
  METAL_FUNC int head_of(int row) const thread { return row / queries; }
#else
  METAL_FUNC int query_of(int row) const thread { return row; }
#if HAS_MASK || HAS_BLOCKS || HAS_TEXTS
  METAL_FUNC int head_of(int) const thread { return 0; }
#endif
#endif

#if HAS_SHIFTS
  METAL_FUNC int shift_of_query(int i) const thread { return q_shifts[i]; }
  METAL_FUNC int shift_of_key(int j) const thread { return k_shifts[j]; }
  METAL_FUNC int least_shift() const thread { return row_shifts.begin; }
  METAL_FUNC int largest_shift() const thread { return row_shifts.end; }
#else
  METAL_FUNC int shift_of_query(int) const thread { return keys - queries; }
#if OVER_KEYS
  METAL_FUNC int shift_of_key(int) const thread { return keys - queries; }
#endif
  METAL_FUNC int least_shift() const thread { return keys - queries; }
  METAL_FUNC int largest_shift() const thread { return keys - queries; }
#endif
#if HAS_ALIBI
#if HAS_SHIFTS && OVER_KEYS
  METAL_FUNC int distance(int i, int j) const thread { return j - i - shift_of_key(j); }
#else
  METAL_FUNC int distance(int i, int j) const thread { return j - i - shift_of_query(i); }
#endif
#endif
#if HAS_MASK
  METAL_FUNC MaskElement mask_at(int row, int j) const thread {
    return mask[head_of(row) * mask_head + query_of(row) * mask_row + j * mask_column];
  }
#endif

#if (HAS_MASK && !LOOKS) || HAS_SEGMENTS || HAS_BLOCKS || HAS_VISIBLE
  METAL_FUNC bool admits(int row, int j) const thread {
    bool met = true;
#if HAS_SEGMENTS
    met = q_segments[query_of(row)] == k_segments[j];
#endif
#if HAS_MASK && !ADDITIVE && !LOOKS
    if (!met || mask_at(row, j) == MaskElement(0)) return false;
#endif
#if HAS_VISIBLE
    met = (int(met) & int(texts.visible.of(formula::pair(*this, row, j)))) != 0;
#elif HAS_BLOCKS
    const int i = query_of(row);
    const int block = block_map[head_of(row) * map_head + i / BLOCK * block_columns + j / BLOCK];
    const uint8_t bit = bitmaps[long(max(block - 2, 0)) * (BLOCK * BLOCK) + i % BLOCK * BLOCK + j % BLOCK];
    met = (int(met) & (int(block == 1) | (int(block > 1) & int(bit != 0)))) != 0;
#endif
    return met;
  }
#endif

#if ADDITIVE || HAS_ALIBI
  METAL_FUNC float bias(int row, int j) const thread {
    float sum = 0;
#if ADDITIVE
    sum += float(mask_at(row, j));
#endif
#if HAS_ALIBI
#if GQA_PACKED
    const float slope = slopes[head_of(row)];
#endif
    sum -= slope * float(abs(distance(query_of(row), j)));
#endif
    return sum;
  }
#endif

#if !OVER_KEYS
  // The keys that queries with positions from `first` to `last` see by causality and windows
  METAL_FUNC Range keys_at(int first, int last) const thread {
    Range seen = {0, keys};
    if (CAUSAL) seen.end = min(seen.end, last + 1);
#if HAS_WINDOW
    seen = Range{max(0, first - left), min(seen.end, last + right + 1)};
#endif
    return seen;
  }

  METAL_FUNC Range keys_of(int first_query, int last_query) const thread {
#if HAS_LENGTHS
    if (first_query >= queries) return {0, 0};
#endif
    return keys_at(first_query + least_shift(), min(last_query, queries - 1) + largest_shift());
  }

  // The keys that a row sees by causality and windows
  METAL_FUNC Range seen_by(int row) const thread {
    if (row >= rows) return {0, 0};
#if HAS_LENGTHS
    if (query_of(row) >= queries) return {0, 0};
#endif
    const int query = query_of(row), position = query + shift_of_query(query);
    return keys_at(position, position);
  }
#else
  // The queries that see keys by causality and windows, where queries `first` and `last` have the keys' positions
  METAL_FUNC Range queries_at(int first, int last) const thread {
    Range seen = {0, queries};
    if (CAUSAL) seen.begin = max(0, first);
#if HAS_WINDOW
    seen = Range{max(seen.begin, first - right), min(queries, last + left + 1)};
#endif
    return seen;
  }

  METAL_FUNC Range queries_of(int first_key, int last_key) const thread {
#if HAS_LENGTHS
    if (first_key >= keys) return {0, 0};
#endif
    return queries_at(first_key - largest_shift(), min(last_key, keys - 1) - least_shift());
  }

  // The queries that see a key by causality and windows
  METAL_FUNC Range seen_by(int key) const thread {
    if (key >= keys) return {0, 0};
    return queries_at(key - shift_of_key(key), key - shift_of_key(key));
  }
#endif

#if !GQA_PACKED
  METAL_FUNC int ranges() const thread {
#if HAS_BLOCKS
    return num_blocks;
#elif HAS_PAGES
    return (keys + PAGE - 1) / PAGE;  // no block lies in two pages
#else
    return 1;
#endif
  }

  // The run of neighbouring blocks, all full or none, that begins with number n, which becomes that of its last block
  METAL_FUNC Range range(thread int& n, Range within) thread {
#if HAS_BLOCKS
    const int first = block_list[n];
    int last = first;
    for (; n + 1 < num_blocks && block_list[n + 1] == last + 2; n++) last += 2;
    block_is_full = (first & 1) != 0;
    return {max(within.begin, (first >> 1) * BLOCK), min(within.end, ((last >> 1) + 1) * BLOCK)};
#elif HAS_PAGES
    return {max(within.begin, n * PAGE), min(within.end, (n + 1) * PAGE)};
#else
    return within;
#endif
  }
#elif HAS_BLOCKS
  // In decoding, where heads may have different blocks: false if the block of key j is empty for all of them
  METAL_FUNC bool enter_gqa_block(int first_row, int last_row, int j) thread {
    bool found = false;
    block_is_full = true;
    for (int h = head_of(first_row); h <= head_of(min(last_row, rows - 1)); h++) {
      const int block = block_map[h * map_head + j / BLOCK];
      found = found || block != 0;
      if (block != 1) block_is_full = false;
    }
    return found;
  }
#endif

  // Finds the segments of the traversed block, rows [begin, end)
  METAL_FUNC void look_at(int begin, int end, tile::Lane lane) thread {
#if HAS_SEGMENTS
    tile_segments = span(TRANSPOSED ? q_segments : k_segments, begin, end, lane);
#endif
  }

  // Whether no pair of this threadgroup's rows and the traversed block belongs to one segment
  METAL_FUNC bool skip() const thread {
#if HAS_SEGMENTS
    return tile_segments.begin > row_segments.end || tile_segments.end < row_segments.begin;
#else
    return false;
#endif
  }

  // Whether this block of BT traversed rows is an edge: partly past the end, or partly hidden from rows [first, last],
  // array masks aside. The other blocks have a separate loop. Rows past the end do not count.
  METAL_FUNC bool edge_of(Range range, int first, int last, int place, tile::Lane lane) thread {
    look_at(place, min(place + BT * SLICES, range.end), lane);
    if (!tile::SPLIT || place + BT > range.end) return true;
#if HAS_PIECES
    const int piece = (TRANSPOSED ? queries : keys) / (RANKS * RANK_PIECES);
    if (place % piece + BT > piece) return true;  // rows in two pieces
#endif
#if OVER_KEYS && HAS_LENGTHS
    return !covers(place, place + BT - 1, first, last);  // keys behind the entry's end get gradients of zero
#elif OVER_KEYS
    return !covers(place, place + BT - 1, first, min(last, keys - 1));
#else
    return !covers(first, min(last, rows - 1), place, place + BT - 1);
#endif
  }

  // Whether every pair of the rectangle is visible, array masks aside
  METAL_FUNC bool covers(int first_query, int last_query, int first_key, int last_key) const thread {
#if GQA_PACKED
    first_query = 0;  // any query may be among the rows; rows past the end repeat the last one and are never stored
#if HAS_LENGTHS
    last_query = all_queries - 1;
#else
    last_query = queries - 1;
#endif
#endif
    if (last_query >= queries || last_key >= keys) return false;
    const int nearest = first_key - last_query - largest_shift(), farthest = last_key - first_query - least_shift();
    if (CAUSAL && farthest > 0) return false;
#if HAS_WINDOW
    if (nearest < -left || farthest > right) return false;
#endif
#if HAS_SEGMENTS
    if (row_segments.begin != row_segments.end || tile_segments.begin != tile_segments.end) return false;
    if (row_segments.begin != tile_segments.begin) return false;  // one segment each, but different ones
#endif
#if HAS_BLOCKS
    return block_is_full;
#elif HAS_VISIBLE
    return false;
#else
    return true;
#endif
  }
};

}  // namespace mask
}  // namespace flash
