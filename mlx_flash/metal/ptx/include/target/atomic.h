// Atomics need no checks on a GPU; fences are instructions.
#pragma once

MSL_INLINE void msl_atomic(__generic void*, uint, uint) {}
MSL_INLINE void msl_atomic_seen(const __generic void*) {}

MSL_INLINE void msl_fence(uint, uint, uint scope) {
  if (scope == metal::thread_scope_device) __asm__ volatile("fence.sc.gpu;" ::: "memory");
  else __asm__ volatile("fence.sc.cta;" ::: "memory");
}
