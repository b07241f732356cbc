// Threads, lanes and barriers of an NVIDIA GPU. MSL_THREADS_X, _Y, _Z: the threadgroup, known when the kernel is compiled.
#pragma once

#define MSL_THREADS (MSL_THREADS_X * MSL_THREADS_Y * MSL_THREADS_Z)
#define MSL_SPECIAL(NAME, REGISTER)                              \
  MSL_INLINE uint NAME() {                                       \
    uint value;                                                  \
    __asm__("mov.u32 %0, %%" REGISTER ";" : "=r"(value));        \
    return value;                                                \
  }
MSL_SPECIAL(msl_lane, "laneid")

// Threadgroups are launched as one row of threads, x fastest.
MSL_INLINE uint msl_thread_index() { return __nvvm_read_ptx_sreg_tid_x(); }
MSL_INLINE uint msl_thread(uint axis) {
  const uint index = msl_thread_index();
  if (axis == 0) return MSL_THREADS_X == MSL_THREADS ? index : index % MSL_THREADS_X;
  if (axis == 1) return MSL_THREADS_Z == 1 ? index / MSL_THREADS_X : index / MSL_THREADS_X % MSL_THREADS_Y;
  return index / (MSL_THREADS_X * MSL_THREADS_Y);
}

MSL_INLINE uint msl_active_mask() {
  uint mask;
  __asm__ volatile("activemask.b32 %0;" : "=r"(mask));
  return mask;
}
MSL_INLINE ulong msl_active() { return msl_active_mask(); }

// The lanes that a simdgroup function waits for: those that are active. The hardware may not have brought all lanes together again
// after they parted, so a kernel that calls such functions only where all lanes come says so: MSL_CONVERGED. The last simdgroup of
// a threadgroup may be short.
MSL_INLINE uint msl_lanes_here() {
#ifdef MSL_CONVERGED
  if (MSL_THREADS % 32 == 0) return ~0u;
  const uint first = msl_thread_index() & ~31u;
  return first + 32 <= MSL_THREADS ? ~0u : (1u << (MSL_THREADS % 32)) - 1;
#else
  return msl_active_mask();
#endif
}

MSL_INLINE void msl_threadgroup_barrier(uint) { __asm__ volatile("bar.sync 0;" ::: "memory"); }
MSL_INLINE void msl_simdgroup_barrier(uint) { __asm__ volatile("bar.warp.sync %0;" ::"r"(msl_lanes_here()) : "memory"); }

// A word of lane `source`
MSL_INLINE uint msl_shuffle_word(uint word, uint source) {
  return (uint)__nvvm_shfl_sync_idx_i32(msl_lanes_here(), (int)word, (int)source, 31);
}
MSL_INLINE uint msl_ballot(bool vote) { return __nvvm_vote_ballot_sync(msl_lanes_here(), vote); }

MSL_INLINE void msl_shuffle(__generic void* data, uint size, uint source) {
  __generic uint* words = (__generic uint*)data;
  for (uint i = 0; i < size / 4; ++i) words[i] = msl_shuffle_word(words[i], source);
}
