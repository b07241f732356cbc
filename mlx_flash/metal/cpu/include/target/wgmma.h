// Products of warpgroups: each simdgroup computes its own 16 rows at once. In check mode the runtime keeps account of what is still
// in flight on a GPU (runtime/flights.h).
#pragma once
#include "nv.h"

extern "C" {
__attribute__((nomerge)) void msl_begin_product(__generic const void* accumulator);
void msl_end_product(__generic void* accumulator, uint bytes);
__attribute__((nomerge)) void msl_commit_products(void);
__attribute__((nomerge)) void msl_wait_products(uint later);
}

namespace nv {

template <typename T> struct Matrix {
  threadgroup T* start;
  int panel, column;
  static MSL_INLINE Matrix of(threadgroup T* start, int panel) { return {start, panel, 0}; }
  MSL_INLINE Matrix at(int elements, int column) const { return {start + elements, panel, column}; }
  MSL_INLINE T operator()(int row, int k) const {
    constexpr int CHUNK = 16 / sizeof(T), PANEL = 8 * CHUNK;
    const int c = (column + k) % PANEL;
    return start[(column + k) / PANEL * panel + row * PANEL + ((c / CHUNK) ^ (row & 7)) * CHUNK + c % CHUNK];
  }
};

template <typename T, int N>
MSL_INLINE void multiply_shared(
    thread vec<float, 2> (&c)[2][N / 8], Matrix<T> a, Matrix<T> b, int first, bool add) {
  const int row = first + msl_lane() / 4, place = msl_lane() % 4 * 2;
  msl_begin_product(&c);
  for (int i = 0; i < 2; ++i) for (int n = 0; n < N; n += 8) for (int e = 0; e < 2; ++e) {
    float sum = add ? c[i][n / 8][e] : 0;
    for (int k = 0; k < 16; ++k) sum += (float)a(row + i * 8, k) * (float)b(n + place + e, k);
    c[i][n / 8][e] = sum;
  }
  msl_end_product(&c, sizeof(c));
}

template <typename T, int N>
MSL_INLINE void multiply_registers(thread vec<float, 2> (&c)[2][N / 8], vec<uint, 4> a, Matrix<T> b) {
  msl_begin_product(&c);
  for (int d = 0; d < N; d += 8) {
    vec<uint, 2> columns;
    const int row = msl_lane() % 4 * 2, column = d + msl_lane() / 4;
    for (int k = 0; k < 2; ++k)
      if constexpr (sizeof(T) == 4) columns.set(k, as_type<uint>(b(column, 4 * k + row / 2)));
      else columns.set(k, as_type<uint>(vec<T, 2>(b(8 * k + row, column), b(8 * k + row + 1, column))));
    multiply<T>(c[0][d / 8], c[1][d / 8], a, columns);
  }
  msl_end_product(&c, sizeof(c));
}

template <typename T, int N> MSL_INLINE void add_zero(thread vec<float, 2> (&c)[2][N / 8], uint) {
  msl_begin_product(&c);
  msl_end_product(&c, sizeof(c));
}
MSL_INLINE void pin_register(thread vec<uint, 4>&) {}
template <int N> MSL_INLINE void pin_register(thread vec<float, 2> (&)[2][N]) {}
MSL_INLINE void fence_async_proxy() {}
MSL_INLINE void wgmma_fence() {}
MSL_INLINE void wgmma_commit() { msl_commit_products(); }
template <int LATER> MSL_INLINE void wgmma_wait() { msl_wait_products(LATER); }

template <int GROUPS> struct PingPong {
  MSL_INLINE void open(uint) thread {}
  MSL_INLINE void wait() thread {}
  MSL_INLINE void arrive() thread {}
};

}  // namespace nv
