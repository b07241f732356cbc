// The instructions of an NVIDIA GPU, done by the simulator: what is built on them runs on the CPU. Threadgroups of whole
// simdgroups only.
#pragma once
#define MSL_THREADS 32

extern "C" {
void msl_threadgroup_barrier(uint flags);
void msl_simdgroup_barrier(uint flags);
void msl_shuffle(__generic void* data, uint size, uint source);
uint msl_lane(void);
ulong msl_active(void);
typedef __generic char (*nvptx_slots)[64];
void msl_combine(
    __generic void* data, uint size, __generic void* result, uint result_size,
    void (*combine)(nvptx_slots, nvptx_slots, uint));
}

struct nvptx_votes { uint votes, active; };
inline void nvptx_vote(nvptx_slots in, nvptx_slots out, uint active) {
  uint votes = 0;
  for (int i = 0; i < 32; ++i) if ((active >> i & 1) && *(__generic bool*)in[i]) votes |= 1u << i;
  for (int i = 0; i < 32; ++i) *(__generic nvptx_votes*)out[i] = {votes, active};
}
MSL_INLINE nvptx_votes nvptx_ballot(bool vote) {
  nvptx_votes result;
  msl_combine(&vote, sizeof(bool), &result, sizeof(result), nvptx_vote);
  return result;
}
MSL_INLINE uint msl_ballot(bool vote) { return nvptx_ballot(vote).votes; }
MSL_INLINE uint msl_active_mask() { return nvptx_ballot(true).active; }
#ifdef MSL_CONVERGED
MSL_INLINE uint msl_lanes_here() { return ~0u; }
#else
MSL_INLINE uint msl_lanes_here() { return msl_active_mask(); }
#endif

// What a lane that is not there gives is anybody's guess. The simulator would report that it is asked.
MSL_INLINE void nvptx_shuffle(__generic void* data, uint size, uint source) {
  const bool there = msl_active_mask() >> (source & 31) & 1;
  msl_shuffle(data, size, there ? source : msl_lane());
  if (!there) for (uint i = 0; i < size; ++i) ((__generic uchar*)data)[i] = 0xa5;
}
MSL_INLINE uint msl_shuffle_word(uint word, uint source) {
  nvptx_shuffle(&word, 4, source);
  return word;
}
#define msl_shuffle nvptx_shuffle
