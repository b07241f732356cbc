// How the lanes of a simdgroup combine their values on the CPU: the last lane to arrive combines those of all that are active.
#pragma once

extern "C" {
typedef __generic char (*msl_slots)[64];
__attribute__((nomerge)) void msl_combine(__generic void* data, uint size, __generic void* result, uint result_size, void (*combine)(msl_slots, msl_slots, uint));
}

namespace metal {

// Over the active lanes of every block of WIDTH lanes, as a tree: neighbours first.
template <typename T, typename Op, int WIDTH> void msl_reduce(msl_slots in, msl_slots out, uint active) {
  for (int block = 0; block < 32; block += WIDTH) {
    T parts[WIDTH];
    bool present[WIDTH];
    for (int i = 0; i < WIDTH; ++i) {
      present[i] = active >> (block + i) & 1;
      if (present[i]) parts[i] = *(__generic T*)in[block + i];
    }
    for (int step = 1; step < WIDTH; step *= 2)
      for (int i = 0; i < WIDTH; i += 2 * step) {
        if (!present[i + step]) continue;
        if (present[i]) parts[i] = Op::apply(parts[i], parts[i + step]);
        else parts[i] = parts[i + step];
        present[i] = true;
      }
    for (int i = 0; i < WIDTH; ++i)
      if (active >> (block + i) & 1) *(__generic T*)out[block + i] = parts[0];
  }
}
template <typename T, typename Op, bool INCLUSIVE, int WIDTH> void msl_scan(msl_slots in, msl_slots out, uint active) {
  T sum;
  for (int i = 0; i < 32; ++i) {
    if (i % WIDTH == 0) sum = __is_same(Op, msl_multiply) ? (T)1 : (T)0;
    if (!(active >> i & 1)) continue;
    T before = sum;
    sum = Op::apply(sum, *(__generic T*)in[i]);
    if (INCLUSIVE) *(__generic T*)out[i] = sum;
    else *(__generic T*)out[i] = before;
  }
}
template <typename Op, int WIDTH, typename T> MSL_INLINE T msl_reduced(T value) {
  MSL_SIMD_TYPE(T);
  T result;
  msl_combine(&value, sizeof(T), &result, sizeof(T), msl_reduce<T, Op, WIDTH>);
  return result;
}
template <typename Op, bool INCLUSIVE, int WIDTH = 32, typename T> MSL_INLINE T msl_scanned(T value) {
  MSL_SIMD_TYPE(T);
  T result;
  msl_combine(&value, sizeof(T), &result, sizeof(T), msl_scan<T, Op, INCLUSIVE, WIDTH>);
  return result;
}

inline void msl_ballot(msl_slots in, msl_slots out, uint active) {
  uint votes = 0;
  for (int i = 0; i < 32; ++i) if ((active >> i & 1) && *(__generic bool*)in[i]) votes |= 1u << i;
  for (int i = 0; i < 32; ++i) { ((__generic uint*)out[i])[0] = votes; ((__generic uint*)out[i])[1] = active; }
}
MSL_INLINE uint2 msl_votes(bool v) {
  uint2 result;
  msl_combine(&v, sizeof(bool), &result, sizeof(result), msl_ballot);
  return result;
}
MSL_INLINE uint msl_active_lanes() { return msl_votes(true).y; }

}  // namespace metal
