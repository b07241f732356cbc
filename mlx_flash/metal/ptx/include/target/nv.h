// Instructions of tensor cores, each as one instruction of PTX.
#pragma once

namespace nv {

// Newer GPUs put a thread to sleep while it waits.
#if MSL_SM >= 90
#define NV_WAIT "try_wait"
#else
#define NV_WAIT "test_wait"
#endif
#define NV_VOTE_BARRIER 4  // of the 16 that a threadgroup has; PingPong uses the lower ones
#define NV_ADDRESS(POINTER) ((uint)(ulong)(POINTER))

// Two floats, rounded to nearest even, as one register of 16-bit elements: the first in the low half
template <typename T> MSL_INLINE uint narrow_pair(vec<float, 2> pair) {
  uint halves;
  if constexpr (is_half_v<T>) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(pair.y), "f"(pair.x));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(pair.y), "f"(pair.x));
  return halves;
}
template <typename T> MSL_INLINE uint narrow_pair(vec<T, 2> pair) { return as_type<uint>(pair); }

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
#define NV_MULTIPLY_TF32()                                                                                          \
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "           \
      "{%0, %1, %2, %3};"                                                                                           \
      : "+f"(upper.x), "+f"(upper.y), "+f"(lower.x), "+f"(lower.y)                                                  \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y))
// C += A B: 16 x 8, rows 0-7 in `upper` and 8-15 in `lower`. Of floats the bits are used that TF32 has.
template <typename T>
MSL_INLINE void multiply(thread vec<float, 2>& upper, thread vec<float, 2>& lower, vec<uint, 4> a, vec<uint, 2> b) {
  if constexpr (sizeof(T) == 4) NV_MULTIPLY_TF32();
  else if constexpr (is_half_v<T>) NV_MULTIPLY("f16");
  else NV_MULTIPLY("bf16");
}

// Keeps the compiler from computing the value, or anything from it, earlier than here.
MSL_INLINE void pin_register(thread uint& value) { asm volatile("" : "+r"(value)); }

// 16 bytes to threadgroup memory without waiting; the first `bytes` of them are read, the others are zero.
template <typename T> MSL_INLINE void copy_async(threadgroup T* to, const device T* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(NV_ADDRESS(to)), "l"(from), "r"(bytes) : "memory");
}
// Waits for all copies of this thread.
MSL_INLINE void wait_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// The same for 4 or 8 bytes, of which all are read
template <int BYTES> MSL_INLINE void copy_few_async(threadgroup float* to, const device float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" : : "r"(NV_ADDRESS(to)), "l"(from), "n"(BYTES) : "memory");
}

// A pipeline of STAGES buffers that producer threads fill and consumer warps read in turn. Two mbarriers a stage: `full`,
// when a block has arrived, and `empty`, when every consumer has released it.
template <int STAGES, int CONSUMER_WARPS, int PRODUCER_THREADS> struct Pipeline {
  uint full, empty;  // addresses of the barriers: one for each stage
  int copied, read;  // blocks so far

  template <typename T> MSL_INLINE void open(threadgroup T* memory, uint thread_index) thread {
    full = NV_ADDRESS(memory);
    empty = full + 8 * STAGES;
    copied = 0;
    read = -1;
    if (thread_index == 0)
      for (int stage = 0; stage < STAGES; ++stage) {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(full + 8 * stage), "n"(PRODUCER_THREADS) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(empty + 8 * stage), "n"(CONSUMER_WARPS) : "memory");
      }
#if MSL_SM >= 90
    if (thread_index < 32) ((threadgroup uint*)memory)[128 + thread_index] = 0;
#endif
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
  // Waits until all consumers have released the stage's previous block; returns the stage to copy to.
  MSL_INLINE int producer_acquire() thread {
    const int stage = copied % STAGES, turn = copied / STAGES;
    if (turn > 0) wait(empty + 8 * stage, (turn - 1) & 1);
    return stage;
  }
  MSL_INLINE void producer_commit() thread {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" : : "r"(full + 8 * (copied % STAGES)) : "memory");
    ++copied;
  }
  // Waits until the next block has arrived; returns its stage.
  MSL_INLINE int consumer_wait() thread {
    ++read;
    wait(full + 8 * (read % STAGES), read / STAGES & 1);
    return read % STAGES;
  }
  // 128 bytes of zeros, behind the barriers
  MSL_INLINE uint zeros() const thread { return full + 512; }
  // One lane arrives for its simdgroup.
  MSL_INLINE void consumer_release() thread {
    asm volatile("{\n\t.reg .b64 state;\n\t.reg .b32 lane;\n\t.reg .pred p;\n\tbar.warp.sync 0xffffffff;\n\tmov.u32 lane, %%laneid;\n\t"
                 "setp.eq.u32 p, lane, 0;\n\t@p mbarrier.arrive.shared.b64 state, [%0];\n\t}"
                 : : "r"(empty + 8 * (read % STAGES)) : "memory");
  }
  static MSL_INLINE void wait(uint barrier, int parity) {
    uint done;
    do {
      asm volatile("{\n\t.reg .pred p;\n\tmbarrier." NV_WAIT ".parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                   : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    } while (!done);
  }
};
// A vote of the SIMDGROUPS simdgroups of a warpgroup. Each examines parts `begin` to `end` of SIMDGROUPS; `all` then
// returns the conjunction to every one of them.
template <int SIMDGROUPS> struct GroupVote {
  static MSL_INLINE int begin(uint thread_index) { return thread_index / 32 % SIMDGROUPS; }
  static MSL_INLINE int end(uint thread_index) { return begin(thread_index) + 1; }
  static MSL_INLINE bool all(bool own, uint thread_index) {
    if (SIMDGROUPS == 1) return metal::simd_all(own);
    uint every;
    asm volatile("{\n\t.reg .pred p, q;\n\tsetp.ne.u32 p, %1, 0;\n\tbarrier.cta.red.and.aligned.pred q, %2, %3, p;\n\t"
                 "selp.u32 %0, 1, 0, q;\n\t}"
                 : "=r"(every) : "r"((uint)own), "r"(NV_VOTE_BARRIER + thread_index / (32 * SIMDGROUPS)), "n"(32 * SIMDGROUPS)
                 : "memory");
    return every != 0;
  }
};
// A barrier of the SIMDGROUPS simdgroups of a warpgroup
template <int SIMDGROUPS> MSL_INLINE void group_barrier(uint thread_index) {
  if (SIMDGROUPS == 1) metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
  else asm volatile("barrier.cta.sync.aligned %0, %1;"
                    : : "r"(NV_VOTE_BARRIER + thread_index / (32 * SIMDGROUPS)), "n"(32 * SIMDGROUPS) : "memory");
}
// Orders earlier stores of this thread before later ones, for the whole threadgroup.
MSL_INLINE void fence_cta() { asm volatile("fence.acq_rel.cta;" : : : "memory"); }

}  // namespace nv
