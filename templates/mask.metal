// Which keys a query sees: the only place that decides it, for every kernel.
//
//   visible(i, j)     may query i see key j?
//   whole(...)        is every pair of a rectangle visible? Then the kernels skip the test per element.
//   keys_end(...)     one past the last key that any query of a block sees
//   queries_begin(...) the first query that sees any key of a block
namespace mask {

// CAUSAL is aligned to the lower right corner: the last query sees the last key.
template <bool CAUSAL> struct Mask {
  int queries, keys;

  METAL_FUNC bool visible(int i, int j) const thread {
    return i < queries && j < keys && (!CAUSAL || j <= i + keys - queries);
  }

  METAL_FUNC bool whole(int first_query, int last_query, int last_key) const thread {
    return last_query < queries && last_key < keys && (!CAUSAL || last_key <= first_query + keys - queries);
  }

  METAL_FUNC int keys_end(int last_query) const thread {
    return CAUSAL ? min(keys, min(last_query, queries - 1) + keys - queries + 1) : keys;
  }

  METAL_FUNC int queries_begin(int first_key) const thread {
    return CAUSAL ? max(0, first_key - (keys - queries)) : 0;
  }
};

// S[i, j] = -inf where query first_query + i must not see key first_key + j.
// TRANSPOSED: the rows of the tile are keys and its columns queries.
template <bool TRANSPOSED, bool CAUSAL, int R, int C>
METAL_FUNC void apply(
    thread tile::Tile<float, R, C>& s, Mask<CAUSAL> mask, int first_query, int first_key, tile::Lane lane) {
  const int last_query = first_query + (TRANSPOSED ? C : R) - 1, last_key = first_key + (TRANSPOSED ? R : C) - 1;
  if (mask.whole(first_query, last_query, last_key)) return;
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      for (int e = 0; e < 2; e++) {
        const int row = i * 8 + lane.row, column = c * 8 + lane.column + e;
        const int query = first_query + (TRANSPOSED ? column : row), key = first_key + (TRANSPOSED ? row : column);
        if (!mask.visible(query, key)) s.at[i][c][e] = -INFINITY;
      }
    }
  }
}

}  // namespace mask
