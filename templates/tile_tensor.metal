// The tile layer for NVIDIA's tensor cores, as far as mma.sync and wgmma share it: lanes, panels of threadgroup memory,
// operands, accumulators, and products by mma.sync. Same operations as tile_simdgroup.metal; 16-bit operands only.
//
//   panel     64 columns of a block: rows of 128 bytes, whose eight 16-byte chunks lie at chunk ^ (row & 7). So neither
//             ldmatrix nor wgmma meets a bank conflict; it is wgmma's "128-byte swizzle".
//   ahead     the block after the current one is copied (cp.async) while this one is multiplied: two stages
//
// The nv:: functions are single PTX instructions; the PTX ISA manual gives their fragment layouts.
#include <nv>

namespace tile {

constant constexpr int PANEL = 64, STAGES = 2;
constant constexpr int JOINT_ROWS = $JOINT_ROWS;  // rows whose simdgroups multiply together

struct Lane {
  int row, column;  // of the pair (row, column), (row, column + 1) inside every fragment
  uint thread_index, simdgroup;
  static METAL_FUNC Lane of(uint thread_index) {
    Lane self;
    self.row = thread_index % 32 / 4;
    self.column = thread_index % 4 * 2;
    self.thread_index = thread_index;
    self.simdgroup = thread_index / 32;
    return self;
  }
};

// A row of a fragment lives in four neighbouring lanes.
METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(2)));
}

METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(2));
}

// Columns as the matrix unit sees them: whole steps of 16, the last half step zero where D is an odd multiple of 8.
template <int D> constant constexpr int STEPS = (D + 15) / 16;
template <int D> constant constexpr int PANELS = (D + PANEL - 1) / PANEL;

// Element (row, column) of a block of ROWS rows; column a multiple of 8
template <int ROWS> METAL_FUNC int place(int row, int column) {
  return (column / PANEL * ROWS + row) * PANEL + ((column % PANEL / 8) ^ (row & 7)) * 8;
}

// Rows [begin, ROWS) of a block in steps of `THREADS / 8`, eight lanes a row: copied where row < valid, else zero.
template <int ROWS, int D, int THREADS, int COUNT, typename T>
METAL_FUNC void copy(threadgroup T* to, int first, const device T* from, long stride, int valid, uint thread_index) {
  const int chunk = thread_index % 8, row0 = thread_index / 8;
  const bool aligned = (ulong(from) | ulong(stride * sizeof(T))) % 16 == 0;
#pragma clang loop unroll(full)
  for (int step = 0; step < (COUNT * 8 + THREADS - 1) / THREADS; step++) {
    const int row = row0 + step * (THREADS / 8);
    if (COUNT * 8 % THREADS != 0 && row >= COUNT) break;
    const device T* source = from + (row < valid ? row : 0) * stride;
#pragma clang loop unroll(full)
    for (int panel = 0; panel < PANELS<D>; panel++) {
      const int column = panel * PANEL + chunk * 8;
      if (column >= STEPS<D> * 16) continue;
      const bool exists = row < valid && column < D;
      threadgroup T* target = to + place<ROWS>(first + row, column);
      if (aligned) {
        nv::copy_async(target, source + (column < D ? column : 0), exists ? 16 : 0);
      } else {
        for (int e = 0; e < 8; e++) target[e] = exists ? source[column + e] : T(0);
      }
    }
  }
}

// Threadgroup memory that operands take their part of, in the order in which they are opened.
template <typename T> struct Memory {
  threadgroup T* next;

  METAL_FUNC threadgroup T* take(int elements) thread {
    threadgroup T* taken = next;
    next += elements;
    return taken;
  }
};

// An operand whose rows belong to this simdgroup; rows past the end are zero. CACHED: fragments in registers;
// otherwise in threadgroup memory, where the rows of all simdgroups make one block of BP rows.
template <typename T, int BP, int R, int D, bool CACHED> struct Rows {
  uint4 cached[R / 16][CACHED ? STEPS<D> : 1];
  threadgroup T* block;
  int first;  // row of this simdgroup within the block
  Lane lane;

  METAL_FUNC void open(
      const device T* head, long stride, int row, int rows, thread Memory<T>& memory, Lane lane_) thread {
    lane = lane_;
    first = int(lane.simdgroup) * R;
    const int valid = max(rows - row, 0);
    const device T* source = head + (valid > 0 ? row : 0) * stride;
    if constexpr (CACHED) {
#pragma clang loop unroll(full)
      for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
        for (int d = 0; d < STEPS<D>; d++) {
          for (int e = 0; e < 4; e++) {
            const int r = i * 16 + e % 2 * 8 + lane.row, column = d * 16 + e / 2 * 8 + lane.column;
            const bool exists = r < valid && column < D;
            cached[i][d][e] = exists ? as_type<uint>(read_pair(source + r * stride + column)) : 0;
          }
        }
      }
    } else {
      block = memory.take(BP * PANEL * PANELS<D>);
      copy<BP, D, 32, R>(block, first, source, stride, valid, lane.thread_index % 32);
    }
  }

  // Rows [16 i, 16 i + 16) x columns [16 d, 16 d + 16) as the first operand of mma
  METAL_FUNC uint4 fragment(int i, int d) const thread {
    if constexpr (CACHED) return cached[i][d];
    const int l = lane.thread_index % 32;
    return nv::load_matrices(block + place<BP>(first + i * 16 + l % 16, d * 16 + l / 16 * 8));
  }
};

// An operand that all simdgroups walk along in blocks of BT rows, in threadgroup memory.
template <typename T, int BT, int D, int BH, int THREADS, bool STAGED> struct Traversed {
  using Element = T;
  const device T* head;
  threadgroup T* stages;
  threadgroup T* block;
  long stride;
  int valid;  // rows of the current block that exist and are wanted, at most BT
  int ahead;  // the row whose block is in flight, or none
  int stage;
  Lane lane;

  METAL_FUNC void open(thread Memory<T>& memory, Lane lane_) thread {
    stages = memory.take(STAGES * BT * PANEL * PANELS<D>);
    lane = lane_;
    stage = 0;
    ahead = -1;
  }

  METAL_FUNC void view(const device T* head_, long stride_) thread {
    head = head_;
    stride = stride_;
    ahead = -1;
  }

  METAL_FUNC int rows() const thread { return BT; }

  METAL_FUNC void start(int row, int end) thread {
    ahead = row;
    copy<BT, D, THREADS, BT>(
        stages + stage * (BT * PANEL * PANELS<D>), 0, head + row * stride, stride, end - row, lane.thread_index);
  }

  METAL_FUNC void enter(int row, int end) thread {
    block = stages + stage * (BT * PANEL * PANELS<D>);
    valid = min(BT, end - row);
    stage = (stage + 1) % STAGES;
  }

  // Rows [16 t, +16) x columns [16 d, +16) as the second operand of A B^T: two neighbouring groups of 8 rows
  METAL_FUNC uint4 fragment(int t, int d) const thread {
    const int l = lane.thread_index % 32;
    return nv::load_matrices(block + place<BT>(t * 16 + l / 16 * 8 + l % 8, d * 16 + l / 8 % 2 * 8));
  }

  // The same block as the second operand of P B: two neighbouring groups of 8 columns
  METAL_FUNC uint4 transposed(int t, int d) const thread {
    const int l = lane.thread_index % 32;
    return nv::load_matrices_transposed(block + place<BT>(t * 16 + l % 16, d * 16 + l / 16 * 8));
  }
};

// Both traversed operands go to the block that begins at `row`, and the copy of the block after it starts: one barrier
// shows every thread what the others copied, and tells that nobody reads the stage that is overwritten next.
template <typename A, typename B> METAL_FUNC void seek(thread A& a, thread B& b, int row, int end) {
  if (a.ahead != row) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    a.start(row, end);
    b.start(row, end);
  }
  nv::wait_copies();
  if (JOINT_ROWS > 1) nv::show_copies();
  threadgroup_barrier(mem_flags::mem_threadgroup);
  a.enter(row, end);
  b.enter(row, end);
  const int next = row + a.rows();
  if (next < end) {
    a.start(next, end);
    b.start(next, end);
  }
}

// A float32 result of R rows x D columns, in registers until `store`.
template <int R, int D, int BH, bool CACHED> struct Accumulator {
  static_assert(CACHED, "accumulators stay in registers: choose a row that caches them");
  Pair<float> at[R / 8][D / 8];
  int rows, row, column;

  template <typename Out> METAL_FUNC void open(device Out*, int first, int total, Lane lane) thread {
    rows = total - first - lane.row;
    row = lane.row;
    column = lane.column;
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) at[i][d] = Pair<float>(0);
    }
  }

  METAL_FUNC void multiply(RowVector<R> factor) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) at[i][d] *= factor.at[i];
    }
  }

  // Out[first + row, :] = factor * result
  template <typename Out>
  METAL_FUNC void store(device Out* head, int first, RowVector<R> factor) const thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 8; i++) {
      if (i * 8 >= rows) continue;
      device Out* out = head + long(first + i * 8 + row) * D + column;
#pragma clang loop unroll(full)
      for (int d = 0; d < D / 8; d++) *(device Pair<Out>*)(out + d * 8) = Pair<Out>(at[i][d] * factor.at[i]);
    }
  }
};

// Rows [16 i, +16) x columns [16 t, +16) of P as the first operand of mma
template <typename T, typename P, int R, int BT>
METAL_FUNC uint4 narrowed(thread const Tile<P, R, BT>& p, int i, int t) {
  return uint4(
      nv::pack<T>(p.at[2 * i][2 * t]), nv::pack<T>(p.at[2 * i + 1][2 * t]), nv::pack<T>(p.at[2 * i][2 * t + 1]),
      nv::pack<T>(p.at[2 * i + 1][2 * t + 1]));
}

// 1 where an element of the packed pair meets the condition, else 0
template <typename T> METAL_FUNC uint nonzero(uint pair) {
  const uint one = as_type<uint>(Pair<T>(T(1)));
  return ((pair & 0x7fffu) != 0 ? one & 0xffffu : 0) | ((pair & 0x7fff0000u) != 0 ? one & 0xffff0000u : 0);
}

template <typename T> METAL_FUNC uint not_finite(uint pair) {
  const uint one = as_type<uint>(Pair<T>(T(1))), infinity = as_type<uint>(Pair<T>(T(INFINITY)));
  const uint low = infinity & 0xffffu, high = infinity & 0xffff0000u;
  return ((pair & low) == low ? one & 0xffffu : 0) | ((pair & high) == high ? one & 0xffff0000u : 0);
}

template <typename T> METAL_FUNC uint4 not_finite(uint4 pairs) {
  return uint4(not_finite<T>(pairs.x), not_finite<T>(pairs.y), not_finite<T>(pairs.z), not_finite<T>(pairs.w));
}

// The finite elements of a pair, zero in place of the others
template <typename T> METAL_FUNC uint finite(uint pair, uint bad) {
  return pair & ~((bad & 0xffffu ? 0xffffu : 0) | (bad & 0xffff0000u ? 0xffff0000u : 0));
}

// S = A B^T by mma.sync
template <typename T, int BP, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool STAGED>
METAL_FUNC void synchronous_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a,
    thread const Traversed<T, BT, D, BH, THREADS, STAGED>& b) {
  clear(s);
#pragma clang loop unroll(full)
  for (int d = 0; d < STEPS<D>; d++) {
    uint4 rows[R / 16];
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 16; i++) rows[i] = a.fragment(i, d);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 16; t++) {
      const uint4 columns = b.fragment(t, d);
#pragma clang loop unroll(full)
      for (int i = 0; i < R / 16; i++) {
        nv::multiply<T>(s.at[2 * i][2 * t], s.at[2 * i + 1][2 * t], rows[i], columns.xy);
        nv::multiply<T>(s.at[2 * i][2 * t + 1], s.at[2 * i + 1][2 * t + 1], rows[i], columns.zw);
      }
    }
  }
}

// The rare second pass: counts, per result, the pairs of a nonzero P and a B that is no number
template <typename T, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void poison(thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p, thread const B& b) {
#pragma clang loop unroll(full)
  for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
    for (int d = 0; d < D / 8; d++) {
      Pair<float> upper = Pair<float>(0), lower = Pair<float>(0);
#pragma clang loop unroll(full)
      for (int t = 0; t < BT / 16; t++) {
        uint4 seen = narrowed<T>(p, i, t);
        for (int e = 0; e < 4; e++) seen[e] = nonzero<T>(seen[e]);
        const uint4 bad = not_finite<T>(b.transposed(t, d / 2));
        nv::multiply<T>(upper, lower, seen, d % 2 ? bad.zw : bad.xy);
      }
      c.at[2 * i][d] = select(c.at[2 * i][d], Pair<float>(NAN), upper > 0);
      c.at[2 * i + 1][d] = select(c.at[2 * i + 1][d], Pair<float>(NAN), lower > 0);
    }
  }
}

// C += P B by mma.sync.  EDGE: B may hold rows that no row of P sees, where anything may lie. There NaN and infinity
// enter the product as 0, and `poison` then marks the results whose row does see them.
template <bool EDGE, typename P, typename T, int R, int D, int BT, int BH, int THREADS, bool CACHED, bool STAGED>
METAL_FUNC void synchronous_ab(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p,
    thread const Traversed<T, BT, D, BH, THREADS, STAGED>& b) {
  bool poisoned = false;
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t++) {
    uint4 rows[R / 16];
#pragma clang loop unroll(full)
    for (int i = 0; i < R / 16; i++) rows[i] = narrowed<T>(p, i, t);
#pragma clang loop unroll(full)
    for (int d = 0; d < STEPS<D>; d++) {
      uint4 columns = b.transposed(t, d);
      if (EDGE) {
        for (int e = 0; e < 4; e++) {
          const uint bad = not_finite<T>(columns[e]);
          poisoned |= bad != 0;
          columns[e] = finite<T>(columns[e], bad);
        }
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < R / 16; i++) {
        nv::multiply<T>(c.at[2 * i][2 * d], c.at[2 * i + 1][2 * d], rows[i], columns.xy);
        if (2 * d + 1 < D / 8) {
          nv::multiply<T>(c.at[2 * i][2 * d + 1], c.at[2 * i + 1][2 * d + 1], rows[i], columns.zw);
        }
      }
    }
  }
  if (EDGE && simd_any(poisoned)) poison<T>(c, p, b);
}

}  // namespace tile
