// Instructions of tensor cores, done lane by lane.
#pragma once

extern "C" {
__attribute__((nomerge)) void msl_take_stage(__generic uint* epoch);
__attribute__((nomerge)) void msl_release_stage(__generic uint* epoch);
}

namespace nv {

template <typename T> MSL_INLINE uint narrow_pair(vec<float, 2> pair) { return as_type<uint>(vec<T, 2>(pair)); }
template <typename T> MSL_INLINE uint narrow_pair(vec<T, 2> pair) { return as_type<uint>(pair); }

template <typename T> MSL_INLINE T from_lane(T value, uint lane) {
  msl_shuffle(&value, sizeof(T), lane);
  return value;
}

// Elements that a lane holds in a register
template <typename T> MSL_INLINE uint word_at(threadgroup T* place) {
  if constexpr (sizeof(T) == 4) return as_type<uint>(*place);
  else return as_type<uint>(vec<T, 2>(place[0], place[1]));
}

// Lanes 8 j to 8 j + 7 give the rows of matrix j; every lane gets four neighbouring bytes of each.
template <typename T> MSL_INLINE vec<uint, 4> load_matrices(threadgroup T* row) {
  const uint lane = msl_lane();
  vec<uint, 4> m;
  for (uint j = 0; j < 4; ++j) {
    threadgroup T* source = (threadgroup T*)from_lane((ulong)row, 8 * j + lane / 4);
    m.set(j, word_at(source + lane % 4 * (4 / sizeof(T))));
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

// Sums of products of TF32 numbers, which are exact in float32, as a matrix unit adds them: rounded towards zero.
struct TruncatedSum {
  float sum, rest;
  MSL_INLINE void add(float x) thread {
    const float next = sum + x, own = next - sum;
    rest += (sum - (next - own)) + (x - own);
    sum = next;
  }
  MSL_INLINE float value() const thread {
    const float nearest = sum + rest, missing = (sum - nearest) + rest;
    const bool away = nearest > 0 ? missing < 0 : missing > 0;
    return away ? as_type<float>(as_type<uint>(nearest) - 1) : nearest;
  }
};
MSL_INLINE float tf32(uint bits) { return as_type<float>(bits & 0xffffe000u); }

MSL_INLINE void multiply_tf32(thread vec<float, 2>& upper, thread vec<float, 2>& lower, vec<uint, 4> a, vec<uint, 2> b) {
  const uint lane = msl_lane(), row = lane / 4, column = lane % 4 * 2;
  TruncatedSum sums[4] = {{upper.x, 0}, {upper.y, 0}, {lower.x, 0}, {lower.y, 0}};
  for (uint k = 0; k < 4; ++k) {
    const vec<uint, 4> rows = from_lane(a, row * 4 + k);
    for (uint e = 0; e < 2; ++e) {
      const vec<uint, 2> columns = from_lane(b, (column + e) * 4 + k);
      for (uint half_step = 0; half_step < 2; ++half_step) {
        const float right = tf32(columns.at(half_step));
        sums[e].add(tf32(rows.at(2 * half_step)) * right);
        sums[2 + e].add(tf32(rows.at(2 * half_step + 1)) * right);
      }
    }
  }
  upper = vec<float, 2>(sums[0].value(), sums[1].value());
  lower = vec<float, 2>(sums[2].value(), sums[3].value());
}

template <typename T>
MSL_INLINE void multiply_pairs(thread vec<float, 2>& upper, thread vec<float, 2>& lower, vec<uint, 4> a, vec<uint, 2> b) {
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

template <typename T>
MSL_INLINE void multiply(thread vec<float, 2>& upper, thread vec<float, 2>& lower, vec<uint, 4> a, vec<uint, 2> b) {
  if constexpr (sizeof(T) == 4) multiply_tf32(upper, lower, a, b);
  else multiply_pairs<T>(upper, lower, a, b);
}

// The source is read as one access, so that its alignment is checked.
template <typename T> MSL_INLINE_CHECKED void copy_async(threadgroup T* to, const device T* from, int bytes) {
  typedef uint Chunk __attribute__((ext_vector_type(4)));
  const Chunk chunk = bytes > 0 ? *(const device Chunk*)from : (Chunk)(0);
  for (int j = 0; j < 4; ++j) {
    const uint word = 4 * j < bytes ? chunk[j] : 0;
    if constexpr (sizeof(T) == 4) {
      to[j] = as_type<T>(word);
    } else {
      const vec<T, 2> pair = as_type<vec<T, 2>>(word);
      to[2 * j] = pair.x;
      to[2 * j + 1] = pair.y;
    }
  }
}

template <int BYTES> MSL_INLINE_CHECKED void copy_few_async(threadgroup float* to, const device float* from) {
  for (int j = 0; j < BYTES / 4; ++j) to[j] = from[j];
}
MSL_INLINE void wait_copies() {}

// Producers and consumers meet before and after each copy, at one barrier in the code, so that all reach the same one.
static __attribute__((noinline)) void meet() { metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup); }

template <int STAGES, int CONSUMER_WARPS, int PRODUCER_THREADS> struct Pipeline {
  int copied, read;
  uint epochs[STAGES];  // when producers wrote the blocks that this consumer holds: runtime/flights.h
  template <typename T> MSL_INLINE void open(threadgroup T*, uint) thread {
    copied = 0;
    read = -1;
    for (int stage = 0; stage < STAGES; ++stage) epochs[stage] = ~0u;
    meet();
  }
  MSL_INLINE int producer_acquire() thread {
    meet();
    return copied % STAGES;
  }
  MSL_INLINE void producer_commit() thread {
    ++copied;
    meet();
  }
  MSL_INLINE int consumer_wait() thread {
    ++read;
    meet();
    msl_take_stage(&epochs[read % STAGES]);
    meet();
    return read % STAGES;
  }
  MSL_INLINE uint zeros() const thread { return 0; }
  MSL_INLINE void consumer_release() thread { msl_release_stage(&epochs[(read + STAGES) % STAGES]); }
};
// On the CPU every simdgroup examines all parts.
template <int SIMDGROUPS> struct GroupVote {
  static MSL_INLINE int begin(uint) { return 0; }
  static MSL_INLINE int end(uint) { return SIMDGROUPS; }
  static MSL_INLINE bool all(bool own, uint) { return metal::simd_all(own); }
};
MSL_INLINE void fence_cta() {}
template <int> MSL_INLINE void group_barrier(uint) { metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup); }
MSL_INLINE void pin_register(thread uint&) {}

}  // namespace nv
