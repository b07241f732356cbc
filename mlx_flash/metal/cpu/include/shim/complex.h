// complex64_t, as MLX defines it for custom kernels: two floats with arithmetic, in every address space.
#pragma once
#include "math.h"

struct complex64_t {
  float real, imag;
  complex64_t() = default;
  MSL_INLINE constexpr complex64_t(float r, float i) : real(r), imag(i) {}
  template <typename T, typename = metal::msl_scalar_only<T>> MSL_INLINE constexpr complex64_t(T r) : real((float)r), imag(0) {}
  MSL_INLINE constexpr complex64_t(const __constant complex64_t& other) : real(other.real), imag(other.imag) {}
  complex64_t(const complex64_t&) = default;
  complex64_t& operator=(const complex64_t&) = default;
  MSL_INLINE explicit operator float() const { return real; }
  MSL_INLINE complex64_t& operator+=(complex64_t b) { real += b.real; imag += b.imag; return *this; }
  MSL_INLINE complex64_t& operator-=(complex64_t b) { real -= b.real; imag -= b.imag; return *this; }
};

MSL_INLINE constexpr complex64_t operator+(complex64_t a, complex64_t b) { return {a.real + b.real, a.imag + b.imag}; }
MSL_INLINE constexpr complex64_t operator-(complex64_t a, complex64_t b) { return {a.real - b.real, a.imag - b.imag}; }
MSL_INLINE constexpr complex64_t operator-(complex64_t a) { return {-a.real, -a.imag}; }
MSL_INLINE constexpr complex64_t operator*(complex64_t a, complex64_t b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
MSL_INLINE constexpr complex64_t operator/(complex64_t a, complex64_t b) {
  float scale = b.real * b.real + b.imag * b.imag;
  return {(a.real * b.real + a.imag * b.imag) / scale, (a.imag * b.real - a.real * b.imag) / scale};
}
MSL_INLINE constexpr bool operator==(complex64_t a, complex64_t b) { return a.real == b.real && a.imag == b.imag; }
MSL_INLINE constexpr bool operator!=(complex64_t a, complex64_t b) { return !(a == b); }
// MLX orders them by their real parts first.
MSL_INLINE constexpr bool operator<(complex64_t a, complex64_t b) { return a.real != b.real ? a.real < b.real : a.imag < b.imag; }
MSL_INLINE constexpr bool operator>(complex64_t a, complex64_t b) { return b < a; }
MSL_INLINE constexpr bool operator<=(complex64_t a, complex64_t b) { return !(b < a); }
MSL_INLINE constexpr bool operator>=(complex64_t a, complex64_t b) { return !(a < b); }
