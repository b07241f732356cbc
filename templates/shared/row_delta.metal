// One row of delta = rowsum(dO * O) in float32, summed in the same order by every kernel that computes it.
namespace flash {

constant constexpr int COLUMNS = $VALUE_DIM;

// Four elements, read at once where the views allow it
template <typename T> METAL_FUNC float4 four(const device T* from, bool aligned) {
  if (aligned) return float4(*(const device vec<T, 4>*)from);
  const Run<T, 4> run = *(const device Run<T, 4>*)from;
  return float4(run.at[0], run.at[1], run.at[2], run.at[3]);
}

// By all lanes of a simdgroup; every one gets the sum.
template <typename T>
METAL_FUNC float delta_of(thread const Arguments& args, int b, int h, int row, int lane) {
  const device T* d_o = args.dO.head<T>(b, h) + row * args.dO.row_stride<T>();
  const device T* o = args.O.head<T>(b, h) + row * args.O.row_stride<T>();
  const bool aligned = ((ulong)d_o | (ulong)o) % sizeof(vec<T, 4>) == 0;
  float sum = 0;
  for (int d = lane * 4; d < COLUMNS; d += 128) sum += dot(four(d_o + d, aligned), four(o + d, aligned));
  return simd_sum(sum);
}

}  // namespace flash
