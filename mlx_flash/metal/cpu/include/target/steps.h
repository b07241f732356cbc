// Counts the rounds of loops. The steps left stand where the region of the stack starts: runtime/worker.h.
#pragma once

extern "C" void msl_out_of_steps(void);
inline __attribute__((always_inline, nodebug, no_sanitize("thread"))) void msl_count_step() {
  __private unsigned long& left = *(__private unsigned long*)((unsigned long)__builtin_frame_address(0) >> 28 << 28);
  if (__builtin_expect(!--left, 0)) msl_out_of_steps();
}
#define msl_step() (__builtin_is_constant_evaluated() || (msl_count_step(), true))
