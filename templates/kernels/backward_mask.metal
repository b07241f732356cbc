// FlashAttention backward for an additive mask: dM = dS, summed over the axes along which the mask was broadcast.
//
//   for each block of R queries and BT keys of the mask's own shape, in parallel (one simdgroup):
//     dM = 0
//     for each batch entry, head, block of queries and block of keys that reads this part of the mask:
//       P = 2^(scale log2(e) Q K^T + log2(e) M - L)
//       dP = dO V^T
//       dM = dM + P * (dP - delta)
//     dM summed over rows and columns where the mask has only one
//
// The mask has the shape dM_shape = [1 or B, 1 or Hq, 1 or Lq, 1 or Lk]. One simdgroup walks everything that is summed
// into its elements, in order: no atomics. Glossary in forward.metal. Written by: dM, each element by one lane.
using Element = $ELEMENT;
constant constexpr int D = $HEAD_DIM, DV = $VALUE_DIM;
constant constexpr int BP = $BLOCK_PARALLEL, BT = $BLOCK_TRAVERSAL, BH = $BLOCK_HEAD, R = $SIMDGROUP_ROWS;
constant constexpr int THREADS = 32 * BP / R, SCRATCH = $SCRATCH;
constant constexpr bool USES_THREADGROUP = $USES_THREADGROUP;
$ATTRIBUTES
// ---- body
const tile::Lane lane = tile::Lane::of(thread_index_in_threadgroup);
const int Hq = Q_shape[1], group = Hq / int(K_shape[1]), Lq = visibility.queries, Lk = visibility.keys;

// The mask's shape, and this threadgroup's place in it
const int batches = extents[0], heads = extents[1], rows = extents[2], columns = extents[3];
const int column_blocks = (columns + BT - 1) / BT, place = threadgroup_position_in_grid.x;
const int row = place / column_blocks * R, column = place % column_blocks * BT;
const int h0 = threadgroup_position_in_grid.y, b0 = threadgroup_position_in_grid.z;

alignas(16) threadgroup Element scratch[SCRATCH];
tile::Memory<Element> memory = {scratch};
const float factor = softmax::SCALED_FIRST ? 1 : scale * M_LOG2E_F;
tile::Tile<float, R, BT> total;
tile::clear(total);
for (int b = b0; b < (batches == 1 ? int(Q_shape[0]) : b0 + 1); b++) {
#if HAS_SEGMENTS
  visibility.q_segments = q_segments + b * q_segments_strides[0];
  visibility.k_segments = k_segments + b * k_segments_strides[0];
#endif
#if HAS_SHIFTS && HAS_SEGMENTS
  visibility.q_shifts = visibility.q_segments + Lq;
  visibility.k_shifts = visibility.q_shifts + Lq;
#elif HAS_SHIFTS
  visibility.q_shifts = shifts + long(b) * (Lq + Lk);
  visibility.k_shifts = visibility.q_shifts + Lq;
#endif
  for (int h = h0; h < (heads == 1 ? Hq : h0 + 1); h++) {
    for (int first = row; first < (rows == 1 ? Lq : row + 1); first += R) {
      const long row0 = (long(b) * Hq + h) * Lq;
      tile::Rows<Element, R, R, D, false> q;
      tile::Rows<Element, R, R, DV, false> d_o;
      q.open(tile::head<Element>(Q, Q_strides, b, h), tile::row_stride<Element>(Q_strides), first, Lq, memory, lane);
      d_o.open(
          tile::head<Element>(dO, dO_strides, b, h), tile::row_stride<Element>(dO_strides), first, Lq, memory, lane);
      tile::RowVector<R> L_row, delta_row;
      for (int i = 0; i < R / 8; i++) {
        const int query = min(first + i * 8 + lane.row, Lq - 1);
        L_row.at[i] = softmax::row_reference(L[row0 + query]);
        delta_row.at[i] = delta[row0 + query];
      }
      OPEN_HEAD(b, h, first)
      OPEN_DROPOUT(b, h)
      if (HAS_SEGMENTS) visibility.row_segments = mask::span(visibility.q_segments, first, min(first + R, Lq), lane);
      if (HAS_SHIFTS) visibility.row_shifts = mask::span(visibility.q_shifts, first, min(first + R, Lq), lane);

      const mask::Range seen = visibility.keys_of(first, first + R - 1);
      const int begin = columns == 1 ? 0 : column, end = min(seen.end, columns == 1 ? Lk : column + BT);
      for (int c = begin; c < end; c += BT) {
        if (c + BT <= seen.begin) continue;
        if (HAS_BLOCKS && !visibility.enter(first, c)) continue;
        visibility.look_at(visibility.k_segments, c, min(c + BT, Lk), lane);
        if (visibility.skip()) continue;
        tile::Traversed<Element, BT, D, BH, THREADS, USES_THREADGROUP> k;
        tile::Traversed<Element, BT, DV, BH, THREADS, USES_THREADGROUP> v;
        k.open(memory, lane);
        k.view(tile::head<Element>(K, K_strides, b, h / group), tile::row_stride<Element>(K_strides));
        v.open(memory, lane);
        v.view(tile::head<Element>(V, V_strides, b, h / group), tile::row_stride<Element>(V_strides));
        k.acquire(c, Lk);
        v.acquire(c, Lk);

        // P = 2^(S - L);  dS = P * (dO V^T - delta);  dM = dM + dS
        tile::Tile<float, R, BT> p, ds;
        tile::multiply_abt(p, q, k);
#if HAS_SOFTCAP
        tile::Tile<float, R, BT> slope;
        softmax::cap(p, slope, scale, softcap);
#else
        if (softmax::SCALED_FIRST) softmax::multiply(p, scale * M_LOG2E_F);
#endif
        const bool whole = mask::apply<false>(p, visibility, first, c, k.valid, lane);
        softmax::probabilities(p, L_row, factor, whole);
        tile::multiply_abt(ds, d_o, v);
#if HAS_DROPOUT
        dropout::apply<false>(ds, drop, first, c, lane);
#endif
        softmax::gradient(ds, p, delta_row);
        tile::add(total, ds);
      }
    }
  }
}
tile::store_sums(
    dM + ((long(b0) * heads + h0) * rows + row) * columns + column, columns, rows - row, columns - column, rows == 1,
    columns == 1, total, lane);
