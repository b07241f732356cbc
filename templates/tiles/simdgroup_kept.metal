// P and dS in device memory, for 8x8 matrices: what the kernel of dQ computes, and the kernels of dK and dV read.
//
// They lie there as matrices of 8 queries x 8 keys, row by row; those of the same queries are neighbours. A lane of the
// kernel of dQ has neighbouring keys of one query, and writes as many as 16 bytes hold at once. A lane of the others
// needs neighbouring queries of one key, and reads them one by one: that costs little, because each element serves
// products with all columns of the head. A head has whole tiles of 16 x 16: the last ones hold zeros behind the last
// key, and anything behind the last query. A matrix of which no pair is visible may never have been written.
namespace flash {
namespace tile {

constant constexpr int KEPT = 16, SIDE = 8, MATRIX = SIDE * SIDE;  // rows of a tile, rows and elements of a matrix

// Matrices along `rows` queries or keys
METAL_FUNC int kept_matrices(int rows) { return (rows + KEPT - 1) / KEPT * (KEPT / SIDE); }

#if OVER_KEYS
// P^T or dS^T for BT queries and the keys of this simdgroup
template <typename T, int BP, int BT> struct Kept {
  const device T* head;  // this lane's element of the first queries' matrix
  const device T* at;    // of the block's first queries
  long step;             // elements from 8 queries to the next
  int matrices, queries;  // along the queries: of memory, and those that have any
  int existing;           // of the block
  Lane lane;

  METAL_FUNC void open(thread Memory<T>&, Lane lane_) thread { lane = lane_; }

  // head_index: of the query head among all of the batch. first: the threadgroup's first key. Keys behind the last one
  // repeat others: what they add up to is never stored.
  METAL_FUNC void view(const device T* kept, long head_index, int queries_, int keys, int first) thread {
    static_assert(R <= KEPT, "the keys of a simdgroup lie in one tile");
    const int columns = kept_matrices(keys), own = min(first + int(lane.simdgroup) * R, columns * SIDE - R);
    matrices = kept_matrices(queries_);
    queries = (queries_ + SIDE - 1) / SIDE;
    step = long(columns) * MATRIX;
    head = kept + (head_index * matrices * step + own * SIDE + lane.column * SIDE + lane.row);
  }

  METAL_FUNC void next_head() thread { head += matrices * step; }

  // Moves to the block of queries that begins at `row`, a multiple of 8. Without `edge`, it has BT queries.
  METAL_FUNC void acquire(int row, bool edge) thread {
    at = head + row / SIDE * step;
    existing = edge ? queries - row / SIDE : BT / SIDE;
  }

  METAL_FUNC void release() thread {}

  METAL_FUNC void read(thread Tile<T, R, BT>& tile) const thread {
    const device T* from = at;
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / SIDE; t++, from += step) {
      for (int i = 0; i < R / SIDE; i++) {
        const device T* own = from + i * MATRIX;
        tile.at[i][t] = Pair<T>(T(0));
        if (t < existing) tile.at[i][t] = Pair<T>(own[0], own[SIDE]);
      }
    }
  }
};
#else
// The matrices of this simdgroup's queries, in P or in dS
template <typename T> struct Keeper {
  device T* block;  // the matrices of the threadgroup's first queries
  long step;        // elements from 8 queries to the next
  int own;          // this lane's row of its simdgroup's first matrix, from there on
  int groups;       // of 8 queries, that exist from the simdgroup's first on
  int keys;         // a multiple of 16
  Lane lane;

  METAL_FUNC void open(device T* kept, long head_index, int first, int queries, int keys_, Lane lane_) thread {
    lane = lane_;
    keys = kept_matrices(keys_) * SIDE;
    step = long(keys) * SIDE;
    groups = (queries - first + SIDE - 1) / SIDE;
    const int before = int(lane.simdgroup) * (R / SIDE);
    block = kept + (head_index * kept_matrices(queries) + (first / SIDE - before)) * step;
    own = before * int(step) + lane.row * SIDE;
  }

  // Keeps a tile whose columns are the keys from `first` on, a multiple of 8. Without `edge`, all of them exist.
  template <int C> METAL_FUNC void keep(thread const Tile<float, R, C>& tile, int first, bool edge) thread {
    for (int i = 0; i < R / SIDE; i++) {
      if (i >= groups) continue;
      device T* to = block + (i * step + first * SIDE);
#pragma clang loop unroll(full)
      for (int c = 0; c < C / SIDE; c += WIDE_ROWS) {
        const int place = lane_place(C, c, lane.column), fixed = fixed_place(c);
        if (WIDE_ROWS > 1 && c + WIDE_ROWS <= C / SIDE) {
          if (edge && first + fixed + place >= keys) continue;
          Run<Pair<T>, WIDE_ROWS> run;
#pragma clang loop unroll(full)
          for (int j = 0; j < WIDE_ROWS; j++) run.at[j] = Pair<T>(tile.at[i][c + j]);
          *(device Run<Pair<T>, WIDE_ROWS>*)(to + (own + element(place)) + element(fixed)) = run;
        } else {
#pragma clang loop unroll(full)
          for (int j = 0; j < WIDE_ROWS; j++) {
            const int at = fixed + place + 2 * j;
            if (c + j >= C / SIDE || (edge && first + at >= keys)) continue;
            *(device Pair<T>*)(to + (own + element(at))) = Pair<T>(tile.at[i][min(c + j, C / SIDE - 1)]);
          }
        }
      }
    }
  }

  // Where key `place` of a row lies
  METAL_FUNC int element(int place) const thread { return place / SIDE * MATRIX + place % SIDE; }
};
#endif

}  // namespace tile
}  // namespace flash
