// delta = rowsum(dO * O), the term that both backward kernels subtract from dP. A separate kernel computes it, so that
// neither of them waits for the other; in short sequences the kernel of dQ does, which saves a launch.
//
//   for each row (one simdgroup), in parallel:
//     delta = sum over columns of dO * O   in float32
//
// Glossary in forward.metal. Written by: delta, each element by one lane.
namespace flash {

using Element = $ELEMENT;
constant constexpr int ROWS = $BLOCK_PARALLEL;

METAL_FUNC void delta(thread const Arguments& args, device float* delta, uint3 position, uint thread_index) {
  const int lane = thread_index % 32, simdgroup = thread_index / 32, h = position.y, b = position.z;
  const int row = int(position.x) * ROWS + simdgroup;
  if (row >= args.Lq) return;
  const float sum = delta_of<Element>(args, b, h, row, lane);
  if (lane == 0) delta[(long(b) * args.Hq + h) * args.Lq + row] = sum;
}

}  // namespace flash
