// Joins the results of simdgroups that own the same rows and traversed different keys (decode.metal).
//
//   m = max of the slices' m
//   l = sum over slices of 2^(m_slice - m) l_slice     differences times factor (exp2.metal)
//   O = sum over slices of 2^(m_slice - m) O_slice     in the order of the slices, MERGED fragments of columns at once
//
// A slice in which a row saw no key has m = -inf, l = 0 and O = 0, and changes no bit of the sums.
// Threadgroup memory: m, then l of [slices, BP], then fragments as lanes hold them, of all slices but the first.
namespace flash {

constant constexpr int SPLITS = $SPLITS;  // simdgroups that own the same rows

namespace key_splits {

constant constexpr int SIMDGROUPS = BP / R, MERGED = $MERGED;

METAL_FUNC float weight_of(float m_slice, float m, float factor) {
  return fast_exp2(softmax::exponent(m_slice, m, factor));
}

// Returns whether this simdgroup belongs to the first slice, whose simdgroups then hold the joined m, l and O. Producer
// warps have nothing to join, but barriers are for all threads.
template <int BH, bool CACHED>
METAL_FUNC bool join(
    thread tile::Accumulator<R, DV, BH, CACHED>& o, thread softmax::State<R>& state, threadgroup Element* scratch,
    int slice, float factor, tile::Lane lane) {
  const bool joins = !lane.produces(), sums = joins && slice == 0, adds = joins && slice > 0;
  threadgroup float* m = (threadgroup float*)scratch;
  threadgroup float* l = m + SPLITS * BP;
  const int row0 = int(lane.simdgroup) * R + lane.row;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the memory held blocks of keys
  for (int i = 0; i < R / 8; i++) {
    if (lane.column != 0 || !joins) continue;
    m[slice * BP + row0 + i * 8] = state.m[i];
    l[slice * BP + row0 + i * 8] = state.l[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  tile::RowVector<R> weight;
  for (int i = 0; i < R / 8 && joins; i++) {
    const int row = row0 + i * 8;
    float largest = -INFINITY, sum = 0;
    for (int n = 0; n < SPLITS; n++) largest = max(largest, m[n * BP + row]);
    const float reference = largest == -INFINITY ? 0 : largest;
    for (int n = 0; n < SPLITS; n++) sum += weight_of(m[n * BP + row], reference, factor) * l[n * BP + row];
    weight.at[i] = weight_of(state.m[i], reference, factor);
    state.m[i] = largest;
    state.l[i] = sum;
  }

  // 32 lanes hold 64 numbers of a fragment, as pairs.
  constexpr int GROUPS = R / 8, FRAGMENTS = GROUPS * MERGED;
  threadgroup tile::Pair<float>* pairs = (threadgroup tile::Pair<float>*)(l + SPLITS * BP) + lane.thread_index % 32;
#pragma clang loop unroll(full)
  for (int d0 = 0; d0 < DV / 8; d0 += MERGED) {
    if (adds) {
      const int place = ((slice - 1) * SIMDGROUPS + lane.simdgroup) * FRAGMENTS;
      for (int i = 0; i < GROUPS; i++) {
#pragma clang loop unroll(full)
        for (int d = d0; d < min(d0 + MERGED, DV / 8); d++) {
          pairs[(place + i * MERGED + d - d0) * 32] = o.get(i, d) * weight.at[i];
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sums) {
      for (int i = 0; i < GROUPS; i++) {
#pragma clang loop unroll(full)
        for (int d = d0; d < min(d0 + MERGED, DV / 8); d++) {
          tile::Pair<float> sum = o.get(i, d) * weight.at[i];
          for (int n = 1; n < SPLITS; n++) {
            const int place = ((n - 1) * SIMDGROUPS + lane.simdgroup) * FRAGMENTS;
            sum += pairs[(place + i * MERGED + d - d0) * 32];
          }
          o.set(i, d, sum);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  return sums;
}

}  // namespace key_splits
}  // namespace flash
