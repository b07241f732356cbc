// metal_matrix: floatCxR and halfCxR, C columns of R elements; a column at a time.
#pragma once
#include "math.h"

namespace metal {

template <typename T, int C, int R> struct matrix {
  vec<T, R> columns[C];
  matrix() = default;
  MSL_INLINE explicit matrix(T diagonal) {
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) columns[c].set(r, c == r ? diagonal : T(0));
  }
  template <typename... V, typename = enable_if_t<(sizeof...(V) == C && C > 1)>> MSL_INLINE matrix(V... given) : columns{vec<T, R>(given)...} {}
  // Templates as in vector.h: of a value, as in (a + b)[0], in no space yet.
  MSL_INLINE __private vec<T, R>& operator[](int c) __private { return columns[c]; }
  template <typename = void> MSL_INLINE __local vec<T, R>& operator[](int c) __local { return columns[c]; }
  template <typename = void> MSL_INLINE __global vec<T, R>& operator[](int c) __global { return columns[c]; }
  MSL_INLINE vec<T, R> operator[](int c) const { return columns[c]; }
  template <typename = void> MSL_INLINE vec<T, R> operator[](int c) const __local { return columns[c]; }
  template <typename = void> MSL_INLINE vec<T, R> operator[](int c) const __global { return columns[c]; }
  template <typename = void> MSL_INLINE vec<T, R> operator[](int c) const __constant { return columns[c]; }
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
template <typename T, int C, int R, int N> MSL_INLINE matrix<T, N, R> operator*(matrix<T, C, R> a, matrix<T, N, C> b) {
  matrix<T, N, R> result;
  for (int n = 0; n < N; ++n) result.columns[n] = a * b[n];
  return result;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator*(matrix<T, C, R> m, same_t<T> s) {
  for (int c = 0; c < C; ++c) m.columns[c] = m.columns[c] * s;
  return m;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator*(same_t<T> s, matrix<T, C, R> m) { return m * s; }
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator+(matrix<T, C, R> a, matrix<T, C, R> b) {
  for (int c = 0; c < C; ++c) a.columns[c] = a.columns[c] + b.columns[c];
  return a;
}
template <typename T, int C, int R> MSL_INLINE matrix<T, C, R> operator-(matrix<T, C, R> a, matrix<T, C, R> b) {
  for (int c = 0; c < C; ++c) a.columns[c] = a.columns[c] - b.columns[c];
  return a;
}
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
