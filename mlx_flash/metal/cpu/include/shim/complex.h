// complex64_t and complex32_t, as MLX defines them for custom kernels: what converts in silence and what has an operator
// is what MLX lets through, so that a kernel which compiles here compiles on a Mac.
#pragma once
#include "math.h"

template <typename T> struct complex_t;
typedef complex_t<float> complex64_t;
typedef complex_t<half> complex32_t;

template <typename T> static constexpr constant bool is_complex_v = false;
template <typename T> static constexpr constant bool is_complex_v<complex_t<T>> = true;
template <typename A, typename B> static constexpr constant bool is_lane_convertible_v = metal::is_convertible_v<A, B>;
template <typename A, typename B>
using msl_lane_only = metal::enable_if_t<!is_complex_v<A> && !is_complex_v<B> && is_lane_convertible_v<A, B>>;

template <typename T> struct complex_t {
  typedef T value_type;
  typedef void msl_threadgroup_object;
  T real, imag;
  MSL_INLINE constexpr complex_t() : real(0), imag(0) {}
  complex_t(const complex_t&) = default;
  complex_t& operator=(const complex_t&) = default;
  MSL_INLINE constexpr complex_t(T r, T i) : real(r), imag(i) {}
  MSL_INLINE constexpr complex_t(const __constant complex_t& other) : real(other.real), imag(other.imag) {}
  MSL_INLINE constexpr complex_t(vec<T, 2> v) : real(v.msl_x), imag(v.msl_y) {}
  template <typename U, typename = msl_lane_only<U, T>> MSL_INLINE constexpr complex_t(U r) : real((T)r), imag(0) {}
  template <typename U, typename = metal::enable_if_t<!metal::is_same_v<U, T> && is_lane_convertible_v<U, T>>>
  MSL_INLINE constexpr complex_t(complex_t<U> other) : real((T)other.real), imag((T)other.imag) {}
#define MSL_FROM_COMPLEX(SPACE)                                                                     \
  MSL_INLINE constexpr operator vec<T, 2>() const SPACE { return vec<T, 2>(real, imag); }           \
  template <typename U, typename = msl_lane_only<T, U>> MSL_INLINE constexpr operator U() const SPACE { return (U)real; }
  MSL_FROM_COMPLEX() MSL_FROM_COMPLEX(__constant)
};

#define MSL_COMPLEX template <typename T> MSL_INLINE constexpr
// One operand is a real number; the complex one decides of what type the result is.
#define MSL_COMPLEX_AND_REAL template <typename T, typename U, typename = msl_lane_only<U, T>> MSL_INLINE constexpr

MSL_COMPLEX complex_t<T> operator-(complex_t<T> a) { return {-a.real, -a.imag}; }
MSL_COMPLEX complex_t<T> operator+(complex_t<T> a, complex_t<T> b) { return {a.real + b.real, a.imag + b.imag}; }
MSL_COMPLEX complex_t<T> operator-(complex_t<T> a, complex_t<T> b) { return {a.real - b.real, a.imag - b.imag}; }
MSL_COMPLEX_AND_REAL complex_t<T> operator+(U a, complex_t<T> b) { return {(T)a + b.real, b.imag}; }
MSL_COMPLEX_AND_REAL complex_t<T> operator+(complex_t<T> a, U b) { return {a.real + (T)b, a.imag}; }
MSL_COMPLEX_AND_REAL complex_t<T> operator-(U a, complex_t<T> b) { return {(T)a - b.real, -b.imag}; }
MSL_COMPLEX_AND_REAL complex_t<T> operator-(complex_t<T> a, U b) { return {a.real - (T)b, a.imag}; }
#define MSL_COMPLEX_STEP(SPACE)                                                            \
  MSL_COMPLEX SPACE complex_t<T>& operator+=(SPACE complex_t<T>& a, complex_t<T> b) {      \
    a.real += b.real;                                                                      \
    a.imag += b.imag;                                                                      \
    return a;                                                                              \
  }
MSL_COMPLEX_STEP(__private) MSL_COMPLEX_STEP(__local) MSL_COMPLEX_STEP(__global)
MSL_COMPLEX complex_t<T> operator*(complex_t<T> a, complex_t<T> b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
// Divides by the larger part of b first, so that no square overflows.
MSL_COMPLEX complex_t<T> operator/(complex_t<T> a, complex_t<T> b) {
  float p = b.real, q = b.imag;
  if (metal::abs(p) >= metal::abs(q)) {
    float ratio = q / p, whole = p + q * ratio;
    return {(T)((a.real + a.imag * ratio) / whole), (T)((a.imag - a.real * ratio) / whole)};
  }
  float ratio = p / q, whole = q + p * ratio;
  return {(T)((a.real * ratio + a.imag) / whole), (T)((a.imag * ratio - a.real) / whole)};
}
MSL_COMPLEX_AND_REAL complex_t<T> operator/(U a, complex_t<T> b) { return complex_t<T>(a) / b; }
MSL_COMPLEX T msl_remainder(T a, T b) {
  T rest = a - b * (T)(int64_t)(a / b);
  return rest != 0 && (rest < 0) != (b < 0) ? (T)(rest + b) : rest;
}
MSL_COMPLEX complex_t<T> operator%(complex_t<T> a, complex_t<T> b) {
  return {msl_remainder(a.real, b.real), msl_remainder(a.imag, b.imag)};
}

MSL_COMPLEX bool operator==(complex_t<T> a, complex_t<T> b) { return a.real == b.real && a.imag == b.imag; }
// They are ordered by their real parts first.
MSL_COMPLEX bool operator>(complex_t<T> a, complex_t<T> b) { return a.real > b.real || (a.real == b.real && a.imag > b.imag); }
MSL_COMPLEX bool operator>=(complex_t<T> a, complex_t<T> b) { return a.real > b.real || (a.real == b.real && a.imag >= b.imag); }
MSL_COMPLEX bool operator<(complex_t<T> a, complex_t<T> b) { return b > a; }
MSL_COMPLEX bool operator<=(complex_t<T> a, complex_t<T> b) { return b >= a; }
