// P and dS in device memory, for tensor cores: what the kernel of dQ computes, and the kernels of dK and dV read.
//
// They lie there as tiles of 16 queries x 16 keys, each as four matrices of 8 x 8, which a register of 32 lanes holds
// row by row. So a simdgroup writes 128 neighbouring bytes at a time, and ldmatrix transposes them on their way from
// threadgroup memory. A head has whole tiles: the last ones hold zeros behind the last key, and anything behind the
// last query. A tile of which no pair is visible may never have been written.
namespace flash {
namespace tile {

constant constexpr int KEPT = 16;  // rows and columns of a tile; a row of its matrices is a chunk
constant constexpr int CHUNKS = KEPT * KEPT / CHUNK, MATRIX = CHUNK * CHUNK;  // chunks of a tile; elements of a matrix

METAL_FUNC long kept_tiles(int rows) { return (rows + KEPT - 1) / KEPT; }

#if OVER_KEYS
// P^T or dS^T for BT queries and the keys of all simdgroups, through a pipeline. Each simdgroup reads its 16 keys.
template <typename T, int BP, int BT> struct Kept {
  static constant constexpr int TILES = BP / KEPT, STAGE = BT * BP;  // tiles of a block along the keys; its elements
  const device T* head;  // the first tile of the threadgroup's keys
  long step;             // elements from 16 queries to the next
  int query_tiles, key_tiles;  // of a head; of the threadgroup's keys
  threadgroup T* stages;
  threadgroup T* block;
  nv::Pipeline<STAGES, CONSUMER_WARPS, 32 * PRODUCER_WARPS> pipe;
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    static_assert(R == KEPT && BT % KEPT == 0, "a simdgroup owns the keys of one tile");
    stages = memory.allocate(STAGES * STAGE);
    lane = lane_;
    pipe.open(memory.allocate(8 * PANEL), lane.thread_index);
  }

  // head_index: of the query head among all of the batch. first: the threadgroup's first key
  METAL_FUNC void view(const device T* kept, long head_index, int queries, int keys, int first) thread {
    query_tiles = kept_tiles(queries);
    step = kept_tiles(keys) * (KEPT * KEPT);
    key_tiles = min(TILES, int(kept_tiles(keys)) - first / KEPT);
    head = kept + (head_index * query_tiles * step + first * KEPT);
  }

  METAL_FUNC void next_head() thread { head += query_tiles * step; }

  // Copies the tiles of the block of queries that begins at `row`; tiles that do not exist become zero.
  METAL_FUNC void copy(int row, int) thread {
    threadgroup T* to = stages + pipe.producer_acquire() * STAGE;
    const int thread_index = lane.thread_index - 32 * CONSUMER_WARPS;
    const device T* from = head + row / KEPT * step;
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / KEPT; t++, from += step) {
#pragma clang loop unroll(full)
      for (int n = 0; n < TILES; n += PRODUCER_WARPS) {
        const int place = n * CHUNKS + thread_index;
        if (TILES % PRODUCER_WARPS != 0 && place >= TILES * CHUNKS) continue;
        const bool exists = place < key_tiles * CHUNKS && row / KEPT + t < query_tiles;
        threadgroup T* own = to + (t * TILES * CHUNKS + place) * CHUNK;
        nv::copy_async(own, exists ? from + place * CHUNK : head, exists ? 16 : 0);
      }
    }
    nv::fence_cta();
    pipe.producer_commit();
  }

  METAL_FUNC void pass() thread {}  // a block that is not visited takes no stage

  METAL_FUNC void acquire(int, bool) thread { block = stages + pipe.consumer_wait() * STAGE; }

  METAL_FUNC void release() thread { pipe.consumer_release(); }

  // The tile of this simdgroup's keys and the block's queries
  METAL_FUNC void read(thread Tile<T, KEPT, BT>& tile) const thread {
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / KEPT; t++) {
      const int place = (t * TILES + int(lane.simdgroup)) * CHUNKS + int(lane.thread_index % 32);
      const uint4 held = nv::load_matrices_transposed(block + place * CHUNK);
      tile.at[0][2 * t] = as_type<Pair<T>>(held.x);
      tile.at[0][2 * t + 1] = as_type<Pair<T>>(held.y);
      tile.at[1][2 * t] = as_type<Pair<T>>(held.z);
      tile.at[1][2 * t + 1] = as_type<Pair<T>>(held.w);
    }
  }
};
#else
// The tiles of this simdgroup's 16 queries, in P or in dS
template <typename T> struct Keeper {
  device Pair<T>* row;  // this lane's pair of the first one
  int tiles;            // along the keys; 0 where the queries do not exist

  METAL_FUNC void open(device T* kept, long head_index, int first, int queries, int keys, Lane lane) thread {
    const long rows = kept_tiles(queries), columns = kept_tiles(keys);
    tiles = first < queries ? int(columns) : 0;
    const long place = (head_index * rows + first / KEPT) * columns * (KEPT * KEPT);
    row = (device Pair<T>*)(kept + place) + lane.thread_index % 32;
  }

  // Keeps a tile whose columns are the keys from `first` on, a multiple of 16
  template <int C> METAL_FUNC void keep(thread const Tile<float, KEPT, C>& tile, int first, bool) thread {
    const int existing = tiles - first / KEPT;
    if (existing >= C / KEPT) {
      keep_some<C>(tile, first, C / KEPT);
    } else {
      keep_some<C>(tile, first, existing);
    }
  }

  template <int C> METAL_FUNC void keep_some(thread const Tile<float, KEPT, C>& tile, int first, int existing) thread {
    device Pair<T>* to = row + first / KEPT * (KEPT * KEPT / 2);
#pragma clang loop unroll(full)
    for (int t = 0; t < C / KEPT; t++) {
      if (t >= existing) continue;
      const uint4 held = narrowed<T>(tile, 0, t);
#pragma clang loop unroll(full)
      for (int e = 0; e < 4; e++) to[t * (KEPT * KEPT / 2) + e * (MATRIX / 2)] = as_type<Pair<T>>(held[e]);
    }
  }
};
#endif

}  // namespace tile
}  // namespace flash
