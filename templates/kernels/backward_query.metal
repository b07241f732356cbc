// FlashAttention backward for the queries: dQ. S is recomputed, so nothing of size Lq x Lk has to be stored.
//
//   for each block of BP query rows, in parallel:
//     dQ = 0
//     delta = rowsum(dO * O)             read, where delta.metal has computed it
//     for each block of BT keys that any of the rows sees:
//       P = 2^(f (Q K^T - m) - log2 l)     masked elements = 0; f = scale log2(e); m and log2 l are read from L
//       dP = dO V^T
//       dS = P * (dP - delta)
//       dQ = dQ + dS K
//     dQ = scale * dQ
//
// Algorithm 2 of FlashAttention-2 (Dao 2023), the half that is parallel over queries, so that no atomics are needed
// (Turner 2024). KEEPS: P and dS are written for the kernels of dK and dV (backward_kept.metal), for as many heads at a
// time as their memory is bounded by. Glossary in forward.metal. Written by: dQ, delta, P and dS, each element by one
// lane.
namespace flash {

constant constexpr bool CACHE_Q = $CACHE_Q, CACHE_DO = $CACHE_DO, CACHE_DQ = $CACHE_DQ;

template <typename Out>
METAL_FUNC void backward_query(
    thread const Arguments& args, device Out* dQ,
#if WRITES_DELTA
    device float* delta,
#endif
#if KEEPS
    device Element* P, device Element* dS,
#endif
    threadgroup Element* scratch, uint3 position, uint thread_index) {
#if PARTED
  const tile::Lane lane = tile::Lane::sharing(thread_index, position);
#else
  const tile::Lane lane = tile::Lane::of(thread_index);
#endif
  const QueryBlock at = QueryBlock::of(args, position, lane);

  tile::Memory<Element> memory = {scratch};
  const float factor = softmax::factor_of(args.scale);
  tile::Rows<Element, BP, R, D, CACHE_Q> q;
  tile::Rows<Element, BP, R, DV, CACHE_DO> d_o;
  tile::Traversed<Element, BT, D, BH, THREADS> k;
  tile::Traversed<Element, BT, DV, BH, THREADS> v;
  tile::Accumulator<R, D, BH, CACHE_DQ> d_q;
  q.open(args.Q, at.b, at.h, at.first, args.Lq, memory, lane);
  d_o.open(args.dO, at.b, at.h, at.first, args.Lq, memory, lane);
  k.open(memory, lane);
  k.view(args.K, at.b, at.h_k);
  v.open(memory, lane);
  v.view(args.V, at.b, at.h_k);
  d_q.open(dQ + at.row0 * D, at.first, args.Lq, lane);

  const softmax::Reference<tile::RowVector<R>> reference =
      softmax::read_reference<R>(args.L + 2 * at.row0, at.first, args.Lq, lane);
  tile::RowVector<R> delta_row, one, scale_row;
  for (int i = 0; i < R / 8; i++) {
    const int group = at.first + i * 8, last = args.Lq - 1;
#if WRITES_DELTA
    for (int r = 0; r < 8 && !lane.produces(); r++) {
      const float sum = delta_of<Element>(args, at.b, at.h, min(group + r, last), thread_index % 32);
#if SPLITS_HEAD || PARTED
      if (lane.part() == 0)
#endif
      if (thread_index % 32 == 0 && group + r <= last) delta[at.row0 + group + r] = sum;
      if (lane.row == r) delta_row.at[i] = sum;
    }
#else
    delta_row.at[i] = args.delta[at.row0 + min(group + lane.row, last)];
#endif
    one.at[i] = 1;
    scale_row.at[i] = args.scale;
  }

  mask::Visibility visibility;
  visibility.open(args, at.b);
  visibility.open_head(args, at.b, at.h, at.block);
  visibility.open_rows(at.block, min(at.block + BP, args.Lq), lane);
  mask::Look<R, BT> look;
#if HAS_DROPOUT
  dropout::Dropout drop;
  drop.open(args, at.b, at.h);
#endif
#if KEEPS
  tile::Keeper<Element> kept_p, kept_ds;
  const long head_index = long(at.b) * args.Hq + at.h;
  kept_p.open(P, head_index, at.first, args.Lq, args.Lk, lane);
  kept_ds.open(dS, head_index, at.first, args.Lq, args.Lk, lane);
#endif

  tile::await_rows(lane);
  const mask::Range seen = visibility.keys_of(at.block, at.block + BP - 1);
  for (int n = 0; n < visibility.ranges(); n++) {
#if KEEPS
    mask::Range range = visibility.range(n, seen);
    range.begin = range.begin / tile::KEPT * tile::KEPT;  // whole tiles
#else
    const mask::Range range = visibility.range(n, seen);
#endif
    for (int c = range.begin; c < range.end;) {
      k.start(c);
      v.start(c);
#pragma clang loop unroll(full)
      for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
        for (; c < range.end; c += BT) {
          const bool at_edge = visibility.edge_of(range, at.block, at.block + BP - 1, c, lane) || k.far() || v.far();
          if (at_edge != (edge == 1)) break;
#if LOOKS || MAPS || HAS_SEGMENTS
          bool shown = !visibility.skip();
#if LOOKS || MAPS
          shown = shown && look.at(visibility, at.first, c, range.end, edge == 1, scratch, lane);
#endif
          if (!shown) {
            k.pass();
            v.pass();
            continue;
          }
#endif
          if (tile::produce(k, v, c, range.end)) continue;
          k.acquire(c, range.end, edge);
          v.acquire(c, range.end, edge);

          // P = 2^(f (S - m) - log2 l)
          tile::Tile<float, R, BT> p, ds;
          tile::begin_abt(p, q, k);
          tile::begin_abt(ds, d_o, v);
          tile::finish_abt<1>(p, q, k);
          softmax::Slope<R, BT> slope;
          softmax::scale_or_cap(p, slope, args);
#if HAS_SCORE
          formula::apply(p, slope, visibility, at.first, c, lane, edge);
#endif
          const bool whole = mask::apply(p, visibility, look, at.first, c, k.valid, lane, edge);
          softmax::probabilities(p, reference, factor, whole);
#if KEEPS && HAS_DROPOUT
          tile::Tile<float, R, BT> dropped = p;
          dropout::apply(dropped, drop, at.first, c, lane);
          kept_p.keep(dropped, c, edge);
#elif KEEPS
          kept_p.keep(p, c, edge);
#endif

          // dP = dO V^T;  dS = P * (dP - delta)
          tile::finish_abt<0>(ds, d_o, v);
          v.release();
#if HAS_DROPOUT
          dropout::apply(ds, drop, at.first, c, lane);
#endif
#if LOADS_EARLY
          softmax::gradient(ds, p, delta_row, whole);
#else
          softmax::gradient(ds, p, delta_row, whole && !edge);
#endif
          softmax::apply_slope(ds, slope);
#if KEEPS
          kept_ds.keep(ds, c, edge);
#endif

          // dQ = dQ + dS K
          tile::multiply_ab<float>(d_q, one, ds, k, whole);
          k.release();
        }
      }
    }
  }
  if (lane.produces()) return;
#if HEADS_BETWEEN
  d_q.store(dQ + tile::first_row(at.b, at.h, args.Hq, args.Lq) * D, args.Hq * D, at.first, scale_row);
#else
  d_q.store(dQ + at.row0 * D, D, at.first, scale_row);
#endif
}

}  // namespace flash
