// FlashAttention forward: O = softmax(scale * Q K^T + mask) V and L, the statistics of each row of scores.
//
//   for each block of BP query rows (one threadgroup; R rows a simdgroup), in parallel:
//     m, l, O = -inf, 0, 0
//     for each block of BT keys that any of the rows sees:
//       S = Q K^T                          masked elements = -inf
//       m' = max(m, rowmax S);  P = 2^(f (S - m'));  c = 2^(f (m - m'))     f = scale log2(e)
//       l = c l + rowsum P;  O = c O + P V
//       m = m'
//     O = O / l;  L = m, log2 l            a row that sees no key: O = 0, L = -inf, 0
//
// Algorithm 1 of FlashAttention-2 (Dao 2023), with the head dimension blocked and the accumulator optionally paged
// as in metal-flash-attention (Turner 2024).
//
// Glossary (all kernels). Head slices are [length, D]; arrays are [B, heads, length, D].
//   Q dO dQ     [B, Hq, Lq, D]   queries, and the gradients of O and Q; O, dO have DV columns
//   K V dK dV   [B, Hk, Lk, D]   keys, values and their gradients; V, dV have DV columns
//   L           [B, Hq, Lq, 2]   float32, m and log2 l of each row (softmax.metal has the units)
//   delta       [B, Hq, Lq]      float32, rowsum(dO * O)
//   scale       scalar           float32, multiplies Q K^T
//   S P dP dS   BP x BT tiles    scores, probabilities and their gradients; float32 in registers
//   m l         per row          running maximum and sum; float32
//   args        the kernel's arguments, in a struct that kernels/arguments.py generates
//   BP BT BH    block sizes: parallel dimension, traversed dimension, head dimension
//   R           rows of the parallel dimension that one simdgroup owns
//   acquire     waits for the pipeline stage that holds an operand's next block; release returns it to the producer
//   produce     in producer warps: copies the next blocks and returns true; Apple GPUs have no producer warps
//   ping_pong   ping-pong scheduling: the softmax of one warpgroup overlaps the matrix products of the other
//   HEADS_BETWEEN  results lie in memory as [B, L, heads, D]: models join the heads of a row, which then takes no copy
//   PARTED      threadgroups that own the same rows share the columns of an accumulator that registers do not hold
// Q, K, V, dO and O arrive as bytes with their strides, so that views are read in place; the last axis is contiguous.
// Written by: O and L, each element by one lane.
namespace flash {

constant constexpr bool CACHE_Q = $CACHE_Q, CACHE_O = $CACHE_O;

template <typename Out>
METAL_FUNC void forward(
    thread const Arguments& args, device Out* O, device float* L, threadgroup Element* scratch, uint3 position,
    uint thread_index) {
#if PARTED
  const tile::Lane lane = tile::Lane::sharing(thread_index, position);
#else
  const tile::Lane lane = tile::Lane::of(thread_index);
#endif
  const QueryBlock at = QueryBlock::of(args, position, lane);

  tile::Memory<Element> memory = {scratch};
  tile::Rows<Element, BP, R, D, CACHE_Q> q;
  tile::Traversed<Element, BT, D, BH, THREADS> k;
#if PARTED || LOW_PARTS
  tile::Traversed<Element, BT, DV, BH, THREADS, true> v;
#else
  tile::Traversed<Element, BT, DV, BH, THREADS> v;
#endif
  tile::Accumulator<R, DV, BH, CACHE_O> o;
  softmax::State<R> state;
  const float factor = softmax::factor_of(args.scale);
  q.open(args.Q, at.b, at.h, at.first, args.Lq, memory, lane);
  k.open(memory, lane);
  k.view(args.K, at.b, at.h_k);
  v.open(memory, lane);
#if LATENT
  v.view(args.K, at.b, at.h_k);  // values are the first DV columns of keys
#else
  v.view(args.V, at.b, at.h_k);
#endif
  o.open(O + at.row0 * DV, at.first, args.Lq, lane);
  state.clear();
#if HAS_SINKS
  for (int i = 0; i < R / 8; i++) state.clear(i, args.sinks[at.h], args.scale, lane.column == 0);
#endif
  mask::Visibility visibility;
  visibility.open(args, at.b);
  visibility.open_head(args, at.b, at.h, at.block);
  visibility.open_rows(at.block, min(at.block + BP, args.Lq), lane);
  mask::Look<R, BT> look;
#if HAS_DROPOUT
  dropout::Dropout drop;
  drop.open(args, at.b, at.h);
#endif

  tile::await_rows(lane);
  tile::PingPong<BP, DV> ping_pong;
  ping_pong.open(lane);
  const mask::Range seen = visibility.keys_of(at.block, at.block + BP - 1);
#if TRIMS
  // Past what its own rows see, a simdgroup multiplies nothing of a block that the threadgroup has copied.
  const mask::Range own = visibility.keys_of(at.first, at.first + R - 1);
#endif
  for (int n = 0; n < visibility.ranges(); n++) {
    const mask::Range range = visibility.range(n, seen);
    for (int c = range.begin; c < range.end;) {
      k.start(c);
      v.start(c);
      // Unrolled, so that `edge` is a constant in each copy of the loop, and whole blocks run without code for edges.
#pragma clang loop unroll(full)
      for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
#if OVERLAPS
        const bool in_flight = mask::HIDES_AT_EDGES && edge == 0;
        tile::enter_ab(o, v, in_flight);
#endif
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
#if TRIMS
          k.trim(own.end - c);
#endif

          // S = Q K^T, masked
          tile::Tile<float, R, BT> s;
          tile::begin_abt(s, q, k);
          ping_pong.arrive();
          tile::finish_abt<0>(s, q, k);
          k.release();
#if OVERLAPS
          v.release_held();
#endif
          softmax::Slope<R, BT> slope;
          softmax::scale_or_cap(s, slope, args);
#if HAS_SCORE
          formula::apply(s, slope, visibility, at.first, c, lane, edge);
#endif
          const bool whole = mask::apply(s, visibility, look, at.first, c, k.valid, lane, edge);

          // P = 2^(f (S - m));  O = correction O + P V
#if RESCALES_APART
          const tile::RowVector<R> correction = softmax::step(s, state, o, factor);
#else
          const tile::RowVector<R> correction = softmax::step(s, state, factor);
#endif
#if HAS_DROPOUT
          dropout::apply(s, drop, at.first, c, lane);
#endif
          tile::Tile<Element, R, BT> p;
          tile::narrow(p, s);
          v.acquire(c, range.end, edge);
#if TRIMS
          v.trim(own.end - c);
#endif
          ping_pong.wait();
#if OVERLAPS
          tile::begin_ab<Element>(o, correction, p, v, whole, in_flight);
#else
          tile::multiply_ab<Element>(o, correction, p, v, whole);
          v.release();
#endif
        }
#if OVERLAPS
        tile::leave_ab(o, v, in_flight);
#endif
      }
    }
  }
  if (lane.produces()) return;
  state.finish();
  ping_pong.arrive();

  // O = O / l;  L = m, log2 l
  tile::RowVector<R> normaliser;
  for (int i = 0; i < R / 8; i++) {
    const int row = at.first + i * 8 + lane.row;
#if HAS_LENGTHS && HAS_SINKS
    // Rows behind the end of their batch entry do not see the sink either.
    if (row >= visibility.queries) state.clear(i, -INFINITY, args.scale, false);
#endif
    normaliser.at[i] = state.l[i] == 0 ? 0 : 1 / state.l[i];
#if SPLITS_HEAD || PARTED
    if (lane.part() > 0) continue;
#endif
    if (row < args.Lq && lane.column == 0) {
#if RESCALES_LATE
      softmax::store_statistics(L + 2 * (at.row0 + row), state.largest[i], state.m[i], state.l[i], factor);
#else
      softmax::store_statistics(L + 2 * (at.row0 + row), state.m[i], state.l[i]);
#endif
    }
  }
#if HEADS_BETWEEN
  o.store(O + tile::first_row(at.b, at.h, args.Hq, args.Lq) * DV, args.Hq * DV, at.first, normaliser);
#else
  o.store(O + at.row0 * DV, DV, at.first, normaliser);
#endif
}

}  // namespace flash
