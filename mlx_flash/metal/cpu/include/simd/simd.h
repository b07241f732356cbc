// <simd/simd.h>: names of vectors and matrices that texts share with C, Swift and Objective-C. Metal has no functions of it.
#pragma once

#define MSL_SIMD_NAMES(T)                                                                                  \
  typedef T simd_##T##1;                                                                                   \
  typedef T##2 simd_##T##2; typedef T##3 simd_##T##3; typedef T##4 simd_##T##4;                            \
  typedef T##2 vector_##T##2; typedef T##3 vector_##T##3; typedef T##4 vector_##T##4;                      \
  typedef packed_##T##2 simd_packed_##T##2; typedef packed_##T##4 simd_packed_##T##4;                      \
  namespace simd {                                                                                         \
  using ::T##2; using ::T##3; using ::T##4;                                                                \
  typedef T T##1;                                                                                          \
  typedef packed_##T##2 packed_##T##2; typedef packed_##T##3 packed_##T##3; typedef packed_##T##4 packed_##T##4; \
  }
MSL_SIMD_NAMES(char) MSL_SIMD_NAMES(uchar) MSL_SIMD_NAMES(short) MSL_SIMD_NAMES(ushort) MSL_SIMD_NAMES(int) MSL_SIMD_NAMES(uint)
MSL_SIMD_NAMES(long) MSL_SIMD_NAMES(ulong) MSL_SIMD_NAMES(half) MSL_SIMD_NAMES(float)
typedef bool simd_bool;

#define MSL_SIMD_MATRIX(T, SIZE)                                                                           \
  typedef metal::T##SIZE simd_##T##SIZE; typedef metal::T##SIZE matrix_##T##SIZE;                          \
  namespace simd { using metal::T##SIZE; }
#define MSL_SIMD_MATRICES(T)                                                                               \
  MSL_SIMD_MATRIX(T, 2x2) MSL_SIMD_MATRIX(T, 2x3) MSL_SIMD_MATRIX(T, 2x4)                                  \
  MSL_SIMD_MATRIX(T, 3x2) MSL_SIMD_MATRIX(T, 3x3) MSL_SIMD_MATRIX(T, 3x4)                                  \
  MSL_SIMD_MATRIX(T, 4x2) MSL_SIMD_MATRIX(T, 4x3) MSL_SIMD_MATRIX(T, 4x4)
MSL_SIMD_MATRICES(float) MSL_SIMD_MATRICES(half)
