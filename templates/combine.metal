// The last step of decoding: O and L over all keys, from those over each part of them.
//
//   for each row (one simdgroup), in parallel:
//     m = max of the parts' m
//     l = sum over parts of 2^(m_part - m) l_part
//     O = sum over parts of 2^(m_part - m) O_part / l
//     L = m + log2(l)                                  a row that sees no key of any part: O = 0, L = -inf
//
// O_parts [parts, B, Hq, Lq, DV] and L_parts [2, parts, B, Hq, Lq], m and l, are what decode.metal wrote.
// Written by: O and L, each element by one lane.
using Element = $ELEMENT;            // of O
constant constexpr int DV = $VALUE_DIM, ROWS = $BLOCK_PARALLEL;
$ATTRIBUTES
// ---- body
const int lane = thread_index_in_threadgroup % 32, simdgroup = thread_index_in_threadgroup / 32;
const int parts = O_parts_shape[0], rows = O_parts_shape[1] * O_parts_shape[2] * O_parts_shape[3];
const int row = int(threadgroup_position_in_grid.x) * ROWS + simdgroup;
if (row < rows) {
  float m = -INFINITY, l = 0;
  for (int part = 0; part < parts; part++) m = max(m, L_parts[long(part) * rows + row]);
  const float reference = m == -INFINITY ? 0 : m;
  for (int part = 0; part < parts; part++) {
    l += exp2(L_parts[long(part) * rows + row] - reference) * L_parts[long(parts + part) * rows + row];
  }
  const float normaliser = l == 0 ? 0 : 1 / l;
  for (int d = lane; d < DV; d += 32) {
    float sum = 0;
    for (int part = 0; part < parts; part++) {
      const long place = long(part) * rows + row;
      sum += exp2(L_parts[place] - reference) * O_parts[place * DV + d];
    }
    O[long(row) * DV + d] = Element(sum * normaliser);
  }
  if (lane == 0) L[row] = l == 0 ? -INFINITY : m + log2(l);
}
