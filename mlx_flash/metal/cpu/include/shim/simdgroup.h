// metal_simdgroup, metal_compute: barriers, shuffles, reductions, scans and votes.
#pragma once
#include "math.h"

#include <target/lanes.h>

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_device_and_threadgroup = 3, mem_texture = 4, mem_threadgroup_imageblock = 8, mem_object_data = 16 };
MSL_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

MSL_INLINE void threadgroup_barrier(mem_flags flags) { msl_threadgroup_barrier((uint)flags); }
MSL_INLINE void simdgroup_barrier(mem_flags flags) { msl_simdgroup_barrier((uint)flags); }

// Types that simd functions take: numbers of at most 32 bits and their vectors.
template <typename T> constant constexpr bool msl_simd_v =
    msl_arithmetic_v<msl_element_t<msl_plain_t<T>>> && !__is_same(msl_element_t<msl_plain_t<T>>, bool) && sizeof(msl_element_t<msl_plain_t<T>>) <= 4;
#define MSL_SIMD_TYPE(T) static_assert(msl_simd_v<T>, "simd functions take numbers of at most 32 bits: scalars and vectors, not structures")

template <typename T> MSL_INLINE T msl_from_lane(T value, uint source) {
  MSL_SIMD_TYPE(T);
  struct alignas(alignof(T) > 4 ? alignof(T) : 4) { T value; } box{value};
  msl_shuffle(&box, sizeof(box), source);
  return box.value;
}
template <typename T> MSL_INLINE T simd_shuffle(T v, ushort lane) { return msl_from_lane(v, lane); }
template <typename T> MSL_INLINE T simd_broadcast(T v, ushort lane) { return msl_from_lane(v, lane); }
template <typename T> MSL_INLINE T simd_shuffle_xor(T v, ushort mask) { return msl_from_lane(v, msl_lane() ^ mask); }
template <typename T> MSL_INLINE T simd_shuffle_up(T v, ushort delta) {
  uint lane = msl_lane();
  return msl_from_lane(v, lane >= delta ? lane - delta : lane);
}
template <typename T> MSL_INLINE T simd_shuffle_down(T v, ushort delta) {
  uint lane = msl_lane();
  return msl_from_lane(v, lane + delta < 32 ? lane + delta : lane);
}
template <typename T> MSL_INLINE T simd_shuffle_rotate_up(T v, ushort delta) { return msl_from_lane(v, (msl_lane() - delta) & 31); }
template <typename T> MSL_INLINE T simd_shuffle_rotate_down(T v, ushort delta) { return msl_from_lane(v, (msl_lane() + delta) & 31); }
template <typename T> MSL_INLINE T simd_shuffle_and_fill_up(T v, T fill, ushort delta, ushort width = 32) {
  uint lane = msl_lane(), in = lane & (width - 1);
  T moved = msl_from_lane(v, lane - delta), filled = msl_from_lane(fill, lane - delta + width);
  return in >= delta ? moved : filled;
}
template <typename T> MSL_INLINE T simd_shuffle_and_fill_down(T v, T fill, ushort delta, ushort width = 32) {
  uint lane = msl_lane(), in = lane & (width - 1);
  T moved = msl_from_lane(v, lane + delta), filled = msl_from_lane(fill, lane + delta - width);
  return in + delta < width ? moved : filled;
}
template <typename T> MSL_INLINE T quad_shuffle(T v, ushort lane) { return msl_from_lane(v, (msl_lane() & ~3u) | (lane & 3)); }
template <typename T> MSL_INLINE T quad_broadcast(T v, ushort lane) { return quad_shuffle(v, lane); }
template <typename T> MSL_INLINE T quad_shuffle_xor(T v, ushort mask) { return msl_from_lane(v, msl_lane() ^ (mask & 3)); }
template <typename T> MSL_INLINE T quad_shuffle_up(T v, ushort delta) {
  uint lane = msl_lane();
  return msl_from_lane(v, (lane & 3) >= delta ? lane - delta : lane);
}
template <typename T> MSL_INLINE T quad_shuffle_down(T v, ushort delta) {
  uint lane = msl_lane();
  return msl_from_lane(v, (lane & 3) + delta < 4 ? lane + delta : lane);
}
template <typename T> MSL_INLINE T quad_shuffle_and_fill_up(T v, T fill, ushort delta, ushort width = 4) {
  return simd_shuffle_and_fill_up(v, fill, delta, width);
}
template <typename T> MSL_INLINE T quad_shuffle_and_fill_down(T v, T fill, ushort delta, ushort width = 4) {
  return simd_shuffle_and_fill_down(v, fill, delta, width);
}
template <typename T> MSL_INLINE T quad_shuffle_rotate_up(T v, ushort d) { uint l = msl_lane(); return msl_from_lane(v, (l & ~3u) | ((l - d) & 3)); }
template <typename T> MSL_INLINE T quad_shuffle_rotate_down(T v, ushort d) { uint l = msl_lane(); return msl_from_lane(v, (l & ~3u) | ((l + d) & 3)); }

struct msl_add { template <typename T> MSL_INLINE static T apply(T a, T b) { return a + b; } };
struct msl_multiply { template <typename T> MSL_INLINE static T apply(T a, T b) { return a * b; } };
struct msl_minimum { template <typename T> MSL_INLINE static T apply(T a, T b) { return min(a, b); } };
struct msl_maximum { template <typename T> MSL_INLINE static T apply(T a, T b) { return max(a, b); } };
struct msl_and { template <typename T> MSL_INLINE static T apply(T a, T b) { return a & b; } };
struct msl_or { template <typename T> MSL_INLINE static T apply(T a, T b) { return a | b; } };
struct msl_xor { template <typename T> MSL_INLINE static T apply(T a, T b) { return a ^ b; } };

}  // namespace metal

#include <target/reductions.h>

namespace metal {

#define MSL_REDUCTION(NAME, OP)                                                              \
  template <typename T> MSL_INLINE T simd_##NAME(T v) { return msl_reduced<OP, 32>(v); }     \
  template <typename T> MSL_INLINE T quad_##NAME(T v) { return msl_reduced<OP, 4>(v); }
MSL_REDUCTION(sum, msl_add) MSL_REDUCTION(product, msl_multiply) MSL_REDUCTION(min, msl_minimum) MSL_REDUCTION(max, msl_maximum)
MSL_REDUCTION(and, msl_and) MSL_REDUCTION(or, msl_or) MSL_REDUCTION(xor, msl_xor)
#define MSL_PREFIX(NAME, OP, INCLUSIVE)                                                                     \
  template <typename T> MSL_INLINE T simd_prefix_##NAME(T v) { return msl_scanned<OP, INCLUSIVE>(v); }      \
  template <typename T> MSL_INLINE T quad_prefix_##NAME(T v) { return msl_scanned<OP, INCLUSIVE, 4>(v); }
MSL_PREFIX(inclusive_sum, msl_add, true) MSL_PREFIX(exclusive_sum, msl_add, false)
MSL_PREFIX(inclusive_product, msl_multiply, true) MSL_PREFIX(exclusive_product, msl_multiply, false)

struct simd_vote {
  typedef ulong vote_t;
  vote_t bits;
  MSL_INLINE explicit simd_vote(vote_t v) : bits(v) {}
  MSL_INLINE explicit operator vote_t() const { return bits; }
  MSL_INLINE bool all() const { return bits == msl_active(); }
  MSL_INLINE bool any() const { return bits != 0; }
};
MSL_INLINE simd_vote simd_ballot(bool v) { return simd_vote(msl_votes(v).x); }
MSL_INLINE simd_vote simd_active_threads_mask() { return simd_vote(msl_active_lanes()); }
MSL_INLINE bool simd_any(bool v) { return msl_votes(v).x != 0; }
MSL_INLINE bool simd_all(bool v) { uint2 r = msl_votes(v); return r.x == r.y; }
MSL_INLINE bool simd_is_first() { return __builtin_ctz(msl_active_lanes()) == (int)msl_lane(); }
struct quad_vote {
  typedef uint vote_t;
  vote_t bits;
  MSL_INLINE explicit constexpr quad_vote(vote_t v = 0) : bits(v & 15) {}
  MSL_INLINE explicit constexpr operator vote_t() const { return bits; }
  MSL_INLINE bool all() const { return bits == 15; }
  MSL_INLINE bool any() const { return bits != 0; }
};
MSL_INLINE uint msl_quad(uint votes) { return votes >> (msl_lane() & ~3u) & 15; }
MSL_INLINE quad_vote quad_ballot(bool v) { return quad_vote(msl_quad(msl_votes(v).x)); }
MSL_INLINE quad_vote quad_active_threads_mask() { return quad_vote(msl_quad(msl_active_lanes())); }
MSL_INLINE bool quad_any(bool v) { return quad_ballot(v).any(); }
MSL_INLINE bool quad_all(bool v) { uint2 r = msl_votes(v); return msl_quad(r.x) == msl_quad(r.y); }
MSL_INLINE uint msl_quad_first() { return (msl_lane() & ~3u) + __builtin_ctz(msl_quad(msl_active_lanes())); }
MSL_INLINE bool quad_is_first() { return msl_quad_first() == msl_lane(); }
template <typename T> MSL_INLINE T quad_broadcast_first(T v) { return msl_from_lane(v, msl_quad_first()); }
template <typename T> MSL_INLINE T simd_broadcast_first(T v) { return msl_from_lane(v, __builtin_ctz(msl_active_lanes())); }

}  // namespace metal
