// Statistics of the queries in a block, for the kernel of dK and dV: producer warps copy them beside dO, in its stages.
//
// Loaded from device memory by the consumers, they would delay the exponentials, or take registers during the products:
// on an H200 the kernel takes 0.74 to 0.92 of the time this way.
namespace flash {
namespace tile {

template <int BT> struct Statistics {
  static constant constexpr int SIZE = 3 * BT;  // floats of a stage: m and log2 l of each row, then deltas
  const device float* rows;
  const device float* deltas;
  threadgroup float* stages;
  threadgroup float* block;
  int last, copied, visited;  // the last row; blocks so far
  Lane lane;

  template <typename T> METAL_FUNC void open(thread Memory<T>& memory, int total, Lane lane_) thread {
    stages = (threadgroup float*)memory.allocate(STAGES * SIZE * sizeof(float) / sizeof(T));
    last = total - 1;
    copied = visited = 0;
    lane = lane_;
  }

  // By producer threads, one for each row; the last one repeats.
  METAL_FUNC void copy(int row) thread {
    static_assert(BT <= 32 * PRODUCER_WARPS, "a thread copies one row");
    const int own = lane.thread_index - 32 * CONSUMER_WARPS, from = min(row + own, last);
    threadgroup float* to = stages + copied % STAGES * SIZE;
    copied++;
    if (own >= BT) return;
    nv::copy_few_async<8>(to + 2 * own, rows + 2 * from);
    nv::copy_few_async<4>(to + 2 * BT + own, deltas + from);
  }

  METAL_FUNC void acquire() thread {
    block = stages + visited % STAGES * SIZE;
    visited++;
  }

  // m and log2 l of the lane's first column in the c-th group of 8, then those of its second
  METAL_FUNC float4 row_pair(int c) const thread {
    return *(const threadgroup float4*)(block + 2 * (8 * c + lane.column));
  }

  METAL_FUNC ColumnVector<BT> delta_column() const thread {
    ColumnVector<BT> found;
#pragma clang loop unroll(full)
    for (int c = 0; c < BT / 8; c++) {
      found.at[c] = *(const threadgroup Pair<float>*)(block + 2 * BT + 8 * c + lane.column);
    }
    return found;
  }
};

// As in nvidia.metal, with the statistics of the block. They arrive with that of `b`, and may be overwritten when the
// block of `a` may.
template <typename A, typename B, int BT>
METAL_FUNC bool produce(thread A& a, thread B& b, thread Statistics<BT>& statistics, int row, int end) {
  if (!a.lane.produces()) return false;
  a.copy(row, end);
  statistics.copy(row);
  b.copy(row, end);
  return true;
}

}  // namespace tile
}  // namespace flash
