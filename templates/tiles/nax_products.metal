// Products of tiles on the neural accelerators. NaN and infinities reach only the rows that see them.
namespace flash {
namespace tile {

// The two shapes of matmul2d for operands in registers, in relaxed precision: float factors keep 10 bits of mantissa.
constant constexpr auto ADDS = mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate;

// (c0 | c1) += a (b0 | b1); TRANSPOSED: b0 lies above b1, and the product takes the transpose of both together
template <bool TRANSPOSED, typename A, typename B>
METAL_FUNC void multiply_wide(
    thread Matrix<float>& c0, thread Matrix<float>& c1, thread const Matrix<A>& a, thread const Matrix<B>& b0,
    thread const Matrix<B>& b1) {
  constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(16, 32, 16, false, TRANSPOSED, true, ADDS);
  mpp::tensor_ops::matmul2d<shape, execution_simdgroup> product;
  auto left = product.template get_left_input_cooperative_tensor<A, B, float>();
  auto right = product.template get_right_input_cooperative_tensor<A, B, float>();
  auto sum = product.template get_destination_cooperative_tensor<
      remove_addrspace_t<decltype(left)>, remove_addrspace_t<decltype(right)>, float>();
#pragma clang loop unroll(full)
  for (ushort e = 0; e < 8; e++) {
    left[e] = a.at[e];
    right[e] = b0.at[e];
    right[8 + e] = b1.at[e];
    sum[e] = c0.at[e];
    sum[8 + e] = c1.at[e];
  }
  product.run(left, right, sum);
#pragma clang loop unroll(full)
  for (ushort e = 0; e < 8; e++) {
    c0.at[e] = sum[e];
    c1.at[e] = sum[8 + e];
  }
}

// c += a0 b0 + a1 b1
template <typename A, typename B>
METAL_FUNC void multiply_deep(
    thread Matrix<float>& c, thread const Matrix<A>& a0, thread const Matrix<A>& a1, thread const Matrix<B>& b0,
    thread const Matrix<B>& b1) {
  constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(16, 16, 32, false, false, true, ADDS);
  mpp::tensor_ops::matmul2d<shape, execution_simdgroup> product;
  auto left = product.template get_left_input_cooperative_tensor<A, B, float>();
  auto right = product.template get_right_input_cooperative_tensor<A, B, float>();
  auto sum = product.template get_destination_cooperative_tensor<
      remove_addrspace_t<decltype(left)>, remove_addrspace_t<decltype(right)>, float>();
#pragma clang loop unroll(full)
  for (ushort e = 0; e < 8; e++) {
    left[e] = a0.at[e];
    left[8 + e] = a1.at[e];
    right[e] = b0.at[e];
    right[8 + e] = b1.at[e];
    sum[e] = c.at[e];
  }
  product.run(left, right, sum);
#pragma clang loop unroll(full)
  for (ushort e = 0; e < 8; e++) c.at[e] = sum[e];
}

// Rows [16 i, 16 i + 16) x columns [16 c, 16 c + 16) of a tile, as T
template <typename T, typename P, int R, int C>
METAL_FUNC Matrix<T> matrix_of(thread const Tile<P, R, C>& tile, int i, int c) {
  Matrix<T> found;
#pragma clang loop unroll(full)
  for (int e = 0; e < 8; e++) found.at[e] = T(tile.at[2 * i + e / 4][2 * c + e / 2 % 2][e % 2]);
  return found;
}

template <int R, int C>
METAL_FUNC void put_matrix(thread Tile<float, R, C>& tile, int i, int c, thread const Matrix<float>& matrix) {
#pragma clang loop unroll(full)
  for (int e = 0; e < 8; e++) tile.at[2 * i + e / 4][2 * c + e / 2 % 2][e % 2] = matrix.at[e];
}

// S += A[:, 16 d : 16 d + 16] B[:, ..]^T
template <typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void step_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b, int d) {
  Matrix<T> rows[R / 16];
  for (int i = 0; i < R / 16; i++) rows[i] = a.matrix(i, d);
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t += 2) {
    if (b.valid < BT && t * 16 >= b.valid) continue;
    const Matrix<T> upper = b.matrix(t, d), lower = b.matrix(t + 1, d);
    for (int i = 0; i < R / 16; i++) {
      Matrix<float> left = matrix_of<float>(s, i, t), right = matrix_of<float>(s, i, t + 1);
      multiply_wide<true>(left, right, rows[i], upper, lower);
      put_matrix(s, i, t, left);
      put_matrix(s, i, t + 1, right);
    }
  }
}

#if SPLITS_HEAD
// Adds the partial S of two simdgroups that share the head dimension; both get the same sum
template <int R, int BT>
METAL_FUNC void add_parts(thread Tile<float, R, BT>& s, threadgroup Pair<float>* exchange, Lane lane) {
  static_assert(HEAD_PARTS == 2, "a sum of two is the same in either order");
  constexpr int SIZE = R * BT / 2;  // pairs of a simdgroup
  threadgroup Pair<float>* own = exchange + lane.part() * SIZE + lane.thread_index % 32;
  const threadgroup Pair<float>* other = exchange + (1 - lane.part()) * SIZE + lane.thread_index % 32;
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < BT / 8; c++) own[(i * (BT / 8) + c) * 32] = s.at[i][c];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < BT / 8; c++) s.at[i][c] += other[(i * (BT / 8) + c) * 32];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the next sum goes through the same memory
}
#endif

// S = A B^T. Where A is in registers, which cannot be indexed, the loop must be unrolled. Elsewhere, unrolling would
// only make the compiler keep the re-read fragments in registers.
template <typename T, int BP, int R, int D, int BT, bool CACHED, typename B>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<T, BP, R, D, CACHED>& a, thread const B& b) {
  static_assert(BT % 32 == 0 && R % 16 == 0, "products are 16 x 32");
  clear(s);
  if constexpr (CACHED) {
#pragma clang loop unroll(full)
    for (int d = 0; d < STEPS<D>; d++) step_abt(s, a, b, d);
  } else {
#pragma clang loop unroll_count(4)
    for (int d = 0; d < STEPS<D>; d++) step_abt(s, a, b, d);
  }
#if SPLITS_HEAD
  add_parts(s, a.exchange, a.owner);
#endif
}

// 0 in place of infinities and NaN; returns whether there were any
template <typename T> METAL_FUNC bool make_finite(thread Matrix<T>& matrix) {
  const ushort infinity = as_type<ushort>(T(INFINITY));
  bool found = false;
#pragma clang loop unroll(full)
  for (int e = 0; e < 8; e++) {
    const bool bad = (as_type<ushort>(matrix.at[e]) & 0x7fff) >= infinity;
    matrix.at[e] = bad ? T(0) : matrix.at[e];
    found = found || bad;
  }
  return found;
}

// The unit keeps 10 bits of mantissa of float factors. For float16 results, which have as many, that would double the
// error, so the rest of dS is multiplied too, by the same B, which is in registers already.
template <typename Narrow, typename T>
constant constexpr int PARTS = is_same_v<Narrow, float> && is_same_v<T, half> ? 2 : 1;

// The parts of a factor that the unit multiplies exactly: its first 10 bits of mantissa, then the rest, which an
// infinity does not have
template <int N, typename T> METAL_FUNC void split(thread Matrix<T> (&parts)[N]) {
  if constexpr (N == 2) {
#pragma clang loop unroll(full)
    for (int e = 0; e < 8; e++) {
      const float x = parts[0].at[e], taken = as_type<float>(as_type<uint>(x) & 0xffffe000);
      parts[0].at[e] = taken;
      parts[1].at[e] = taken == x ? 0 : x - taken;
    }
  }
}

// C += P B. FINITE: infinities and NaN of B count as 0; returns whether there were any.
template <bool FINITE, typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC bool add_product(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p, thread const B& b) {
  using T = typename B::Element;
  constexpr int N = PARTS<Narrow, T>;
  bool found = false;
#pragma clang loop unroll(full)
  for (int t = 0; t < BT / 16; t += 2) {
    if (b.valid < BT && t * 16 >= b.valid) continue;
    Matrix<Narrow> rows[2][R / 16][N];
    for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
      for (int k = 0; k < 2; k++) {
        rows[k][i][0] = matrix_of<Narrow>(p, i, t + k);
        split(rows[k][i]);
      }
    }
#pragma clang loop unroll(full)
    for (int d = 0; d + 1 < STEPS<D>; d += 2) {
#pragma clang loop unroll(full)
      for (int k = 0; k < 2; k++) {
        Matrix<T> left = b.matrix(t + k, d), right = b.matrix(t + k, d + 1);
        if constexpr (FINITE) {
          const bool bad_left = make_finite(left), bad_right = make_finite(right);
          found = found || bad_left || bad_right;
        }
        for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
          for (int n = 0; n < N; n++) {
            multiply_wide<false>(c.at[i][d], c.at[i][d + 1], rows[k][i][n], left, right);
          }
        }
      }
    }
    if constexpr (STEPS<D> % 2 != 0) {
      constexpr int last = STEPS<D> - 1;
      Matrix<T> upper = b.matrix(t, last), lower = b.matrix(t + 1, last);
      if constexpr (FINITE) {
        const bool bad_upper = make_finite(upper), bad_lower = make_finite(lower);
        found = found || bad_upper || bad_lower;
      }
      for (int i = 0; i < R / 16; i++) {
#pragma clang loop unroll(full)
        for (int n = 0; n < N; n++) multiply_deep(c.at[i][last], rows[0][i][n], rows[1][i][n], upper, lower);
      }
    }
  }
  return FINITE && simd_any(found);
}

// Adds what `add_product` left out: an infinity or NaN of B goes to the rows with P != 0 there. This is rare, so the
// code aims at few registers: row by row of B, with the weight of each row of P from the lane that holds it.
template <typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void add_not_finite(
    thread Accumulator<R, D, BH, CACHED>& c, thread const Tile<P, R, BT>& p, thread const B& b) {
#pragma clang loop unroll(disable)
  for (int t = 0; t < BT / 8; t++) {
    Pair<P> weights[R / 8];
    pick(weights, p, t);
#pragma clang loop unroll(disable)
    for (int k = 0; k < 8; k++) {
      float weight[R / 8];
      for (int i = 0; i < R / 8; i++) weight[i] = simd_shuffle(float(weights[i][k % 2]), b.lane.holder(k));
#pragma clang loop unroll(full)
      for (int d = 0; d < STEPS<D>; d++) {
        const Run<typename B::Element, 4> row = b.four(t * 8 + k, d);
        for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
          for (int e = 0; e < 4; e++) {
            const float x = float(row.at[e]);
            c.at[i / 2][d].at[i % 2 * 4 + e] += !isfinite(x) && weight[i] != 0 ? x * weight[i] : 0;
          }
        }
      }
    }
  }
}

// C = factor * C + P B. P is converted to the type `Narrow` for the matrix unit.
// whole: every row of P sees every row of B, so that NaN or infinity in B propagates.
template <typename Narrow, typename P, int R, int D, int BT, int BH, bool CACHED, typename B>
METAL_FUNC void multiply_ab(
    thread Accumulator<R, D, BH, CACHED>& c, RowVector<R> factor, thread const Tile<P, R, BT>& p, thread const B& b,
    bool whole) {
  c.multiply(factor);
  if (whole && !b.edge) {
    add_product<false, Narrow>(c, p, b);
  } else if (add_product<true, Narrow>(c, p, b)) {
    add_not_finite(c, p, b);
  }
}

}  // namespace tile
}  // namespace flash
