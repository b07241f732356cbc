// How the lanes of a simdgroup combine their values on an NVIDIA GPU: neighbours first where all are there.
#pragma once

namespace metal {

template <typename Op, int WIDTH, typename T> MSL_INLINE T msl_reduced(T value) {
  MSL_SIMD_TYPE(T);
  const uint lane = msl_lane(), here = msl_lanes_here();
  if (here == ~0u) {
    // One instruction, whose result the assembler knows to be the same in all lanes
    if constexpr (WIDTH == 32 && __is_same(T, int) && __is_same(Op, msl_minimum)) return __nvvm_redux_sync_min(value, here);
    if constexpr (WIDTH == 32 && __is_same(T, int) && __is_same(Op, msl_maximum)) return __nvvm_redux_sync_max(value, here);
    for (uint step = 1; step < WIDTH; step *= 2) value = Op::apply(value, msl_from_lane(value, lane ^ step));
    return value;
  }
  bool any = false;
  T result = value;
  for (uint source = lane & ~(WIDTH - 1u), end = source + WIDTH; source < end; ++source) {
    const T part = msl_from_lane(value, source);
    if (!(here >> source & 1)) continue;
    if (any) result = Op::apply(result, part);
    else result = part;
    any = true;
  }
  return result;
}

template <typename Op, bool INCLUSIVE, int WIDTH = 32, typename T> MSL_INLINE T msl_scanned(T value) {
  MSL_SIMD_TYPE(T);
  const uint lane = msl_lane(), here = msl_lanes_here();
  T sum = __is_same(Op, msl_multiply) ? (T)1 : (T)0;
  for (uint source = lane & ~(WIDTH - 1u), end = source + WIDTH; source < end; ++source) {
    const T part = msl_from_lane(value, source);
    if ((here >> source & 1) && (source < lane || (INCLUSIVE && source == lane))) sum = Op::apply(sum, part);
  }
  return sum;
}

MSL_INLINE uint2 msl_votes(bool v) { return uint2(msl_ballot(v), msl_lanes_here()); }
MSL_INLINE uint msl_active_lanes() { return msl_active_mask(); }

}  // namespace metal
