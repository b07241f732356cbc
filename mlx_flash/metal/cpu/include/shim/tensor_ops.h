// mpp::tensor_ops: products of matrices whose elements are spread over the registers of one simdgroup, or lie in memory.
//
// How they are spread is the hardware's secret: get_multidimensional_index asks for it. The simulator has the layout of M5
// and one that nothing but this question can follow (settings.py). A transposed operand is spread as it is stored.
#pragma once
#include "tensor.h"

#include <target/tensor_ops.h>

namespace metal {
struct execution_thread {};
template <int SIMDGROUPS> struct execution_simdgroups {};
typedef execution_simdgroups<1> execution_simdgroup;
}  // namespace metal

namespace mpp {
namespace tensor_ops {

struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };
  int m, n, k;
  bool transpose_left, transpose_right, relaxed_precision;
  mode matmul_mode;
  constexpr matmul2d_descriptor(
      int m, int n, int k, bool transpose_left = false, bool transpose_right = false, bool relaxed_precision = false,
      mode matmul_mode = mode::multiply)
      : m(m), n(n), k(k), transpose_left(transpose_left), transpose_right(transpose_right),
        relaxed_precision(relaxed_precision), matmul_mode(matmul_mode) {}
  // C++17 has no objects as arguments of templates.
  constexpr operator ulong() const {
    return (ulong)m | (ulong)n << 12 | (ulong)k << 24 | (ulong)transpose_left << 36 | (ulong)transpose_right << 37 |
           (ulong)relaxed_precision << 38 | (ulong)(matmul_mode == mode::multiply_accumulate) << 39;
  }
};

// The combinations that the documentation of matmul2d lists, as far as the compiler has the types.
template <typename A, typename B, typename C> MSL_INLINE constexpr bool msl_multiplies() {
  constexpr bool half_a = __is_same(A, half), bfloat_a = __is_same(A, bfloat), float_a = __is_same(A, float);
  constexpr bool half_b = __is_same(B, half), bfloat_b = __is_same(B, bfloat), float_b = __is_same(B, float);
  constexpr bool char_a = __is_same(A, int8_t), char_b = __is_same(B, int8_t);
  if (__is_same(C, int)) return char_a && char_b;
  if (__is_same(C, float)) return (half_a || bfloat_a || float_a || char_a) && (half_b || bfloat_b || float_b || char_b) && !(char_a && char_b);
  const bool of_half = (half_a && (half_b || char_b)) || (char_a && half_b), of_both = (half_a && bfloat_b) || (bfloat_a && half_b);
  const bool of_bfloat = (bfloat_a && (bfloat_b || char_b)) || (char_a && bfloat_b);
  return (__is_same(C, half) && (of_half || of_both)) || (__is_same(C, bfloat) && (of_bfloat || of_both));
}

template <typename T> constant constexpr uint msl_type = __is_same(T, float) ? MSL_FLOAT : __is_same(T, half) ? MSL_HALF
    : __is_same(T, bfloat) ? MSL_BFLOAT : __is_same(T, int) ? MSL_INT : MSL_CHAR;

// One lane's elements of a matrix of ROWS x COLUMNS; until they are set they hold what the checks know.
template <typename T, int ROWS, int COLUMNS, uint ROLE> struct cooperative_tensor {
  typedef T element_type;
  static constant constexpr uint msl_capacity = ROWS * COLUMNS / 32, msl_role = ROLE;
  T msl_elements[msl_capacity];

  MSL_INLINE cooperative_tensor() { msl_tensor_unset(msl_elements, sizeof(msl_elements)); }
  static MSL_INLINE constexpr ushort get_capacity() { return msl_capacity; }
  MSL_INLINE uint msl_index(uint i) const {
    if (i >= msl_capacity) msl_tensor_index(i);
    return i;
  }
  MSL_INLINE thread T& operator[](uint i) thread { return msl_elements[msl_index(i)]; }
  MSL_INLINE const thread T& operator[](uint i) const thread { return msl_elements[msl_index(i)]; }
  // Is element i one of the matrix? Here all are.
  MSL_INLINE bool get_mask(uint i) const { return i < msl_capacity; }
  // (column, row) of element i
  MSL_INLINE metal::array<int, 2> get_multidimensional_index(uint i) const {
    const uint place = msl_tensor_place(ROLE, ROWS, COLUMNS, msl_index(i));
    return {{(int)(place & 0xffff), (int)(place >> 16)}};
  }
  // From memory; what lies outside is zero
  template <typename M> MSL_INLINE_CHECKED void load(thread const M& from) thread {
    static_assert(__is_same(typename M::element_type, T), "load: tensor and cooperative tensor hold different types");
    for (uint i = 0; i < msl_capacity; ++i) {
      const uint place = msl_tensor_place(ROLE, ROWS, COLUMNS, i);
      const int column = place & 0xffff, row = place >> 16;
      msl_elements[i] = column < from.get_extent(0) && row < from.get_extent(1) ? (T)from.msl_at(column, row) : T(0);
    }
  }
  // To memory, what lies inside
  template <typename M> MSL_INLINE_CHECKED void store(thread const M& to) const thread {
    static_assert(__is_same(typename M::element_type, T), "store: tensor and cooperative tensor hold different types");
    for (uint i = 0; i < msl_capacity; ++i) {
      const uint place = msl_tensor_place(ROLE, ROWS, COLUMNS, i);
      const int column = place & 0xffff, row = place >> 16;
      if (column < to.get_extent(0) && row < to.get_extent(1)) to.msl_at(column, row) = msl_elements[i];
    }
  }
};

template <typename T> constant constexpr bool msl_in_registers = false;
template <typename T, int R, int C, uint ROLE> constant constexpr bool msl_in_registers<cooperative_tensor<T, R, C, ROLE>> = true;

template <ulong DESCRIPTOR, typename SCOPE> struct matmul2d {
  static_assert(__is_same(SCOPE, metal::execution_simdgroup), "the simulator has matmul2d for the scope of one simdgroup, metal::execution_simdgroup");
  static constant constexpr int M = DESCRIPTOR & 0xfff, N = DESCRIPTOR >> 12 & 0xfff, K = DESCRIPTOR >> 24 & 0xfff;
  static constant constexpr bool LEFT = DESCRIPTOR >> 36 & 1, RIGHT = DESCRIPTOR >> 37 & 1;
  static_assert(M > 0 && N > 0 && K > 0 && M % 16 == 0 && N % 16 == 0 && K % 16 == 0 && M <= 64 && N <= 64 && K <= 64,
                "the simulator has matmul2d for sizes that are multiples of 16, at most 64");
  template <typename A, typename B, typename C> using cooperative_tensor_left_input_t = cooperative_tensor<A, LEFT ? K : M, LEFT ? M : K, 0>;
  template <typename A, typename B, typename C> using cooperative_tensor_right_input_t = cooperative_tensor<B, RIGHT ? N : K, RIGHT ? K : N, 1>;
  template <typename A, typename B, typename C> using cooperative_tensor_destination_t = cooperative_tensor<C, M, N, 2>;

  template <typename A, typename B, typename C> MSL_INLINE auto get_left_input_cooperative_tensor() const {
    return cooperative_tensor_left_input_t<A, B, C>();
  }
  template <typename A, typename B, typename C> MSL_INLINE auto get_right_input_cooperative_tensor() const {
    return cooperative_tensor_right_input_t<A, B, C>();
  }
  template <typename A, typename B, typename C> MSL_INLINE auto get_destination_cooperative_tensor() const {
    return cooperative_tensor_destination_t<A, B, C>();
  }

  // c = a b, or c + a b. Factors are cooperative tensors, or matrices in memory, which the lanes read first.
  template <typename A, typename B, typename C> MSL_INLINE void run(thread const A& a, thread const B& b, thread C& c) const {
    static_assert(msl_in_registers<C>, "the simulator has matmul2d with a cooperative tensor as its destination");
    typedef typename A::element_type a_type;
    typedef typename B::element_type b_type;
    typedef typename C::element_type c_type;
    static_assert(msl_multiplies<a_type, b_type, c_type>(), "matmul2d has no product of these types");
    static_assert(!(msl_in_registers<A> && msl_in_registers<B>) || (M == 16 && N * K == 512),
                  "factors in registers: the simulator has 16x32x16 and 16x16x32, the shapes whose layout is known");
    if constexpr (!msl_in_registers<A>) {
      cooperative_tensor_left_input_t<a_type, b_type, c_type> left;
      left.load(a);
      run(left, b, c);
    } else if constexpr (!msl_in_registers<B>) {
      cooperative_tensor_right_input_t<a_type, b_type, c_type> right;
      right.load(b);
      multiply(a, right, c);
    } else {
      multiply(a, b, c);
    }
  }

  template <typename A, typename B, typename C> MSL_INLINE void multiply(thread const A& a, thread const B& b, thread C& c) const {
    static_assert(A::msl_role == 0 && B::msl_role == 1 && C::msl_role == 2, "matmul2d: left input, right input and destination, in this order");
    static_assert(A::msl_capacity * 32 == M * K && B::msl_capacity * 32 == N * K && C::msl_capacity * 32 == M * N, "matmul2d: a cooperative tensor of another size");
    msl_tensor_multiply(
        DESCRIPTOR, msl_type<typename A::element_type> | msl_type<typename B::element_type> << 4 | msl_type<typename C::element_type> << 8,
        a.msl_elements, b.msl_elements, c.msl_elements);
  }
};

}  // namespace tensor_ops
}  // namespace mpp
