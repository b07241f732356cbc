// What MLX puts before every custom kernel, as far as compute kernels use it: names, limits and index arithmetic.
#pragma once
#include "all.h"
#include "complex.h"

using namespace metal;

typedef bfloat bfloat16_t;
typedef half float16_t;
MSL_INLINE uint16_t bfloat16_to_uint16(const bfloat16_t x) { return as_type<uint16_t>(x); }
MSL_INLINE bfloat16_t uint16_to_bfloat16(const uint16_t x) { return as_type<bfloat16_t>(x); }

#define MLX_MTL_PRAGMA_UNROLL
#define MTL_CONST constant

template <typename U> struct WorkPerThread {
  static_assert(sizeof(U) <= 8, "Type too large");
  static constexpr int constant n = 8 / sizeof(U);
};

template <typename U> struct Limits {
  static const constant U max = metal::is_floating_point_v<U> ? metal::numeric_limits<U>::infinity() : metal::numeric_limits<U>::max();
  static const constant U min = metal::is_floating_point_v<U> ? -metal::numeric_limits<U>::infinity() : metal::numeric_limits<U>::min();
  static const constant U finite_max = metal::numeric_limits<U>::max();
  static const constant U finite_min = metal::is_floating_point_v<U> ? -metal::numeric_limits<U>::max() : metal::numeric_limits<U>::min();
};
template <> struct Limits<bool> {
  static constexpr constant bool max = true;
  static constexpr constant bool min = false;
};

template <typename IdxT = int64_t>
MSL_INLINE IdxT elem_to_loc(IdxT elem, constant const int* shape, constant const int64_t* strides, int ndim) {
  IdxT location = 0;
  for (int axis = ndim - 1; axis >= 0 && elem > 0; --axis) {
    location += (elem % shape[axis]) * IdxT(strides[axis]);
    elem /= shape[axis];
  }
  return location;
}
template <typename IdxT = int64_t>
MSL_INLINE IdxT elem_to_loc(uint3 elem, constant const int* shape, constant const int64_t* strides, int ndim) {
  IdxT location = elem.x * IdxT(strides[ndim - 1]) + elem.y * IdxT(strides[ndim - 2]);
  for (int axis = ndim - 3; axis >= 0; --axis) {
    location += (elem.z % shape[axis]) * IdxT(strides[axis]);
    elem.z /= shape[axis];
  }
  return location;
}
template <typename IdxT = int64_t> MSL_INLINE IdxT elem_to_loc_1(uint elem, constant const int64_t& stride) { return elem * IdxT(stride); }
template <typename IdxT = int64_t> MSL_INLINE IdxT elem_to_loc_2(uint2 elem, constant const int64_t* strides) {
  return elem.x * IdxT(strides[1]) + elem.y * IdxT(strides[0]);
}
template <typename IdxT = int64_t> MSL_INLINE IdxT elem_to_loc_3(uint3 elem, constant const int64_t* strides) {
  return elem.x * IdxT(strides[2]) + elem.y * IdxT(strides[1]) + elem.z * IdxT(strides[0]);
}

template <typename T, typename U> MSL_INLINE T ceildiv(T n, U m) { return (n + m - 1) / m; }

// Metal shuffles at most 32 bits; MLX adds these.
#define MSL_WIDE_SHUFFLE(NAME)                                                                                     \
  MSL_INLINE uint64_t NAME(uint64_t v, uint16_t n) { return as_type<uint64_t>(metal::NAME(as_type<uint2>(v), n)); } \
  MSL_INLINE int64_t NAME(int64_t v, uint16_t n) { return as_type<int64_t>(metal::NAME(as_type<uint2>(v), n)); }    \
  MSL_INLINE bool NAME(bool v, uint16_t n) { return metal::NAME((uint)v, n) != 0; }
MSL_WIDE_SHUFFLE(simd_shuffle) MSL_WIDE_SHUFFLE(simd_shuffle_up) MSL_WIDE_SHUFFLE(simd_shuffle_down)
MSL_INLINE uint64_t simd_shuffle_and_fill_up(uint64_t v, uint64_t fill, uint16_t n) {
  return as_type<uint64_t>(metal::simd_shuffle_and_fill_up(as_type<uint2>(v), as_type<uint2>(fill), n));
}
MSL_INLINE int64_t simd_shuffle_and_fill_up(int64_t v, int64_t fill, uint16_t n) {
  return as_type<int64_t>(metal::simd_shuffle_and_fill_up(as_type<uint2>(v), as_type<uint2>(fill), n));
}
MSL_INLINE bool simd_shuffle_and_fill_up(bool v, bool fill, uint16_t n) {
  return metal::simd_shuffle_and_fill_up((uint)v, (uint)fill, n) != 0;
}

template <bool C, typename T, typename U> struct ConditionalType { using type = U; };
template <typename T, typename U> struct ConditionalType<true, T, U> { using type = T; };
template <typename U, typename T> MSL_INLINE U cast_to(T value) { return msl_static_cast<U>(value); }

MSL_INLINE float log1p(float x) { return MSL_C(log1pf)(x); }
MSL_INLINE bfloat16_t log1p(bfloat16_t x) { return (bfloat16_t)MSL_C(log1pf)((float)x); }
