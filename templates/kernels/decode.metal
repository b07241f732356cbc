// FlashAttention for few queries and many keys: O and L over one part of the keys.
//
//   for each key head, block of BP rows and part of the keys (one threadgroup; R rows a simdgroup), in parallel:
//     rows: all queries of all query heads that share the key head (GQA packing), so that K and V are read once
//     for each of SPLITS slices of the part (one simdgroup, or as many as the rows need), in parallel:
//       m, l, O = -inf, 0, 0               the sink is counted in the first slice only
//       for each block of BT keys of this slice that any of the rows sees (SLICES > 1: BT keys of each shared block):
//         S, P, m, l, O as in forward.metal
//     m, l, O of the slices are joined in threadgroup memory (key_splits.metal)
//     one part:       O = O / l;  L = m, log2 l
//     several parts:  O, m and l unnormalised, for combine.metal to merge
//
// The parts of a row follow from its own number of keys: in a launch that has more of them, the last ones are empty.
//
// A row that sees no key: O = 0, m = -inf, l = 0. Split-KV as in Flash-Decoding (Dao et al. 2023).
//
// Glossary in forward.metal, and
//   Q        [B, Hk, G Lq, D]          row r is query r % Lq of the group's head r / Lq
//   O        [parts, B, Hk, G Lq, DV]  float32 if there are several parts
//   L        m and log2 l [B, Hk, G Lq, 2], or m and l [2, parts, B, Hk, G Lq]
//   decode_params  Lq; most keys that are not split, fewest keys of a part, most parts of a row; parts of the launch
// Written by: O and L, each element by one lane.
namespace flash {

constant constexpr bool CACHE_Q = $CACHE_Q, CACHE_O = $CACHE_O;
#if !SPLITS_KEYS
constant constexpr int SPLITS = 1;
#endif

// The keys of one part of a row that has `keys` of them, in whole blocks; split_kv.py computes the same
METAL_FUNC int part_length(int keys, const constant int* params) {
  const int unsplit = params[1], least = params[2], most = params[3], unit = BT * SPLITS;
  const int parts = keys <= unsplit ? 1 : max(1, min(most, keys / least));
  return (keys + parts * unit - 1) / (parts * unit) * unit;
}

template <typename Out>
METAL_FUNC void decode(
    thread const Arguments& args, device Out* O, device float* L, threadgroup Element* scratch, uint3 position,
    uint thread_index) {
#if SPLITS_KEYS && !SLICED
  // Each slice is a small threadgroup of its own: its threads count from 0, and it has separate memory for its blocks.
  const int slice = thread_index / THREADS;
  const tile::Lane lane = tile::Lane::of(thread_index % THREADS);
#if USES_THREADGROUP
  tile::Memory<Element> memory = {scratch + slice * (BT * BH)};
#else
  tile::Memory<Element> memory = {scratch};
#endif
#else
  const tile::Lane lane = tile::Lane::of(thread_index);
  const int slice = lane.slice();
  tile::Memory<Element> memory = {scratch};
#endif
  const int rows = args.rows, parts = args.decode_params[4], part = position.x, b = position.z;
  const int blocks = (rows + BP - 1) / BP, h_k = int(position.y) / blocks;
  const int h = h_k * (rows / args.Lq);  // the first query head of the group
  const int block = int(position.y) % blocks * BP, first = block + int(lane.simdgroup) * R;
  const long row0 = ((long(part) * args.B + b) * args.Hk + h_k) * rows;

  tile::Rows<Element, BP, R, D, CACHE_Q> q;
  tile::Traversed<Element, BT, D, BH, THREADS> k;
  tile::Traversed<Element, BT, DV, BH, THREADS> v;
  tile::Accumulator<R, DV, BH, CACHE_O> o;
  softmax::State<R> state;
  const float factor = softmax::factor_of(args.scale);
  mask::Visibility visibility;
  visibility.open(args, b);
  visibility.open_head(args, b, h, block);
  visibility.open_rows(0, args.Lq, lane);
  mask::Look<R, BT> look;
  q.open(args.Q, b, h_k, first, rows, memory, lane);
  k.open(memory, lane);
  k.view(args.K, b, h_k);
  v.open(memory, lane);
#if LATENT
  v.view(args.K, b, h_k);  // values are the first DV columns of keys
#else
  v.view(args.V, b, h_k);
#endif
  o.open(O + row0 * DV, first, rows, lane);
  state.clear();
#if HAS_SINKS
  for (int i = 0; i < R / 8 && part == 0 && slice == 0; i++) {
    const float sink = args.sinks[h + visibility.head_of(min(first + i * 8 + lane.row, rows - 1))];
    state.clear(i, sink, args.scale, lane.column == 0);
  }
#endif

  tile::await_rows(lane);
  const mask::Range seen = visibility.keys_of(0, args.Lq - 1);
  constexpr int RUNS = SPLITS / SLICES;  // of a part's keys, of which each has blocks of its own
  const int length = part_length(seen.end - seen.begin, args.decode_params) / RUNS;
  const int begin = seen.begin + (part * RUNS + slice / SLICES) * length, end = min(seen.end, begin + length);
  for (int c = begin, next; c < end;) {
    k.start(c);
    v.start(c);
#pragma clang loop unroll(full)
    for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
      for (; c < end; c = next) {
        next = min(c + BT * SLICES, end);
#if HAS_PAGES
        next = min(next, (c / PAGE + 1) * PAGE);
#endif
#if HAS_BLOCKS
        next = min(next, (c / BLOCK + 1) * BLOCK);
        const bool entered = visibility.enter_gqa_block(block, block + BP - 1, c);
#else
        const bool entered = true;
#endif
        const bool at_edge = visibility.edge_of({c, next}, 0, args.Lq - 1, c, lane) || k.far() || v.far();
        if (at_edge != (edge == 1)) break;
        bool shown = entered && !visibility.skip();
#if LOOKS || MAPS
        shown = shown && look.at(visibility, first, c, next, edge == 1, scratch, lane);
#endif
        if (!shown) {
          k.pass();
          v.pass();
          continue;
        }
        if (tile::produce(k, v, c, next)) continue;
#if HAS_BLOCKS
        k.start(c);  // the last one may have been shorter than BT
        v.start(c);
#endif
        k.acquire(c, next, edge);

        // S = Q K^T, masked; the block's keys from `own` on are those of this slice
        const int own = c + slice % SLICES * BT;
        tile::Tile<float, R, BT> s;
        tile::multiply_abt(s, q, k);
        k.release();
        softmax::Slope<R, BT> slope;
        softmax::scale_or_cap(s, slope, args);
#if HAS_SCORE
        formula::apply(s, slope, visibility, first, own, lane, edge);
#endif
        const bool whole = mask::apply(s, visibility, look, first, own, k.valid, lane, edge);

        // P = 2^(f (S - m));  O = correction O + P V
        const tile::RowVector<R> correction = softmax::step(s, state, factor);
        tile::Tile<Element, R, BT> p;
        tile::narrow(p, s);
        v.acquire(c, next, edge);
        tile::multiply_ab<Element>(o, correction, p, v, whole);
        v.release();
      }
    }
  }
  if (SLICES == 1 && lane.produces()) return;
  state.finish();
#if SPLITS_KEYS
  if (!key_splits::join(o, state, scratch, slice, factor, lane)) return;
#endif

  // One part: O = O / l;  L = m, log2 l
  tile::RowVector<R> normaliser;
  for (int i = 0; i < R / 8; i++) {
    const int row = first + i * 8 + lane.row;
#if HAS_LENGTHS && HAS_SINKS
    // Behind the entry's end not even the sink is seen.
    if (visibility.query_of(row) >= visibility.queries) state.clear(i, -INFINITY, args.scale, false);
#endif
    normaliser.at[i] = parts > 1 ? 1 : state.l[i] == 0 ? 0 : 1 / state.l[i];
    if (row >= rows || lane.column != 0) continue;
    if (parts > 1) {
      L[row0 + row] = state.m[i];
      L[long(parts) * args.B * args.Hk * rows + row0 + row] = state.l[i];
    } else {
      softmax::store_statistics(L + 2 * (row0 + row), state.m[i], state.l[i]);
    }
  }
  o.store(O + row0 * DV, DV, first, normaliser);
}

}  // namespace flash
