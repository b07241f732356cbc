// delta = rowsum(dO * O), the term that both backward kernels subtract from dP. It has a kernel of its own, so that
// neither of them waits for the other.
//
//   for each row (one simdgroup), in parallel:
//     delta = sum over columns of dO * O   in float32
//
// Glossary in forward.metal. Written by: delta, each element by one lane.
namespace flash {

using Element = $ELEMENT;
using Four = vec<Element, 4>;
constant constexpr int DV = $VALUE_DIM, ROWS = $BLOCK_PARALLEL;

// Four elements, read at once where the views allow it
METAL_FUNC float4 four(const device Element* from, bool aligned) {
  if (aligned) return float4(*(const device Four*)from);
  const Run<Element, 4> run = *(const device Run<Element, 4>*)from;
  return float4(run.at[0], run.at[1], run.at[2], run.at[3]);
}

METAL_FUNC void delta(thread const Arguments& args, device float* delta, uint3 position, uint thread_index) {
  const int lane = thread_index % 32, simdgroup = thread_index / 32, h = position.y, b = position.z;
  const int row = int(position.x) * ROWS + simdgroup;
  if (row >= args.Lq) return;
  const device Element* d_o = args.dO.head<Element>(b, h) + row * args.dO.row_stride<Element>();
  const device Element* o = args.O.head<Element>(b, h) + row * args.O.row_stride<Element>();
  float sum = 0;
  const bool aligned = ((ulong)d_o | (ulong)o) % sizeof(Four) == 0;
  for (int d = lane * 4; d < DV; d += 128) sum += dot(four(d_o + d, aligned), four(o + d, aligned));
  sum = simd_sum(sum);
  if (lane == 0) delta[(long(b) * args.Hq + h) * args.Lq + row] = sum;
}

}  // namespace flash
