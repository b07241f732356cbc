// 8x8 products on an NVIDIA GPU with the lanes of Apple's: shuffles and fused multiply-adds, float32 throughout. Exact in what it
// computes and in its order; slow.
#pragma once

// Row and column of a lane's first element, as row * 8 + column: row bits 2, 1, 0 are lane bits 4, 2, 1; column bits 2, 1 are 3, 0.
MSL_INLINE uint msl_matrix_place() {
  const uint lane = msl_lane();
  return (((lane >> 2 & 4) | (lane >> 1 & 3)) << 3) | ((lane >> 1 & 4) | (lane << 1 & 2));
}

// The float values of a word: two of 16 bits, or one of 32.
template <typename T> MSL_INLINE vec<float, 2> msl_unpack(uint word) {
  const vec<T, 2> pair = __builtin_bit_cast(vec<T, 2>, word);
  return vec<float, 2>((float)pair.x, (float)pair.y);
}
template <typename T> MSL_INLINE vec<float, 2> msl_pair_of(uint first, uint second, uint source) {
  if constexpr (sizeof(T) == 2) {
    return msl_unpack<T>(msl_shuffle_word(first, source));
  } else {
    return vec<float, 2>(__builtin_bit_cast(float, msl_shuffle_word(first, source)),
                         __builtin_bit_cast(float, msl_shuffle_word(second, source)));
  }
}
template <typename T> MSL_INLINE uint msl_word(vec<T, 2> pair, int word) {
  if constexpr (sizeof(T) == 2) return __builtin_bit_cast(uint, pair);
  else return __builtin_bit_cast(uint, word ? pair.y : pair.x);
}

struct msl_product { float x, y; };

// C + A B, k in order. A function of its own: a kernel multiplies hundreds of times, and the driver compiles it at its first launch.
template <typename A, typename B>
static __attribute__((noinline)) msl_product msl_multiply_add(uint a0, uint a1, uint b0, uint b1, float x, float y) {
  const uint lane = msl_lane(), row = lane & 0x16, column = lane & 0x09;
  for (uint k = 0; k < 8; k += 2) {
    const vec<float, 2> left = msl_pair_of<A>(a0, a1, row | (k & 4) << 1 | (k & 2) >> 1);
    const vec<float, 2> upper = msl_pair_of<B>(b0, b1, column | (k & 4) << 2 | (k & 3) << 1);
    const vec<float, 2> lower = msl_pair_of<B>(b0, b1, column | (k & 4) << 2 | ((k + 1) & 3) << 1);
    x = __builtin_fmaf(left.x, upper.x, x);
    y = __builtin_fmaf(left.x, upper.y, y);
    x = __builtin_fmaf(left.y, lower.x, x);
    y = __builtin_fmaf(left.y, lower.y, y);
  }
  return {x, y};
}

template <typename A, typename B, typename C>
MSL_INLINE void msl_matmul(vec<A, 2> a, vec<B, 2> b, vec<C, 2> c, __private float* result) {
  const msl_product sum = msl_multiply_add<A, B>(
      msl_word(a, 0), msl_word(a, 1), msl_word(b, 0), msl_word(b, 1), (float)c.x, (float)c.y);
  result[0] = sum.x;
  result[1] = sum.y;
}
