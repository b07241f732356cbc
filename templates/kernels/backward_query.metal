// FlashAttention backward for the queries: dQ. S is recomputed, so nothing of size Lq x Lk is ever stored.
//
//   for each block of BP query rows, in parallel:
//     dQ = 0
//     for each block of BT keys that any of the rows sees:
//       P = 2^(scale log2(e) Q K^T - L)    masked elements = 0
//       dP = dO V^T
//       dS = P * (dP - delta)
//       dQ = dQ + dS K
//     dQ = scale * dQ
//
// Algorithm 2 of FlashAttention-2 (Dao 2023), the half that is parallel over queries, so that no atomics are needed
// (Turner 2024). Glossary in forward.metal. Written by: dQ, each element by one lane.
using Element = $ELEMENT;
constant constexpr int D = $HEAD_DIM, DV = $VALUE_DIM;
constant constexpr int BP = $BLOCK_PARALLEL, BT = $BLOCK_TRAVERSAL, BH = $BLOCK_HEAD, R = $SIMDGROUP_ROWS;
constant constexpr int THREADS = 32 * BP / R, SCRATCH = $SCRATCH;
constant constexpr bool CACHE_Q = $CACHE_Q, CACHE_DO = $CACHE_DO, CACHE_DQ = $CACHE_DQ;
constant constexpr bool USES_THREADGROUP = $USES_THREADGROUP;
$ATTRIBUTES
// ---- body
const tile::Lane lane = tile::Lane::of(thread_index_in_threadgroup);
const int h = threadgroup_position_in_grid.y, b = threadgroup_position_in_grid.z;
const int h_k = h / (int(Q_shape[1]) / int(K_shape[1]));
const int Lq = visibility.queries;

// Causal blocks grow with their position: the longest go first.
const int blocks = (Lq + BP - 1) / BP, position = threadgroup_position_in_grid.x;
const int block = (CAUSAL ? blocks - 1 - position : position) * BP;
const int first = block + int(lane.simdgroup) * R;
const long row0 = (long(b) * Q_shape[1] + h) * Lq;

alignas(16) threadgroup Element scratch[SCRATCH];
tile::Memory<Element> memory = {scratch};
const float factor = softmax::SCALED_FIRST ? 1 : scale * M_LOG2E_F;
tile::Rows<Element, BP, R, D, CACHE_Q> q;
tile::Rows<Element, BP, R, DV, CACHE_DO> d_o;
tile::Traversed<Element, BT, D, BH, THREADS, USES_THREADGROUP> k;
tile::Traversed<Element, BT, DV, BH, THREADS, USES_THREADGROUP> v;
tile::Accumulator<R, D, BH, CACHE_DQ> d_q;
q.open(tile::head<Element>(Q, Q_strides, b, h), tile::row_stride<Element>(Q_strides), first, Lq, memory, lane);
d_o.open(tile::head<Element>(dO, dO_strides, b, h), tile::row_stride<Element>(dO_strides), first, Lq, memory, lane);
k.open(memory, lane);
k.view(tile::head<Element>(K, K_strides, b, h_k), tile::row_stride<Element>(K_strides));
v.open(memory, lane);
v.view(tile::head<Element>(V, V_strides, b, h_k), tile::row_stride<Element>(V_strides));
d_q.open(dQ + row0 * D, first, Lq, lane);

tile::RowVector<R> L_row, delta_row, one, scale_row;
for (int i = 0; i < R / 8; i++) {
  const int row = min(first + i * 8 + lane.row, Lq - 1);
  L_row.at[i] = softmax::row_reference(L[row0 + row]);
  delta_row.at[i] = delta[row0 + row];
  one.at[i] = 1;
  scale_row.at[i] = scale;
}

OPEN_HEAD(b, h, block)
OPEN_DROPOUT(b, h)
if (HAS_SEGMENTS) visibility.row_segments = mask::span(visibility.q_segments, block, min(block + BP, Lq), lane);
if (HAS_SHIFTS) visibility.row_shifts = mask::span(visibility.q_shifts, block, min(block + BP, Lq), lane);

const mask::Range seen = visibility.keys_of(block, block + BP - 1);
for (int n = 0; n < visibility.ranges(); n++) {
  const mask::Range range = visibility.range(n, seen);
  for (int c = range.begin; c < range.end;) {
    k.start(c);
    v.start(c);
#pragma clang loop unroll(full)
    for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
      for (; c < range.end; c += BT) {
        if (visibility.edge_of_keys<BT>(range, block, block + BP - 1, c, lane) != (edge == 1)) break;
        if (visibility.skip()) continue;
        if (tile::produce(k, v, c, range.end)) continue;
        k.acquire(c, range.end, edge);
        v.acquire(c, range.end, edge);

        // P = 2^(S - L)
        tile::Tile<float, R, BT> p, ds;
        tile::begin_abt(p, q, k);
        tile::begin_abt(ds, d_o, v);
        tile::finish_abt<1>(p, q, k);
#if HAS_SOFTCAP
        tile::Tile<float, R, BT> slope;
        softmax::cap(p, slope, scale, softcap);
#else
        if (softmax::SCALED_FIRST) softmax::multiply(p, scale * M_LOG2E_F);
#endif
        const bool whole = mask::apply<false>(p, visibility, first, c, k.valid, lane, edge);
        softmax::probabilities(p, L_row, factor, whole);

        // dP = dO V^T;  dS = P * (dP - delta)
        tile::finish_abt<0>(ds, d_o, v);
        v.release();
#if HAS_DROPOUT
        dropout::apply<false>(ds, drop, first, c, lane);
#endif
        softmax::gradient(ds, p, delta_row, whole && !edge);
#if HAS_SOFTCAP
        softmax::multiply(ds, slope);
#endif

        // dQ = dQ + dS K
        tile::multiply_ab<float>(d_q, one, ds, k, whole);
        k.release();
      }
    }
  }
}
if (lane.produces()) return;
d_q.store(dQ + row0 * D, first, scale_row);
