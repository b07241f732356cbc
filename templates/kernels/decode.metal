// FlashAttention for few queries and many keys: O and L over one part of the keys.
//
//   for each key head, block of BP rows and part of the keys (one threadgroup; R rows a simdgroup), in parallel:
//     rows: all queries of all query heads that share the key head (GQA packing), so that K and V are read once
//     m, l, O = -inf, 0, 0                 a sink is seen in the first part only
//     for each block of BT keys of this part that any of the rows sees:
//       S, P, m, l, O as in forward.metal
//     one part:       O = O / l;  L = m + log2(l)
//     several parts:  O, m and l unnormalised, for combine.metal to merge; L would lose digits of large scores
//
// A row that sees no key: O = 0, m = -inf, l = 0. Split-KV as in Flash-Decoding (Dao et al. 2023).
//
// Glossary in forward.metal, and
//   Q        [B, Hk, G Lq, D]          row r is query r % Lq of the group's head r / Lq
//   O        [parts, B, Hk, G Lq, DV]  float32 if there are several parts
//   L        [B, Hk, G Lq], or m and l [2, parts, B, Hk, G Lq]
//   decode_params  Lq, the keys of a part, and the number of parts
// Written by: O and L, each element by one lane.
using Element = $ELEMENT;            // of Q, K, V
constant constexpr int D = $HEAD_DIM, DV = $VALUE_DIM;
constant constexpr int BP = $BLOCK_PARALLEL, BT = $BLOCK_TRAVERSAL, BH = $BLOCK_HEAD, R = $SIMDGROUP_ROWS;
constant constexpr int THREADS = 32 * BP / R, SCRATCH = $SCRATCH;
constant constexpr bool CACHE_Q = $CACHE_Q, CACHE_O = $CACHE_O, USES_THREADGROUP = $USES_THREADGROUP;
$ATTRIBUTES
// ---- body
const tile::Lane lane = tile::Lane::of(thread_index_in_threadgroup);
const int rows = visibility.rows, Lq = visibility.queries, heads = K_shape[1];
const int parts = decode_params[2], part = threadgroup_position_in_grid.x, b = threadgroup_position_in_grid.z;
const int blocks = (rows + BP - 1) / BP, position = threadgroup_position_in_grid.y;
const int h_k = position / blocks, h = h_k * (rows / Lq);  // h: the first query head of the group
const int block = position % blocks * BP, first = block + int(lane.simdgroup) * R;
const long row0 = ((long(part) * Q_shape[0] + b) * heads + h_k) * rows;

alignas(16) threadgroup Element scratch[SCRATCH];
tile::Memory<Element> memory = {scratch};
tile::Rows<Element, BP, R, D, CACHE_Q> q;
OPERAND<Element, BT, D, BH, THREADS, USES_THREADGROUP> k;
OPERAND<Element, BT, DV, BH, THREADS, USES_THREADGROUP> v;
tile::Accumulator<R, DV, BH, CACHE_O> o;
softmax::State<R> state;
const float factor = softmax::SCALED_FIRST ? 1 : scale * M_LOG2E_F;
q.open(tile::head<Element>(Q, Q_strides, b, h_k), tile::row_stride<Element>(Q_strides), first, rows, memory, lane);
k.open(memory, lane);
VIEW_K(k, b, h_k)
v.open(memory, lane);
VIEW_V(v, b, h_k)
o.open(O + row0 * DV, first, rows, lane);
state.clear();
#if HAS_SINKS
for (int i = 0; i < R / 8 && part == 0; i++) {
  state.clear(i, sinks[h + visibility.head_of(min(first + i * 8 + lane.row, rows - 1))]);
}
#endif
OPEN_HEAD(b, h, block)
if (HAS_SEGMENTS) visibility.row_segments = mask::span(visibility.q_segments, 0, Lq, lane);
if (HAS_SHIFTS) visibility.row_shifts = mask::span(visibility.q_shifts, 0, Lq, lane);

const mask::Range seen = visibility.keys_of(0, Lq - 1);
const int begin = seen.begin + part * decode_params[1], end = min(seen.end, begin + decode_params[1]);
for (int c = begin, next; c < end;) {
  k.start(c);
  v.start(c);
#pragma clang loop unroll(full)
  for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
    for (; c < end; c = next) {
      next = min(c + BT, end);
      bool seen_by_some = true;
      if (HAS_BLOCKS) {
        next = min(next, (c / BLOCK + 1) * BLOCK);
        seen_by_some = visibility.enter_gqa_block(block, block + BP - 1, c);
      }
      const bool is_edge = visibility.edge_of_keys<BT>({c, next}, 0, Lq - 1, c, lane);
      if (is_edge != (edge == 1)) break;
      if (!seen_by_some || visibility.skip()) continue;
      if (tile::produce(k, v, c, next)) continue;
      k.acquire(c, next, edge);

      // S = scale log2(e) Q K^T, masked
      tile::Tile<float, R, BT> s;
      tile::multiply_abt(s, q, k);
      k.release();
#if HAS_SOFTCAP
      tile::Tile<float, R, BT> slope;
      softmax::cap(s, slope, scale, softcap);
#else
      if (softmax::SCALED_FIRST) softmax::multiply(s, scale * M_LOG2E_F);
#endif
      const bool whole = mask::apply<false>(s, visibility, first, c, k.valid, lane, edge);

      // P = 2^(S - m);  O = correction O + P V
      const tile::RowVector<R> correction = softmax::step(s, state, factor);
      tile::Tile<Element, R, BT> p;
      tile::narrow(p, s);
      v.acquire(c, next, edge);
      tile::multiply_ab<Element>(o, correction, p, v, whole);
      v.release();
    }
  }
}
if (lane.produces()) return;

// One part: O = O / l;  L = m + log2(l)
tile::RowVector<R> normaliser;
for (int i = 0; i < R / 8; i++) {
  const int row = first + i * 8 + lane.row;
  normaliser.at[i] = parts > 1 ? 1 : state.l[i] == 0 ? 0 : 1 / state.l[i];
  if (row >= rows || lane.column != 0) continue;
  L[row0 + row] = parts > 1 ? state.m[i] : softmax::log_sum(state.m[i], state.l[i]);
  if (parts > 1) L[long(parts) * Q_shape[0] * heads * rows + row0 + row] = state.l[i];
}
o.store(O + row0 * DV, first, normaliser);
