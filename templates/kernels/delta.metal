// delta = rowsum(dO * O), the term that both backward kernels subtract from dP. It has a kernel of its own, so that
// neither of them waits for the other.
//
//   for each row (one simdgroup), in parallel:
//     delta = sum over columns of dO * O   in float32
//
// Glossary in forward.metal. Written by: delta, each element by one lane.
using Element = $ELEMENT;
using Four = vec<Element, 4>;
constant constexpr int DV = $VALUE_DIM, ROWS = $BLOCK_PARALLEL;

// Four elements, read at once where the views allow it
METAL_FUNC float4 four(const device Element* from, bool aligned) {
  if (aligned) return float4(*(const device Four*)from);
  const tile::Run<Element, 4> run = *(const device tile::Run<Element, 4>*)from;
  return float4(run.at[0], run.at[1], run.at[2], run.at[3]);
}
$ATTRIBUTES
// ---- body
const int lane = thread_index_in_threadgroup % 32, simdgroup = thread_index_in_threadgroup / 32;
const int h = threadgroup_position_in_grid.y, b = threadgroup_position_in_grid.z;
const int Lq = dO_shape[2], row = int(threadgroup_position_in_grid.x) * ROWS + simdgroup;
if (row < Lq) {
  const device Element* d_o = tile::head<Element>(dO, dO_strides, b, h) + row * tile::row_stride<Element>(dO_strides);
  const device Element* o = tile::head<Element>(O, O_strides, b, h) + row * tile::row_stride<Element>(O_strides);
  float sum = 0;
  const bool aligned = (reinterpret_cast<ulong>(d_o) | reinterpret_cast<ulong>(o)) % sizeof(Four) == 0;
  for (int d = lane * 4; d < DV; d += 128) sum += dot(four(d_o + d, aligned), four(o + d, aligned));
  sum = simd_sum(sum);
  if (lane == 0) delta[(long(b) * dO_shape[1] + h) * Lq + row] = sum;
}
