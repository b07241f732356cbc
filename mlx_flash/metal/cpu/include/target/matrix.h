// 8x8 products and the lanes' places, by the runtime.
#pragma once

extern "C" {
__attribute__((nomerge)) void msl_matmul(__generic const float* operands, __generic float* result);
uint msl_matrix_place(void);
}

template <typename A, typename B, typename C>
MSL_INLINE void msl_matmul(vec<A, 2> a, vec<B, 2> b, vec<C, 2> c, __private float* result) {
  float operands[6] = {(float)a.x, (float)a.y, (float)b.x, (float)b.y, (float)c.x, (float)c.y};
  msl_matmul(operands, result);
}
