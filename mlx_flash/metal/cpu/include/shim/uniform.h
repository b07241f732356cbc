// metal_uniform: a value that is the same in all threads of a simdgroup. Here it is the value.
#pragma once
#include "math.h"

namespace metal {

template <typename T> struct uniform {
  T msl_value;
  uniform() = default;
  MSL_INLINE constexpr uniform(T v) : msl_value(v) {}
  MSL_INLINE constexpr operator T() const { return msl_value; }
};
template <typename T> MSL_INLINE constexpr uniform<T> make_uniform(T value) { return uniform<T>(value); }
#define MSL_UNIFORM(OP)                                                                                                  \
  template <typename T> MSL_INLINE constexpr uniform<T> operator OP(uniform<T> a, uniform<T> b) { return T(a.msl_value OP b.msl_value); } \
  template <typename T> MSL_INLINE constexpr uniform<T> operator OP(uniform<T> a, msl_same_t<T> b) { return T(a.msl_value OP b); }           \
  template <typename T> MSL_INLINE constexpr uniform<T> operator OP(msl_same_t<T> a, uniform<T> b) { return T(a OP b.msl_value); }
MSL_UNIFORM(+) MSL_UNIFORM(-) MSL_UNIFORM(*) MSL_UNIFORM(/)

}  // namespace metal
