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

// The source is read as one access, so that its alignment is checked.
template <typename T> MSL_INLINE_CHECKED void copy_async(threadgroup T* to, const device T* from, int bytes) {
  typedef uint Chunk __attribute__((ext_vector_type(4)));
  const Chunk chunk = bytes > 0 ? *(const device Chunk*)from : (Chunk)(0);
  for (int j = 0; j < 4; ++j) {
    const vec<T, 2> pair = as_type<vec<T, 2>>((uint)chunk[j]);
    to[2 * j] = 4 * j < bytes ? pair.x : T(0);
    to[2 * j + 1] = 4 * j < bytes ? pair.y : T(0);
  }
}

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
MSL_INLINE void pin_register(thread uint&) {}

}  // namespace nv
