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
static constexpr constant int MAX_REDUCE_SPECIALIZED_DIMS = 4, REDUCE_N_READS = 4, REDUCE_N_WRITES = 4;
static constexpr constant int SOFTMAX_N_READS = 4, RMS_N_READS = 4, RMS_LOOPED_LIMIT = 4096, CROSS_ENTROPY_N_READS = 4;
namespace mlx { using metal::os_log; }

template <typename U> struct WorkPerThread {
  static_assert(sizeof(U) <= 8, "Type too large");
  static constexpr int constant n = 8 / sizeof(U);
};

template <typename U> struct Limits {
  static constexpr constant U finite_max = metal::numeric_limits<U>::max();
  static constexpr constant U finite_min = metal::numeric_limits<U>::lowest();
  static constexpr constant U max = metal::is_floating_point_v<U> ? metal::numeric_limits<U>::infinity() : finite_max;
  static constexpr constant U min = metal::is_floating_point_v<U> ? -metal::numeric_limits<U>::infinity() : finite_min;
};
template <> struct Limits<bool> {
  static constexpr constant bool max = true;
  static constexpr constant bool min = false;
};
template <typename T> struct Limits<complex_t<T>> {
  static constexpr constant complex_t<T> max{Limits<T>::max, Limits<T>::max};
  static constexpr constant complex_t<T> min{Limits<T>::min, Limits<T>::min};
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

template <typename IdxT = int64_t>
MSL_INLINE vec<IdxT, 2> elem_to_loc_2_nd(uint3 elem, constant const int* shape, constant const int64_t* a_strides,
                                         constant const int64_t* b_strides, int ndim) {
  return vec<IdxT, 2>(elem_to_loc<IdxT>(elem, shape, a_strides, ndim), elem_to_loc<IdxT>(elem, shape, b_strides, ndim));
}
template <typename IdxT = int64_t>
MSL_INLINE vec<IdxT, 3> elem_to_loc_3_nd(uint3 elem, constant const int* shape, constant const int64_t* a_strides,
                                         constant const int64_t* b_strides, constant const int64_t* c_strides, int ndim) {
  return vec<IdxT, 3>(elem_to_loc<IdxT>(elem, shape, a_strides, ndim), elem_to_loc<IdxT>(elem, shape, b_strides, ndim),
                      elem_to_loc<IdxT>(elem, shape, c_strides, ndim));
}

// Steps through an array in row-major order. MLX keeps an index for each of DIM axes; what it returns is the same.
template <int DIM, typename OffsetT = size_t, bool General = true> struct LoopedElemToLoc {
  int dim;
  OffsetT offset;
  int64_t index;
  MSL_INLINE LoopedElemToLoc(int axes) : dim(DIM == 1 && !General ? 1 : axes), offset(0), index(0) {}
  MSL_INLINE void next(const constant int* shape, const constant int64_t* strides) { next(1, shape, strides); }
  MSL_INLINE void next(int n, const constant int* shape, const constant int64_t* strides) {
    index += n;
    if (DIM == 1 && !General) offset += n * OffsetT(strides[0]);
    else offset = dim == 1 ? OffsetT(index * strides[0]) : OffsetT(elem_to_loc<int64_t>(index, shape, strides, dim));
  }
  MSL_INLINE OffsetT location() { return offset; }
};

template <typename T, typename U> MSL_INLINE T ceildiv(T n, U m) { return (n + m - 1) / m; }

// Metal shuffles at most 32 bits; MLX adds these.
#define MSL_WIDE_SHUFFLE(NAME)                                                                                     \
  MSL_INLINE uint64_t NAME(uint64_t v, uint16_t n) { return as_type<uint64_t>(metal::NAME(as_type<uint2>(v), n)); } \
  MSL_INLINE int64_t NAME(int64_t v, uint16_t n) { return as_type<int64_t>(metal::NAME(as_type<uint2>(v), n)); }    \
  MSL_INLINE bool NAME(bool v, uint16_t n) { return metal::NAME((uint)v, n) != 0; }                                \
  MSL_INLINE complex64_t NAME(complex64_t v, uint16_t n) { return {metal::NAME(v.real, n), metal::NAME(v.imag, n)}; }
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
MSL_INLINE complex64_t simd_shuffle_and_fill_up(complex64_t v, complex64_t fill, uint16_t n) {
  return {metal::simd_shuffle_and_fill_up(v.real, fill.real, n), metal::simd_shuffle_and_fill_up(v.imag, fill.imag, n)};
}

template <bool C, typename T, typename U> struct ConditionalType { using type = U; };
template <typename T, typename U> struct ConditionalType<true, T, U> { using type = T; };
template <typename U, typename T> MSL_INLINE U cast_to(T value) { return msl_static_cast<U>(value); }

MSL_INLINE float log1p(float x) { return MSL_C(log1pf)(x); }
MSL_INLINE bfloat16_t log1p(bfloat16_t x) { return (bfloat16_t)MSL_C(log1pf)((float)x); }
MSL_INLINE float hypot(float x, float y) {
  float a = metal::fmax(metal::fabs(x), metal::fabs(y)), b = metal::fmin(metal::fabs(x), metal::fabs(y));
  return metal::isinf(a) || a == 0 ? a : metal::isnan(x + y) ? NAN : a * metal::sqrt(1 + (b / a) * (b / a));
}
// log of the absolute value of 1 + z; near zero, log(hypot(1 + x, y)) loses what x^2 + 2x + y^2 keeps.
MSL_INLINE complex64_t log1p(complex64_t z) {
  float x = z.real, y = z.imag;
  return {hypot(x, y) < 0.5f ? 0.5f * log1p(x * (2 + x) + y * y) : metal::log(hypot(1 + x, y)), metal::atan2(y, x + 1)};
}
