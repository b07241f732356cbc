// The map of an array mask: the blocks of pairs that it hides or shows as a whole. Kernels with producer warps read it,
// because these must agree with the consumer warps on the blocks to visit (mask_look.metal).
//
//   for each block of MAP_BLOCK queries and MAP_BLOCK keys (STRIP adjacent ones a simdgroup), in parallel:
//     map = EMPTY if no pair is shown, FULL if every pair is, else PARTIAL
//
// The mask has its own shape here, [1 or B, 1 or Hq, 1 or Lq, 1 or Lk], and so has the map.
// Glossary in forward.metal. Written by: mask_map, each element by one lane.
namespace flash {

constant constexpr int SIMDGROUPS = $BLOCK_PARALLEL, STRIP = $STRIP;
constant constexpr bool ADDITIVE = $ADDITIVE;

METAL_FUNC void mask_map(thread const Arguments& args, device uint8_t* mask_map, uint3 position, uint thread_index) {
  static_assert(MAP_BLOCK == 32, "a lane looks at one column of a block");
  const constant int64_t* strides = args.attention_mask.strides;
  const int lane = thread_index % 32, h = position.y, b = position.z;
  const int rows = (args.Lq + MAP_BLOCK - 1) / MAP_BLOCK, columns = (args.Lk + MAP_BLOCK - 1) / MAP_BLOCK;
  const int strips = (columns + STRIP - 1) / STRIP, strip = int(position.x) * SIMDGROUPS + int(thread_index / 32);
  const int row = strip / strips, column = strip % strips * STRIP;
  if (row >= rows) return;

  const device MaskElement* mask = args.attention_mask.at + b * strides[0] + h * strides[1];
  bool shows[STRIP] = {}, hides[STRIP] = {};
  const int end = min(args.Lq, (row + 1) * MAP_BLOCK);
#pragma clang loop unroll_count(8)
  for (int i = row * MAP_BLOCK; i < end; i++) {
#pragma clang loop unroll(full)
    for (int n = 0; n < STRIP; n++) {
      const int j = min((column + n) * MAP_BLOCK + lane, args.Lk - 1);  // past the end the last key repeats
      const MaskElement value = mask[i * strides[2] + j * strides[3]];
      const bool shown = ADDITIVE ? !(float(value) == -INFINITY) : value != MaskElement(0);
      shows[n] = shows[n] || shown;
      hides[n] = hides[n] || !shown;
    }
  }
#pragma clang loop unroll(full)
  for (int n = 0; n < STRIP; n++) {
    const bool some = simd_any(shows[n]), whole = !simd_any(hides[n]);
    const long place = ((long(b) * args.Hq + h) * rows + row) * columns + column + n;
    if (lane == 0 && column + n < columns) mask_map[place] = some ? (whole ? FULL : PARTIAL) : EMPTY;
  }
}

}  // namespace flash
