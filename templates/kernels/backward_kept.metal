// FlashAttention backward for keys or values, where the kernel of dQ has kept P and dS: dK or dV by one product.
//
//   for each block of BP keys, in parallel:
//     dK = 0                             or dV
//     for each query head of the group, for each block of BT queries that see any of the keys:
//       dK = dK + dS^T Q                 or dV = dV + P^T dO
//     dK = scale * dK
//
// With the three products of dQ's kernel a backward pass takes five, where recomputing S and dP takes seven. P and dS
// were rounded as products round them. Tiles that no query sees may never have been written: the mask decides, as
// everywhere. Glossary in forward.metal. Written by: dK or dV, each element by one lane.
namespace flash {

#if WANTS_DK
constant constexpr int COLUMNS = D;
#else
constant constexpr int COLUMNS = DV;
#endif

// W with 0 in place of the pairs that are not visible. Returns whether all are.
template <int C>
METAL_FUNC bool hide(
    thread tile::Tile<Element, R, C>& w, thread const mask::Visibility& visibility, thread const mask::Look<R, C>& look,
    int first_query, int first_key, int valid, tile::Lane lane, bool edge) {
  tile::Tile<float, R, C> s;
  tile::clear(s);
  const bool whole = mask::apply(s, visibility, look, first_query, first_key, valid, lane, edge);
  if (whole) return true;
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      w.at[i][c] = select(w.at[i][c], tile::Pair<Element>(Element(0)), s.at[i][c] == -INFINITY);
    }
  }
  return false;
}

template <typename Out>
METAL_FUNC void backward_kept(
    thread const Arguments& args, device Out* sum, threadgroup Element* scratch, uint3 position, uint thread_index) {
  const tile::Lane lane = tile::Lane::of(thread_index);
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
  tile::Kept<Element, BP, BT> kept;
  tile::Traversed<Element, BT, COLUMNS, BH, THREADS> rows;
  tile::Accumulator<R, COLUMNS, BH, true> c;
  rows.open(memory, lane);
  kept.open(memory, lane);
  c.open(sum + row0 * COLUMNS, first, Lk, lane);
  tile::RowVector<R> one, factor;
  for (int i = 0; i < R / 8; i++) {
    one.at[i] = 1;
#if WANTS_DK
    factor.at[i] = args.scale;
#else
    factor.at[i] = 1;
#endif
  }

  mask::Visibility visibility;
  visibility.open(args, b);
  visibility.open_rows(block, min(block + BP, Lk), lane);
  mask::Look<R, BT> look;
  const mask::Range seeing = visibility.queries_of(block, block + BP - 1);
  const int first_head = h_k * group;
#if WANTS_DK
  rows.view(args.Q, b, first_head);
  kept.view(args.dS, long(b) * args.Hq + first_head, Lq, Lk, block);
#else
  rows.view(args.dO, b, first_head);
  kept.view(args.P, long(b) * args.Hq + first_head, Lq, Lk, block);
#endif
  for (int n = 0; n < group; n++) {
    visibility.open_head(args, b, first_head + n, block);
    for (int run = 0; run < visibility.ranges(); run++) {
      mask::Range range = visibility.range(run, seeing);
      range.begin = range.begin / tile::KEPT * tile::KEPT;  // whole tiles
      for (int r = range.begin; r < range.end;) {
        rows.start(r);
#pragma clang loop unroll(full)
        for (int edge = tile::SPLIT ? 0 : 1; edge < 2; edge++) {
          for (; r < range.end; r += BT) {
            const bool at_edge = visibility.edge_of(range, block, block + BP - 1, r, lane) || rows.far();
            if (at_edge != (edge == 1)) break;
#if LOOKS || MAPS || HAS_SEGMENTS
            bool shown = !visibility.skip();
#if LOOKS || MAPS
            shown = shown && look.at(visibility, first, r, range.end, edge == 1, scratch, lane);
#endif
            if (!shown) {
              rows.pass();
              continue;
            }
#endif
            if (tile::produce(kept, rows, r, range.end)) continue;
            kept.acquire(r, edge);
            tile::Tile<Element, R, BT> w;
            kept.read(w);
            kept.release();
            const bool whole = hide(w, visibility, look, r, first, min(BT, range.end - r), lane, edge);
            rows.acquire(r, range.end, edge);
            tile::multiply_ab<Element>(c, one, w, rows, whole);
            rows.release();
          }
        }
      }
    }
    kept.next_head();
#if WANTS_DK
    rows.next_head(args.Q);
#else
    rows.next_head(args.dO);
#endif
  }
  if (lane.produces()) return;
  c.store(sum + row0 * COLUMNS, step * COLUMNS, first, factor);
}

}  // namespace flash
