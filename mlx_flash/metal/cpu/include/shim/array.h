// metal_array: a fixed number of elements with value semantics, in every address space.
#pragma once
#include "types.h"

namespace metal {

template <typename T, size_t N> struct array {
  T msl_elements[N];
  array() = default;
  array(const array&) = default;
  array(const __constant array&) = default;
  array& operator=(const array&) = default;
  array& operator=(const __constant array&) = default;
  MSL_INLINE constexpr size_t size() const { return N; }
  MSL_INLINE constexpr bool empty() const { return N == 0; }
  MSL_INLINE constexpr T operator[](size_t i) const __constant { return msl_elements[i]; }
#define MSL_ARRAY(SPACE)                                                                            \
  MSL_INLINE constexpr SPACE T& operator[](size_t i) SPACE { return msl_elements[i]; }              \
  MSL_INLINE constexpr const SPACE T& operator[](size_t i) const SPACE { return msl_elements[i]; }  \
  MSL_INLINE constexpr SPACE T* data() SPACE { return msl_elements; }                               \
  MSL_INLINE constexpr SPACE T* begin() SPACE { return msl_elements; }                              \
  MSL_INLINE constexpr SPACE T* end() SPACE { return msl_elements + N; }                            \
  MSL_INLINE constexpr const SPACE T* begin() const SPACE { return msl_elements; }                  \
  MSL_INLINE constexpr const SPACE T* end() const SPACE { return msl_elements + N; }                \
  MSL_INLINE constexpr void fill(const T& v) SPACE { for (size_t i = 0; i < N; ++i) msl_elements[i] = v; }
  MSL_ARRAY(__private) MSL_ARRAY(__local) MSL_ARRAY(__global)
};
template <typename T, typename... U> array(T, U...) -> array<T, 1 + sizeof...(U)>;

}  // namespace metal
