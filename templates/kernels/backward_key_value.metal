// FlashAttention backward for the keys and values: dK and dV, summed over the query heads that share them.
//
//   for each block of BP keys, in parallel:
//     dK, dV = 0, 0
//     for each query head of the group, for each block of BT queries that see any of the keys:
//       P^T = 2^(f (K Q^T - m) - log2 l)   masked elements = 0; f = scale log2(e); m and log2 l vary along columns
//       dV = dV + P^T dO
//       dP^T = V dO^T
//       dS^T = P^T * (dP^T - delta)
//       dK = dK + dS^T Q
//     dK = scale * dK
//
// Algorithm 2 of FlashAttention-2 (Dao 2023), the half that is parallel over keys (Turner 2024). One threadgroup goes
// through all heads of the group, so every element has one writer and results repeat bit for bit.
// Glossary in forward.metal. Written by: dK and dV, each element by one lane.
//
// Where registers hold only one accumulator, dK and dV have separate kernels (WANTS_DK, WANTS_DV).
namespace flash {

constant constexpr bool CACHE_K = $CACHE_K, CACHE_V = $CACHE_V, CACHE_DK = $CACHE_DK, CACHE_DV = $CACHE_DV;

template <typename OutK = float, typename OutV = float>
METAL_FUNC void backward_key_value(
    thread const Arguments& args,
#if WANTS_DK
    device OutK* dK,
#endif
#if WANTS_DV
    device OutV* dV,
#endif
    threadgroup Element* scratch, uint3 position, uint thread_index) {
#if PARTED
  const tile::Lane lane = tile::Lane::sharing(thread_index, position);
#else
  const tile::Lane lane = tile::Lane::of(thread_index);
#endif
  const int h_k = position.y, b = position.z, group = args.Hq / args.Hk, Lq = args.Lq, Lk = args.Lk;
  const int block = int(position.x) * BP, first = block + int(lane.simdgroup) * R;
#if HEADS_BETWEEN
  const long row0 = tile::first_row(b, h_k, args.Hk, Lk);
  const int step = args.Hk;
#else
  const long row0 = (long(b) * args.Hk + h_k) * Lk;
  const int step = 1;
#endif

  tile::Memory<Element> memory = {scratch};
  const float factor = softmax::factor_of(args.scale);
  tile::Rows<Element, BP, R, D, CACHE_K> k;
  tile::Traversed<Element, BT, D, BH, THREADS> q;
#if PARTED && !WANTS_DK
  tile::Traversed<Element, BT, DV, BH, THREADS, true> d_o;
#else
  tile::Traversed<Element, BT, DV, BH, THREADS> d_o;
#endif
  k.open(args.K, b, h_k, first, Lk, memory, lane);
#if WANTS_DK
  tile::Rows<Element, BP, R, DV, CACHE_V> v;
  tile::Accumulator<R, D, BH, CACHE_DK> d_k;
  v.open(args.V, b, h_k, first, Lk, memory, lane);
  d_k.open(dK + row0 * D, first, Lk, lane);
#endif
#if WANTS_DV
  tile::Accumulator<R, DV, BH, CACHE_DV> d_v;
  d_v.open(dV + row0 * DV, first, Lk, lane);
#endif
  q.open(memory, lane);
  d_o.open(memory, lane);
#if STAGES_STATISTICS
  tile::Statistics<BT> statistics;
  statistics.open(memory, Lq, lane);
#endif

  tile::RowVector<R> one, scale_row;
  for (int i = 0; i < R / 8; i++) {
    one.at[i] = 1;
    scale_row.at[i] = args.scale;
  }

  mask::Visibility visibility;
  visibility.open(args, b);
  visibility.open_rows(block, min(block + BP, Lk), lane);
  mask::Look<R, BT> look;
  tile::await_rows(lane);
  const mask::Range seeing = visibility.queries_of(block, block + BP - 1);
  // Pointers step from head to head: products with the head's number would occupy registers through all loops.
  const int first_head = h_k * group;
  long statistics0 = (long(b) * args.Hq + first_head) * Lq;
  q.view(args.Q, b, first_head);
  d_o.view(args.dO, b, first_head);
  for (int n = 0; n < group; n++, statistics0 += Lq, q.next_head(args.Q), d_o.next_head(args.dO)) {
    const int h = first_head + n;
    visibility.open_head(args, b, h, block);
#if STAGES_STATISTICS
    statistics.rows = args.L + 2 * statistics0;
    statistics.deltas = args.delta + statistics0;
#endif
#if HAS_DROPOUT
    dropout::Dropout drop;
    drop.open(args, b, h);
#endif
    for (int run = 0; run < visibility.ranges(); run++) {
      const mask::Range range = visibility.range(run, seeing);
      for (int r = range.begin; r < range.end;) {
        q.start(r);
        d_o.start(r);
#pragma clang loop unroll(full)
        for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
          for (; r < range.end; r += BT) {
            const bool at_edge = visibility.edge_of(range, block, block + BP - 1, r, lane) || q.far() || d_o.far();
            if (at_edge != (edge == 1)) break;
#if LOOKS || MAPS || HAS_SEGMENTS
            bool shown = !visibility.skip();
#if LOOKS || MAPS
            shown = shown && look.at(visibility, first, r, range.end, edge == 1, scratch, lane);
#endif
            if (!shown) {
              q.pass();
              d_o.pass();
              continue;
            }
#endif
#if STAGES_STATISTICS
            if (tile::produce(q, d_o, statistics, r, range.end)) continue;
            statistics.acquire();
#else
            if (tile::produce(q, d_o, r, range.end)) continue;
#endif
#if LOADS_EARLY && !STAGES_STATISTICS
            const softmax::Reference<tile::ColumnVector<BT>> reference =
                softmax::read_reference<BT>(args.L + 2 * (statistics0 + r), edge ? Lq - r : BT, lane);
#if WANTS_DK
            tile::ColumnVector<BT> delta_column;
            softmax::read_columns(delta_column, args.delta + (statistics0 + r), edge ? Lq - r : BT, lane);
#endif
#endif
            q.acquire(r, range.end, edge);
            d_o.acquire(r, range.end, edge);

            // P^T = 2^(f (S^T - m) - log2 l)
            tile::Tile<float, R, BT> p;
#if OVERLAPS
            tile::Tile<float, R, BT> ds;
            tile::begin_two_abt(p, k, q, ds, v, d_o);
            tile::finish_abt<1>(p, k, q);
#else
            tile::multiply_abt(p, k, q);
#endif
            softmax::Slope<R, BT> slope;
            softmax::scale_or_cap(p, slope, args);
#if HAS_SCORE
            formula::apply(p, slope, visibility, r, first, lane, edge);
#endif
            const bool whole = mask::apply(p, visibility, look, r, first, q.valid, lane, edge);
#if STAGES_STATISTICS
            const softmax::Reference<tile::ColumnVector<BT>> reference = softmax::read_reference(statistics);
#endif
#if LOADS_EARLY
            softmax::probabilities(p, reference, factor, whole);
#else
            softmax::probabilities(p, args.L + 2 * (statistics0 + r), Lq - r, factor, whole, lane, edge);
#endif

#if OVERLAPS
            // As below, but the matrix unit computes V dO^T during P^T, and P^T dO during dS^T.
            if (tile::plain(d_o, q, whole)) {
              tile::begin_ab(d_v, p, d_o);
              tile::finish_abt<1>(ds, v, d_o);
              const tile::ColumnVector<BT> delta_column = statistics.delta_column();
              softmax::gradient(ds, p, delta_column, whole);
              softmax::apply_slope(ds, slope);
              tile::begin_ab(d_k, ds, q);
              tile::finish_ab(d_v);
              tile::finish_ab(d_k);
            } else {
              tile::finish_abt<0>(ds, v, d_o);
              tile::nan_safe_ab(d_v, p, d_o);
              const tile::ColumnVector<BT> delta_column = statistics.delta_column();
              softmax::gradient(ds, p, delta_column, whole);
              softmax::apply_slope(ds, slope);
              tile::nan_safe_ab(d_k, ds, q);
            }
            d_o.release();
#else
#if WANTS_DV
            // dV = dV + P^T dO
#if HAS_DROPOUT
            tile::Tile<float, R, BT> kept = p;
            dropout::apply(kept, drop, r, first, lane);
            tile::multiply_ab<Element>(d_v, one, kept, d_o, whole);
#else
            tile::multiply_ab<Element>(d_v, one, p, d_o, whole);
#endif
#endif

#if WANTS_DK
            // dP^T = V dO^T;  dS^T = P^T * (dP^T - delta)
            tile::Tile<float, R, BT> ds;
            tile::multiply_abt(ds, v, d_o);
#if STAGES_STATISTICS
            const tile::ColumnVector<BT> delta_column = statistics.delta_column();
#endif
            d_o.release();
#if HAS_DROPOUT
            dropout::apply(ds, drop, r, first, lane);
#endif
#if LOADS_EARLY
            softmax::gradient(ds, p, delta_column, whole);
#else
            softmax::gradient(ds, p, args.delta + (statistics0 + r), Lq - r, whole && !edge, lane, edge);
#endif
            softmax::apply_slope(ds, slope);

            // dK = dK + dS^T Q
            tile::multiply_ab<float>(d_k, one, ds, q, whole);
#else
            d_o.release();
#endif
#endif
            q.release();
          }
        }
      }
    }
  }
  if (lane.produces()) return;
#if WANTS_DK
  d_k.store(dK + row0 * D, step * D, first, scale_row);
#endif
#if WANTS_DV
  d_v.store(dV + row0 * DV, step * DV, first, one);
#endif
}

}  // namespace flash
