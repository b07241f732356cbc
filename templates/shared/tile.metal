// Tiles: the types and functions that all kinds of matrix hardware share.
//
// A simdgroup owns R rows (a multiple of 8) of the parallel dimension. A tile is cut into 8x8 fragments; of each
// fragment a lane holds two adjacent elements of one row: at[i][c] are its elements in the i-th group of 8 rows and the
// c-th group of 8 columns. Only the tile layer of the hardware knows their row and columns (tile::Lane).
namespace flash {
namespace tile {

template <typename T> using Pair = vec<T, 2>;

template <typename T, int R, int C> struct Tile {
  Pair<T> at[R / 8][C / 8];
};

// One number per row of a simdgroup; the four lanes that share a row hold the same value.
template <int R> struct RowVector {
  float at[R / 8];
};

template <int R> METAL_FUNC Pair<float> broadcast(thread const RowVector<R>& vector, int i, int) {
  return Pair<float>(vector.at[i]);
}

#if OVER_KEYS
// One number per column of a tile, for the two columns of each fragment that this lane holds.
template <int C> struct ColumnVector {
  Pair<float> at[C / 8];
};

template <int C> METAL_FUNC Pair<float> broadcast(thread const ColumnVector<C>& vector, int, int c) {
  return vector.at[c];
}
#endif

template <typename T, int R, int C> METAL_FUNC void clear(thread Tile<T, R, C>& tile) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) tile.at[i][c] = Pair<T>(T(0));
  }
}

#if HEADS_BETWEEN
// The first row of a head of a result [B, L, H, D], counted in rows of D columns; its next rows lie H such rows apart.
METAL_FUNC long first_row(int b, int h, int heads, int length) { return long(b) * length * heads + h; }
#endif

#if HAS_PAGES
// The rows of one head of an operand in pages: row j of batch entry b is row j % PAGE of page pages[b, j / PAGE].
template <typename T> struct Pages {
  const device int* table;
  const device T* head;      // of the first page of the pool
  long page_stride, stride;  // elements between pages, and between rows

  METAL_FUNC void open(thread const View& pool, thread const Strided<int>& pages, int b, int h) thread {
    table = pages.at + b * pages.strides[0];
    head = pool.head<T>(0, h);
    page_stride = pool.batch / long(sizeof(T));
    stride = pool.row_stride<T>();
  }

  METAL_FUNC void open(thread const PagedView& view, int b, int h) thread { open(view.pool, view.pages, b, h); }

  METAL_FUNC const device T* row(int j) const thread {
    return head + (table[j / PAGE] * page_stride + j % PAGE * stride);
  }
};
#endif

#if HAS_PIECES
// The rows of one head of a sequence in shards. Piece i of the sequence is the first piece of rank i; where a rank has
// two, the second is as far from the end of the sequence as the first from its beginning. Blocks may lie in two pieces.
template <typename T> struct Pieces {
  const device T* head;      // of the first rank
  long rank_stride, stride;  // elements between ranks, and between rows
  int length;                // rows of a piece
  const device T* piece;     // the piece that was entered: row j of it is at piece + j * stride
  int end;                   // the row behind it

  METAL_FUNC void open(thread const PiecedView& view, int b, int h) thread {
    head = view.shards.head<T>(b, h);
    rank_stride = view.rank / long(sizeof(T));
    stride = view.shards.row_stride<T>();
    length = view.length / RANK_PIECES;
    end = 0;
  }

  METAL_FUNC void next_head(thread const PiecedView& view) thread {
    head = view.shards.next<T>(head);
    end = 0;
  }

  METAL_FUNC const device T* row(int j) const thread { return piece_of(j / length) + j * stride; }

  // Finds the piece of row j, once for all of its blocks. The rows of a head are entered in order.
  METAL_FUNC void enter(int j) thread {
    if (j < end) return;
    const int number = j / length;
    end = (number + 1) * length;
    piece = piece_of(number);
  }

  METAL_FUNC const device T* piece_of(int number) const thread {
    const int second = number >= RANKS ? 1 : 0, rank = second == 1 ? 2 * RANKS - 1 - number : number;
    return head + (rank * rank_stride - (number - second) * length * stride);
  }
};
#endif

#if HAS_PAGES
template <typename T> using Scattered = Pages<T>;
using ScatteredView = PagedView;
#elif HAS_PIECES
template <typename T> using Scattered = Pieces<T>;
using ScatteredView = PiecedView;
#endif

template <typename T> METAL_FUNC Pair<T> read_pair(const device T* source) {
  const Run<T, 2> run = *(const device Run<T, 2>*)source;
  return Pair<T>(run.at[0], run.at[1]);
}

}  // namespace tile
}  // namespace flash
