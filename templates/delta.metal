// delta = rowsum(dO * O), the term both backward kernels subtract from dP. A step of its own, so that neither of them
// waits for the other.
//
//   for each row (one simdgroup), in parallel:
//     delta = sum over columns of dO * O   in float32
//
// Glossary in forward.metal. Written by: delta, each element by one lane.
using Element = $ELEMENT;
constant constexpr int DV = $VALUE_DIM, ROWS = $BLOCK_PARALLEL;
$ATTRIBUTES
// ---- body
const int lane = thread_index_in_threadgroup % 32, simdgroup = thread_index_in_threadgroup / 32;
const int h = threadgroup_position_in_grid.y, b = threadgroup_position_in_grid.z;
const int Lq = dO_shape[2], row = int(threadgroup_position_in_grid.x) * ROWS + simdgroup;
if (row < Lq) {
  const device Element* d_o = tile::head<Element>(dO, dO_strides, b, h) + row * tile::row_stride<Element>(dO_strides);
  const device Element* o = tile::head<Element>(O, O_strides, b, h) + row * tile::row_stride<Element>(O_strides);
  float sum = 0;
  for (int d = lane; d < DV; d += 32) sum += float(d_o[d]) * float(o[d]);
  sum = simd_sum(sum);
  if (lane == 0) delta[(long(b) * dO_shape[1] + h) * Lq + row] = sum;
}
