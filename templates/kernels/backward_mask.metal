// FlashAttention backward for an additive mask: dM = dS, summed over the axes along which the mask was broadcast.
//
//   for each block of R queries and BT keys of the mask's own shape, in parallel (one simdgroup):
//     dM = 0
//     for each batch entry, head, block of queries and block of keys that reads this part of the mask:
//       P = exp(scale Q K^T + M - m) / l     m and log2 l are read from L
//       dP = dO V^T
//       dM = dM + P * (dP - delta)
//     dM summed over rows and columns where the mask has only one
//
// With SEEDED, dM is the sum of dS times the slope of the user's score in one of its arrays (autodiff/tables.py).
// The mask has the shape [1 or B, 1 or Hq, 1 or Lq, 1 or Lk] in `extents`. One simdgroup goes through everything that
// its elements sum, in order and without atomics. Glossary in forward.metal. Written by: dM, each element by one lane.
namespace flash {

METAL_FUNC void backward_mask(
    thread const Arguments& args, device float* dM, threadgroup Element* scratch, uint3 position, uint thread_index) {
  const tile::Lane lane = tile::Lane::of(thread_index);
  const int group = args.Hq / args.Hk, Lq = args.Lq, Lk = args.Lk;

  // The mask's shape, and this threadgroup's place in it
  const int batches = args.extents[0], heads = args.extents[1], rows = args.extents[2], columns = args.extents[3];
  const int column_blocks = (columns + BT - 1) / BT, place = position.x;
  const int row = place / column_blocks * R, column = place % column_blocks * BT;
  const int h0 = position.y, b0 = position.z;

  tile::Memory<Element> memory = {scratch};
  const float factor = softmax::factor_of(args.scale);
  mask::Visibility visibility;
  mask::Look<R, BT> look;
  tile::Tile<float, R, BT> total;
  tile::clear(total);
  for (int b = b0; b < (batches == 1 ? args.B : b0 + 1); b++) {
    visibility.open(args, b);
    for (int h = h0; h < (heads == 1 ? args.Hq : h0 + 1); h++) {
      for (int first = row; first < (rows == 1 ? Lq : row + 1); first += R) {
        const long row0 = (long(b) * args.Hq + h) * Lq;
        tile::Rows<Element, R, R, D, false> q;
        tile::Rows<Element, R, R, DV, false> d_o;
        q.open(args.Q, b, h, first, Lq, memory, lane);
        d_o.open(args.dO, b, h, first, Lq, memory, lane);
        const softmax::Reference<tile::RowVector<R>> reference =
            softmax::read_reference<R>(args.L + 2 * row0, first, Lq, lane);
        tile::RowVector<R> delta_row;
        for (int i = 0; i < R / 8; i++) {
          const int query = min(first + i * 8 + lane.row, Lq - 1);
          delta_row.at[i] = args.delta[row0 + query];
        }
        visibility.open_head(args, b, h, first);
        visibility.open_rows(first, min(first + R, Lq), lane);
#if HAS_DROPOUT
        dropout::Dropout drop;
        drop.open(args, b, h);
#endif

        const mask::Range seen = visibility.keys_of(first, first + R - 1);
        const int begin = columns == 1 ? 0 : column, end = min(seen.end, columns == 1 ? Lk : column + BT);
        for (int c = begin; c < end; c += BT) {
          if (c + BT <= seen.begin) continue;
          visibility.look_at(c, min(c + BT, Lk), lane);
          if (visibility.skip()) continue;
#if LOOKS
          if (!look.at(visibility, first, c, Lk, true, scratch, lane)) continue;
#endif
          tile::Traversed<Element, BT, D, BH, THREADS> k;
          tile::Traversed<Element, BT, DV, BH, THREADS> v;
          k.open(memory, lane);
          k.view(args.K, b, h / group);
          v.open(memory, lane);
          v.view(args.V, b, h / group);
          k.start(c);
          v.start(c);
          k.acquire(c, Lk);
          v.acquire(c, Lk);

          // P = 2^(f (S - m) - log2 l);  dS = P * (dO V^T - delta);  dM = dM + dS
          tile::Tile<float, R, BT> p, ds;
          tile::multiply_abt(p, q, k);
          softmax::Slope<R, BT> slope;
          softmax::scale_or_cap(p, slope, args);
#if HAS_SCORE
          formula::apply(p, slope, visibility, first, c, lane);
#endif
          const bool whole = mask::apply(p, visibility, look, first, c, k.valid, lane);
          softmax::probabilities(p, reference, factor, whole);
          tile::multiply_abt(ds, d_o, v);
#if HAS_DROPOUT
          dropout::apply(ds, drop, first, c, lane);
#endif
          softmax::gradient(ds, p, delta_row);
#if SEEDED
          softmax::apply_slope(ds, slope);
#endif
          tile::add(total, ds);
        }
      }
    }
  }
  tile::store_sums(
      dM + ((long(b0) * heads + h0) * rows + row) * columns + column, columns, rows - row, columns - column, rows == 1,
      columns == 1, total, lane);
}

}  // namespace flash
