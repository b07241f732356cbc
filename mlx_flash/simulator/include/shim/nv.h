// NVIDIA's matrix instructions by the names PTX gives them, for tile layers written for tensor cores. On a GPU each is
// one instruction; on the CPU the same is done lane by lane, so that such a layer runs under the simulator's checks.
#pragma once
#include "simdgroup.h"

namespace nv {

template <typename T> constant constexpr bool is_half_v = __is_same(T, half);

#if defined(__NVPTX__)

#define NV_ADDRESS(POINTER) ((uint)(ulong)(POINTER))

// Two floats, rounded to nearest even, as one register of 16-bit elements: the first in the low half
template <typename T> MSL_INLINE uint pack(vec<float, 2> pair) {
  uint packed;
  if constexpr (is_half_v<T>) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(pair.y), "f"(pair.x));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(pair.y), "f"(pair.x));
  return packed;
}
template <typename T> MSL_INLINE uint pack(vec<T, 2> pair) { return as_type<uint>(pair); }

template <typename T> MSL_INLINE vec<uint, 4> load_matrices(threadgroup T* row) {
  vec<uint, 4> m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w) : "r"(NV_ADDRESS(row)) : "memory");
  return m;
}
template <typename T> MSL_INLINE vec<uint, 4> load_matrices_transposed(threadgroup T* row) {
  vec<uint, 4> m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w) : "r"(NV_ADDRESS(row)) : "memory");
  return m;
}

#define NV_MULTIPLY(TYPE)                                                                                           \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "  \
      "{%0, %1, %2, %3};"                                                                                           \
      : "+f"(upper.x), "+f"(upper.y), "+f"(lower.x), "+f"(lower.y)                                                  \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y))
// C += A B: 16 x 8, rows 0-7 in `upper` and 8-15 in `lower`
template <typename T>
MSL_INLINE void multiply(thread vec<float, 2>& upper, thread vec<float, 2>& lower, vec<uint, 4> a, vec<uint, 2> b) {
  if constexpr (is_half_v<T>) NV_MULTIPLY("f16");
  else NV_MULTIPLY("bf16");
}

// 16 bytes to threadgroup memory without waiting; the first `bytes` of them are read, the others are zero.
template <typename T> MSL_INLINE void copy_async(threadgroup T* to, const device T* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(NV_ADDRESS(to)), "l"(from), "r"(bytes) : "memory");
}
MSL_INLINE void wait_copies() {
  asm volatile("cp.async.wait_all;" : : : "memory");
}
// What was copied becomes visible to the asynchronous matrix unit.
MSL_INLINE void show_copies() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

#else

template <typename T> MSL_INLINE uint pack(vec<float, 2> pair) { return as_type<uint>(vec<T, 2>(pair)); }
template <typename T> MSL_INLINE uint pack(vec<T, 2> pair) { return as_type<uint>(pair); }

template <typename T> MSL_INLINE T from_lane(T value, uint lane) {
  msl_shuffle(&value, sizeof(T), lane);
  return value;
}

// Lanes 8 j to 8 j + 7 give the rows of matrix j; every lane gets two neighbouring elements of each.
template <typename T> MSL_INLINE vec<uint, 4> load_matrices(threadgroup T* row) {
  const uint lane = msl_lane();
  vec<uint, 4> m;
  for (uint j = 0; j < 4; ++j) {
    threadgroup T* source = (threadgroup T*)from_lane((ulong)row, 8 * j + lane / 4) + lane % 4 * 2;
    m.set(j, as_type<uint>(vec<T, 2>(source[0], source[1])));
  }
  return m;
}
template <typename T> MSL_INLINE vec<uint, 4> load_matrices_transposed(threadgroup T* row) {
  const uint lane = msl_lane();
  vec<uint, 4> m;
  for (uint j = 0; j < 4; ++j) {
    threadgroup T* first = (threadgroup T*)from_lane((ulong)row, 8 * j + lane % 4 * 2);
    threadgroup T* second = (threadgroup T*)from_lane((ulong)row, 8 * j + lane % 4 * 2 + 1);
    m.set(j, as_type<uint>(vec<T, 2>(first[lane / 4], second[lane / 4])));
  }
  return m;
}

template <typename T>
MSL_INLINE void multiply(thread vec<float, 2>& upper, thread vec<float, 2>& lower, vec<uint, 4> a, vec<uint, 2> b) {
  const uint lane = msl_lane(), row = lane / 4, column = lane % 4 * 2;
  for (uint quarter = 0; quarter < 4; ++quarter) {
    const vec<uint, 4> rows = from_lane(a, row * 4 + quarter);
    for (uint e = 0; e < 2; ++e) {
      const vec<uint, 2> columns = from_lane(b, (column + e) * 4 + quarter);
      for (uint half_step = 0; half_step < 2; ++half_step) {
        const vec<T, 2> right = as_type<vec<T, 2>>(columns.at(half_step));
        const vec<T, 2> high = as_type<vec<T, 2>>(rows.at(2 * half_step));
        const vec<T, 2> low = as_type<vec<T, 2>>(rows.at(2 * half_step + 1));
        upper[e] += (float)high.x * (float)right.x + (float)high.y * (float)right.y;
        lower[e] += (float)low.x * (float)right.x + (float)low.y * (float)right.y;
      }
    }
  }
}

template <typename T> MSL_INLINE void copy_async(threadgroup T* to, const device T* from, int bytes) {
  for (int e = 0; e < (int)(16 / sizeof(T)); ++e) to[e] = e * (int)sizeof(T) < bytes ? from[e] : T(0);
}
MSL_INLINE void wait_copies() {}
MSL_INLINE void show_copies() {}

#endif

}  // namespace nv
