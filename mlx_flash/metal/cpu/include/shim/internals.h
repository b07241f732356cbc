// The builtins below Apple's own headers that sources in the wild call by name: the float functions with their fast-math flag, the
// simdgroup functions, and a few traits.
#pragma once
#include "simdgroup.h"

#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 1
#define __METAL_PRECISE_MATH__ 2

#define MSL_BUILTIN1(NAME) MSL_INLINE float __metal_##NAME(float x, int) { return metal::NAME(x); }
#define MSL_BUILTIN2(NAME) MSL_INLINE float __metal_##NAME(float x, float y, int) { return metal::NAME(x, y); }
#define MSL_BUILTIN3(NAME) MSL_INLINE float __metal_##NAME(float x, float y, float z, int) { return metal::NAME(x, y, z); }
MSL_BUILTIN1(fabs) MSL_BUILTIN1(acos) MSL_BUILTIN1(acosh) MSL_BUILTIN1(asin) MSL_BUILTIN1(asinh) MSL_BUILTIN1(atan) MSL_BUILTIN1(atanh)
MSL_BUILTIN1(ceil) MSL_BUILTIN1(cos) MSL_BUILTIN1(cosh) MSL_BUILTIN1(cospi) MSL_BUILTIN1(exp) MSL_BUILTIN1(exp10) MSL_BUILTIN1(exp2)
MSL_BUILTIN1(floor) MSL_BUILTIN1(fract) MSL_BUILTIN1(log) MSL_BUILTIN1(log10) MSL_BUILTIN1(log2) MSL_BUILTIN1(rint) MSL_BUILTIN1(round)
MSL_BUILTIN1(rsqrt) MSL_BUILTIN1(sin) MSL_BUILTIN1(sinh) MSL_BUILTIN1(sinpi) MSL_BUILTIN1(sqrt) MSL_BUILTIN1(tan) MSL_BUILTIN1(tanh)
MSL_BUILTIN1(tanpi) MSL_BUILTIN1(trunc)
MSL_BUILTIN2(atan2) MSL_BUILTIN2(divide) MSL_BUILTIN2(fmax) MSL_BUILTIN2(fmin) MSL_BUILTIN2(fmod) MSL_BUILTIN2(pow) MSL_BUILTIN2(powr)
MSL_BUILTIN3(fmax3) MSL_BUILTIN3(fmin3) MSL_BUILTIN3(fmedian3)
MSL_INLINE float __metal_fma(float x, float y, float z) { return metal::fma(x, y, z); }
MSL_INLINE float __metal_nextafter(float x, float y) { return metal::nextafter(x, y); }
MSL_INLINE float __metal_ldexp(float x, int k, int) { return metal::ldexp(x, k); }
MSL_INLINE float __metal_frexp(float x, thread int* e) { return metal::frexp(x, *e); }

#define MSL_BUILTIN_SIMD(NAME) template <typename T> MSL_INLINE T __metal_simd_##NAME(T v) { return metal::simd_##NAME<T>(v); }
#define MSL_BUILTIN_LANE(NAME) template <typename T> MSL_INLINE T __metal_simd_##NAME(T v, ushort lane) { return metal::simd_##NAME<T>(v, lane); }
#define MSL_BUILTIN_FILL(NAME)                                                                     \
  template <typename T> MSL_INLINE T __metal_simd_##NAME(T v, T fill, ushort delta, ushort width) { \
    return metal::simd_##NAME<T>(v, fill, delta, width);                                           \
  }
MSL_BUILTIN_SIMD(sum) MSL_BUILTIN_SIMD(product) MSL_BUILTIN_SIMD(min) MSL_BUILTIN_SIMD(max) MSL_BUILTIN_SIMD(and) MSL_BUILTIN_SIMD(or)
MSL_BUILTIN_SIMD(prefix_inclusive_sum) MSL_BUILTIN_SIMD(prefix_exclusive_sum) MSL_BUILTIN_SIMD(prefix_inclusive_product)
MSL_BUILTIN_SIMD(prefix_exclusive_product)
// Named by a header that never calls it for a float, where there is none.
template <typename T> MSL_INLINE T __metal_simd_xor(T v) {
  if constexpr (metal::is_floating_point_v<T>) return T(0);
  else return metal::simd_xor<T>(v);
}
MSL_BUILTIN_LANE(broadcast) MSL_BUILTIN_LANE(shuffle) MSL_BUILTIN_LANE(shuffle_xor) MSL_BUILTIN_LANE(shuffle_up)
MSL_BUILTIN_LANE(shuffle_down) MSL_BUILTIN_LANE(shuffle_rotate_up) MSL_BUILTIN_LANE(shuffle_rotate_down)
MSL_BUILTIN_FILL(shuffle_and_fill_up) MSL_BUILTIN_FILL(shuffle_and_fill_down)
template <typename T> MSL_INLINE T __metal_get_simdgroup_size(T) { return 32; }
template <typename T> MSL_INLINE T __metal_get_thread_index_in_simdgroup(T) { return (T)msl_lane(); }

template <typename T> struct __is_valid_simdgroup_type : metal::bool_constant<metal::msl_simd_v<T>> {};
template <typename... Ts> struct _disjunction : metal::bool_constant<(Ts::value || ...)> {};
template <typename... Ts> struct _conjunction : metal::bool_constant<(Ts::value && ...)> {};
template <typename T> struct _negation : metal::bool_constant<!T::value> {};
