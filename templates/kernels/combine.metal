// The last step of split-KV decoding: merges the O, m and l of every part of the keys into O and L over all keys.
//
//   for each row (one simdgroup), in parallel:
//     m = max of the parts' m
//     l = sum over parts of 2^(m_part - m) l_part      differences times factor (exp2.metal)
//     O = sum over parts of 2^(m_part - m) O_part / l
//     L = m, log2 l                                    a row that sees no key of any part: O = 0, L = -inf, 0
//
// O_parts [parts, B, Hq, Lq, DV] and L_parts [2, parts, B, Hq, Lq] (m and l) come from decode.metal.
// Written by: O and L, each element by one lane.
namespace flash {

using Element = $ELEMENT;  // of O
constant constexpr int DV = $VALUE_DIM, ROWS = $BLOCK_PARALLEL;
constant constexpr int RUNS = (DV + 31) / 32, TOGETHER = 8;  // runs of 32 columns; parts read at a time

METAL_FUNC void combine(
    thread const Arguments& args, device Element* O, device float* L, uint3 position, uint thread_index) {
  const int lane = thread_index % 32, simdgroup = thread_index / 32, parts = args.parts, rows = args.rows;
  const int row = int(position.x) * ROWS + simdgroup;
  if (row >= rows) return;
  const float factor = softmax::factor_of(args.scale);
  // Lanes share the parts, then the columns; several loads are in flight at a time, to hide their latency.
  float m = -INFINITY, l = 0;
  for (int part = lane; part < parts; part += 32) m = max(m, args.L_parts[long(part) * rows + row]);
  m = simd_max(m);
  const float reference = m == -INFINITY ? 0 : m;
  for (int part = lane; part < parts; part += 32) {
    const float weight = fast_exp2(softmax::exponent(args.L_parts[long(part) * rows + row], reference, factor));
    l += weight * args.L_parts[long(parts + part) * rows + row];
  }
  l = simd_sum(l);
  float sums[RUNS] = {};
  for (int first = 0; first < parts; first += TOGETHER) {
#pragma clang loop unroll(full)
    for (int i = 0; i < TOGETHER; i++) {
      const bool exists = first + i < parts;  // else the last part is read in its place
      const long place = long(exists ? first + i : parts - 1) * rows + row;
      const float weight = fast_exp2(softmax::exponent(args.L_parts[place], reference, factor));
#pragma clang loop unroll(full)
      for (int run = 0; run < RUNS; run++) {
        const int d = min(run * 32 + lane, DV - 1);
        const float term = weight * args.O_parts[place * DV + d];
        sums[run] += exists ? term : 0;
      }
    }
  }
  const float normaliser = l == 0 ? 0 : 1 / l;
#pragma clang loop unroll(full)
  for (int run = 0; run < RUNS; run++) {
    const int d = run * 32 + lane;
    if (d < DV) O[long(row) * DV + d] = Element(sums[run] * normaliser);
  }
  if (lane == 0) {
    L[2 * long(row)] = l == 0 ? -INFINITY : m;
    L[2 * long(row) + 1] = l == 0 ? 0 : log2(l);
  }
}

}  // namespace flash
