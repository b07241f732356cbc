// Quantized operands of the layers for 8x8 matrices, in place of their Traversed: blocks always go through threadgroup
// memory.
namespace flash {
namespace tile {

template <typename T, int BT, int D, int BH, int THREADS> struct Traversed {
  using Element = T;
  static constant constexpr const int HEAD_BLOCK = BH, RUN = 8, COPYING_THREADS = THREADS;
  QuantizedRows<T> rows;
  threadgroup T* scratch;
  int valid;  // rows of the current block to use, at most BT
#if TRIMS
  int filled;  // rows that all simdgroups together use, and copy

  // Uses no more than `rows` rows in products
  METAL_FUNC void trim(int rows) thread {
    filled = valid;
    if (edge) valid = min(valid, rows);
  }
#endif
  bool edge;
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    scratch = memory.scratch;
    lane = lane_;
  }

  METAL_FUNC void view(thread const QuantizedView& view, int b, int h) thread { rows.open(view, b, h); }

  METAL_FUNC void start(int) thread {}

  METAL_FUNC bool far() const thread { return false; }  // offsets have 64 bits

  METAL_FUNC void acquire(int row, int end, bool edge_ = true) thread {
    edge = edge_;
    rows.enter(row);
    valid = edge ? min(BT, end - row) : BT;
  }

  METAL_FUNC void pass() thread {}

  METAL_FUNC void release() thread {}

  using Place = typename QuantizedRows<T>::Place;

  // The first run that this lane copies, of columns [column, column + H) of the current block
  template <int H> METAL_FUNC Place share(int column) const thread {
    const Share<H, RUN> own = Share<H, RUN>::of(lane);
    return rows.place(rows.first + own.row, column + own.column);
  }

  METAL_FUNC Place rows_on(Place at, int count) const thread { return rows.below(at, count); }

  METAL_FUNC Run<T, 8> run(Place at) const thread { return rows.values(rows.read(at)); }

  METAL_FUNC const threadgroup T* source(int) const thread { return scratch; }
  METAL_FUNC const threadgroup T* next(const threadgroup T* source) const thread { return source; }

  template <int H>
  METAL_FUNC Run<Pair<T>, WIDE> group(const threadgroup T*, int t, int, int d, bool = true) const thread {
    return from_threadgroup<BT, H>(scratch, BH, t, d, lane);
  }

  template <int H> METAL_FUNC Run<Pair<T>, WIDE_ROWS> transposed_group(int t, int d) const thread {
    return from_threadgroup_transposed<BT, H>(scratch, t, d, lane);
  }
};

}  // namespace tile
}  // namespace flash
