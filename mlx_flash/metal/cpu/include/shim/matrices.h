// metal_matrix: floatCxR and halfCxR, C columns of R elements.
#pragma once
#include "math.h"

namespace metal {

template <typename T, int C, int R> struct matrix {
  static_assert(metal::msl_floating_v<T>, "matrices are of float, half or bfloat");
  vec<T, R> columns[C];
  matrix() = default;
  matrix(const matrix&) = default;
  matrix& operator=(const matrix&) = default;
  matrix(const __constant matrix&) = default;
  MSL_INLINE matrix& operator=(const __constant matrix& m) { return *this = matrix(m); }
  MSL_INLINE constexpr explicit matrix(T diagonal) : columns{} {
    for (int c = 0; c < C && c < R; ++c) columns[c].set(c, diagonal);
  }
  // All its numbers, column after column
  template <typename... S, typename = enable_if_t<(sizeof...(S) > 1 && (msl_arithmetic_v<S> && ...))>>
  MSL_INLINE constexpr matrix(S... numbers) : columns{} {
    static_assert(sizeof...(S) == C * R, "a matrix is built from one number, from its columns or from all its numbers");
    const T given[sizeof...(S)] = {msl_static_cast<T>(numbers)...};
    for (int i = 0; i < C * R; ++i) columns[i / R].set(i % R, given[i]);
  }
  // Its columns: no pack of parameters, so that each may be a list in braces
  template <int N = C, typename = enable_if_t<N == 2>>
  MSL_INLINE constexpr matrix(vec<T, R> a, vec<T, R> b) : columns{a, b} {}
  template <int N = C, typename = enable_if_t<N == 3>>
  MSL_INLINE constexpr matrix(vec<T, R> a, vec<T, R> b, vec<T, R> c) : columns{a, b, c} {}
  template <int N = C, typename = enable_if_t<N == 4>>
  MSL_INLINE constexpr matrix(vec<T, R> a, vec<T, R> b, vec<T, R> c, vec<T, R> d) : columns{a, b, c, d} {}
  // A matrix of another element type
  template <typename U, typename = enable_if_t<!is_same_v<U, T>>>
  MSL_INLINE constexpr explicit matrix(const matrix<U, C, R>& m) : columns{} {
    for (int c = 0; c < C; ++c) columns[c] = vec<T, R>(m.columns[c]);
  }
  template <typename U, typename = enable_if_t<!is_same_v<U, T>>>
  MSL_INLINE constexpr explicit matrix(const __constant matrix<U, C, R>& m) : columns{} {
    for (int c = 0; c < C; ++c) columns[c] = vec<T, R>(m.columns[c]);
  }
  // Templates as in vector.h: of a value, as in (a + b)[0], in no space yet.
  MSL_INLINE __private vec<T, R>& operator[](int c) __private { return columns[c]; }
  template <typename = void> MSL_INLINE __local vec<T, R>& operator[](int c) __local { return columns[c]; }
  template <typename = void> MSL_INLINE __global vec<T, R>& operator[](int c) __global { return columns[c]; }
  MSL_INLINE vec<T, R> operator[](int c) const { return columns[c]; }
  template <typename = void> MSL_INLINE vec<T, R> operator[](int c) const __local { return columns[c]; }
  template <typename = void> MSL_INLINE vec<T, R> operator[](int c) const __global { return columns[c]; }
  template <typename = void> MSL_INLINE vec<T, R> operator[](int c) const __constant { return columns[c]; }
  MSL_INLINE matrix& operator+=(matrix m) { return *this = *this + m; }
  MSL_INLINE matrix& operator-=(matrix m) { return *this = *this - m; }
  MSL_INLINE matrix& operator*=(T s) { return *this = *this * s; }
  MSL_INLINE matrix& operator*=(matrix<T, C, C> m) { return *this = *this * m; }
};

template <typename T, int C, int R> MSL_INLINE vec<T, R> operator*(matrix<T, C, R> m, vec<T, C> v) {
  vec<T, R> sum = m[0] * v.at(0);
  for (int c = 1; c < C; ++c) sum += m[c] * v.at(c);
  return sum;
}
template <typename T, int C, int R> MSL_INLINE vec<T, C> operator*(vec<T, R> v, matrix<T, C, R> m) {
  vec<T, C> result;
  for (int c = 0; c < C; ++c) result.set(c, dot(v, m[c]));
  return result;
}
template <typename T, int C, int R> MSL_INLINE vec<T, R> operator*(matrix<T, C, R> m, packed_vec<T, C> v) { return m * vec<T, C>(v); }
template <typename T, int C, int R> MSL_INLINE vec<T, C> operator*(packed_vec<T, R> v, matrix<T, C, R> m) { return vec<T, R>(v) * m; }
template <typename T, int C, int R, int N> MSL_INLINE matrix<T, N, R> operator*(matrix<T, C, R> a, matrix<T, N, C> b) {
  matrix<T, N, R> result;
  for (int n = 0; n < N; ++n) result.columns[n] = a * b[n];
  return result;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator*(matrix<T, C, R> m, msl_same_t<T> s) {
  for (int c = 0; c < C; ++c) m.columns[c] = m.columns[c] * s;
  return m;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator*(msl_same_t<T> s, matrix<T, C, R> m) { return m * s; }
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator+(matrix<T, C, R> a, matrix<T, C, R> b) {
  for (int c = 0; c < C; ++c) a.columns[c] = a.columns[c] + b.columns[c];
  return a;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator-(matrix<T, C, R> a, matrix<T, C, R> b) {
  for (int c = 0; c < C; ++c) a.columns[c] = a.columns[c] - b.columns[c];
  return a;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator-(matrix<T, C, R> m) { return m * T(-1); }
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator+(matrix<T, C, R> m) { return m; }
template <typename T, int C, int R> MSL_INLINE bool operator==(matrix<T, C, R> a, matrix<T, C, R> b) {
  bool same = true;
  for (int c = 0; c < C; ++c) same &= all(a.columns[c] == b.columns[c]);
  return same;
}
template <typename T, int C, int R> MSL_INLINE bool operator!=(matrix<T, C, R> a, matrix<T, C, R> b) { return !(a == b); }
template <typename T, int C, int R> MSL_INLINE matrix<T, R, C> transpose(matrix<T, C, R> m) {
  matrix<T, R, C> result;
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) result.columns[r].set(c, m.columns[c].at(r));
  return result;
}
template <typename T> MSL_INLINE T determinant(matrix<T, 2, 2> m) { return m[0].x * m[1].y - m[1].x * m[0].y; }
template <typename T> MSL_INLINE T determinant(matrix<T, 3, 3> m) { return dot(m[0], cross(m[1], m[2])); }
template <typename T> MSL_INLINE T determinant(matrix<T, 4, 4> m) {
  T sum = T(0);
  for (int skipped = 0; skipped < 4; ++skipped) {  // along the first row
    matrix<T, 3, 3> minor;
    for (int c = 0, column = 0; c < 4; ++c)
      if (c != skipped) minor.columns[column++] = vec<T, 3>(m[c].y, m[c].z, m[c].w);
    sum += (skipped % 2 ? -m[skipped].x : m[skipped].x) * determinant(minor);
  }
  return sum;
}

#define MSL_MATRIX_NAMES(T)                                                                                              \
  typedef matrix<T, 2, 2> T##2x2; typedef matrix<T, 2, 3> T##2x3; typedef matrix<T, 2, 4> T##2x4;                        \
  typedef matrix<T, 3, 2> T##3x2; typedef matrix<T, 3, 3> T##3x3; typedef matrix<T, 3, 4> T##3x4;                        \
  typedef matrix<T, 4, 2> T##4x2; typedef matrix<T, 4, 3> T##4x3; typedef matrix<T, 4, 4> T##4x4;
MSL_MATRIX_NAMES(float) MSL_MATRIX_NAMES(half)

}  // namespace metal
