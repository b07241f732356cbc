// How the lanes of a simdgroup combine their values on an NVIDIA GPU: as a butterfly, neighbours first. Included by simdgroup.h.
#pragma once

namespace metal {

template <typename Op, int WIDTH, typename T> MSL_INLINE T msl_reduced(T value) {
  MSL_SIMD_TYPE(T);
  const uint lane = msl_lane(), here = msl_lanes_here();
  for (uint step = 1; step < WIDTH; step *= 2) {
    const T other = msl_from_lane(value, lane ^ step);
    if (MSL_THREADS % 32 == 0 || (here >> (lane ^ step) & 1)) value = Op::apply(value, other);
  }
  // Where lanes are missing only the block's first has met them all.
  return MSL_THREADS % 32 == 0 ? value : msl_from_lane(value, lane & ~(WIDTH - 1u));
}

template <typename Op, bool INCLUSIVE, typename T> MSL_INLINE T msl_scanned(T value) {
  MSL_SIMD_TYPE(T);
  const uint lane = msl_lane();
  for (uint step = 1; step < 32; step *= 2) {
    const T before = msl_from_lane(value, lane - step);
    if (lane >= step) value = Op::apply(before, value);
  }
  if (INCLUSIVE) return value;
  const T before = msl_from_lane(value, lane - 1);
  return lane ? before : __is_same(Op, msl_multiply) ? (T)1 : (T)0;
}

MSL_INLINE uint2 msl_votes(bool v) { return uint2(msl_ballot(v), msl_lanes_here()); }
MSL_INLINE uint msl_active_lanes() { return msl_active_mask(); }

}  // namespace metal
