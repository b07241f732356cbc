// metal_simdgroup_matrix: 8x8 matrices spread over the 32 lanes, two neighbouring elements of one row in each.
#pragma once
#include "simdgroup.h"

#include <target/matrix.h>

namespace metal {

template <typename T, int COLUMNS, int ROWS> struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "simdgroup matrices are 8 by 8");
  static_assert(msl_floating_v<T>, "simdgroup matrices hold float, half or bfloat");
  typedef vec<T, 2> storage_type;
  storage_type elements;
  simdgroup_matrix() = default;
  // The diagonal matrix of one value.
  MSL_INLINE explicit simdgroup_matrix(T value) {
    uint p = msl_matrix_place(), row = p / 8, column = p % 8;
    elements = storage_type(row == column ? value : T(0), row == column + 1 ? value : T(0));
  }
  MSL_INLINE thread storage_type& thread_elements() thread { return elements; }
  MSL_INLINE const thread storage_type& thread_elements() const thread { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int COLUMNS, int ROWS = COLUMNS> MSL_INLINE simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, COLUMNS, ROWS> m;
  m.elements = vec<T, 2>(value, value);
  return m;
}

template <typename D, typename A, typename B, typename C>
MSL_INLINE void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d, thread simdgroup_matrix<A, 8, 8>& a,
                                              thread simdgroup_matrix<B, 8, 8>& b, thread simdgroup_matrix<C, 8, 8>& c) {
  float result[2];
  msl_matmul(a.elements, b.elements, c.elements, result);
  d.elements.x = (D)result[0];
  d.elements.y = (D)result[1];
}
template <typename D, typename A, typename B>
MSL_INLINE void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d, thread simdgroup_matrix<A, 8, 8>& a, thread simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_matrix<D, 8, 8> zero = make_filled_simdgroup_matrix<D, 8, 8>(D(0));
  simdgroup_multiply_accumulate(d, a, b, zero);
}
template <typename A, typename B>
MSL_INLINE simdgroup_matrix<A, 8, 8> operator*(simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b) {
  simdgroup_matrix<A, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}

#define MSL_MATRIX_MEMORY(SPACE)                                                                                          \
  template <typename T, typename U>                                                                                       \
  MSL_INLINE_CHECKED void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m, const SPACE U* from, ulong stride = 8,              \
                                 ulong2 origin = ulong2(0), bool transpose = false) {                                     \
    static_assert(__is_same(T, U), "simdgroup_load: the matrix and the memory hold different types");                     \
    uint p = msl_matrix_place();                                                                                          \
    ulong row = p / 8, column = p % 8;                                                                                    \
    from += origin.y * stride + origin.x;                                                                                 \
    m.elements.x = transpose ? from[column * stride + row] : from[row * stride + column];                                 \
    m.elements.y = transpose ? from[(column + 1) * stride + row] : from[row * stride + column + 1];                       \
  }
#define MSL_MATRIX_STORE(SPACE)                                                                                           \
  template <typename T, typename U>                                                                                       \
  MSL_INLINE_CHECKED void simdgroup_store(thread simdgroup_matrix<T, 8, 8>& m, SPACE U* to, ulong stride = 8,                     \
                                  ulong2 origin = ulong2(0), bool transpose = false) {                                    \
    static_assert(__is_same(T, U), "simdgroup_store: the matrix and the memory hold different types");                    \
    uint p = msl_matrix_place();                                                                                          \
    ulong row = p / 8, column = p % 8;                                                                                    \
    to += origin.y * stride + origin.x;                                                                                   \
    to[transpose ? column * stride + row : row * stride + column] = m.elements.x;                                         \
    to[transpose ? (column + 1) * stride + row : row * stride + column + 1] = m.elements.y;                               \
  }
MSL_MATRIX_MEMORY(device) MSL_MATRIX_MEMORY(threadgroup) MSL_MATRIX_MEMORY(constant)
MSL_MATRIX_STORE(device) MSL_MATRIX_STORE(threadgroup)

}  // namespace metal
