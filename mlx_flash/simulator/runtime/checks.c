// What the instrumented kernel calls at every access to memory (the callbacks of -fsanitize=thread, without its runtime), and the
// bookkeeping of threadgroup variables.
#include "worker.h"

enum { POISON = 0x7fed };               // a NaN as half, as bfloat and, twice, as float

static void report_access(Worker* w, u32 kind, u32 space, u32 buffer, u64 offset, u32 size, u32 is_write, u64 pc) {
  Report* r = msl_report(w, this_fiber(w), kind, pc);
  if (r) {
    r->space = space;
    r->buffer = buffer;
    r->offset = offset;
    r->size = size;
    r->is_write = is_write;
  }
  msl_abandon(w);
}

HIDDEN void msl_inactive(Worker* w, Fiber* f, u32 active, u32 wanted) {
  Report* r = msl_report(w, f, REPORT_INACTIVE_LANES, f->site);
  if (r) {
    r->offset = active;
    r->value = wanted;
  }
  msl_abandon(w);
}

HIDDEN void msl_begin_group(Worker* w) {
  w->arena_top = w->arena_bytes = 0;
  for (u32 i = 0; i < w->variable_count; ++i) w->variable_offset[i] = UNASSIGNED;
  w->variable_count = 0;
}

HIDDEN void msl_end_group(Worker* w) {
  if (w->arena_bytes > w->launch->arena_bytes) w->launch->arena_bytes = w->arena_bytes;
}

// The threadgroup variable number k of the kernel: the first thread to meet its declaration places and poisons it.
EXPORTED void* msl_variable(u32 k, u32 size, u32 align) {
  Worker* w = this_worker();
  while (w->variable_count <= k) w->variable_offset[w->variable_count++] = UNASSIGNED;
  if (w->variable_offset[k] != UNASSIGNED) return arena_of(w) + w->variable_offset[k];
  w->arena_bytes = (w->arena_bytes + align - 1) / align * align + size;
  if (w->arena_bytes > ARENA_LIMIT) report_access(w, REPORT_THREADGROUP_BYTES, SPACE_THREADGROUP, k, w->arena_bytes, size, 0, (u64)__builtin_return_address(0));
  u32 offset = w->arena_bytes - size;
  if (w->launch->check) {
    // Far apart, and aligned to no more than the declaration asks for.
    offset = k * VARIABLE_GAP + VARIABLE_START;
    if (align < 16) offset += align;
  }
  w->variable_offset[k] = offset;
  w->launch->variable_size[k] = w->variable_size[k] = size;
  u8* memory = arena_of(w) + offset;
  for (u32 i = 0; i < size / 2; ++i) ((u16*)memory)[i] = POISON;
  if (size & 1) memory[size - 1] = 0xff;
  return memory;
}

static inline void access(const void* address, u32 size, u32 is_write, u64 pc) {
  Worker* w = this_worker();
  Launch* launch = w->launch;
  u64 in_region = (u64)address - (u64)w;
  if (in_region < REGION_BYTES) {
    if (in_region - ARENA_OFFSET >= STACKS_OFFSET - ARENA_OFFSET) return;   // the fiber's own stack, or our state
    u32 offset = in_region - ARENA_OFFSET;
    u32 k = offset / VARIABLE_GAP;
    u32 inside = offset - w->variable_offset[k < MAX_VARIABLES ? k : 0];
    if (k >= w->variable_count || inside + size > w->variable_size[k] || inside >= w->variable_size[k])
      report_access(w, REPORT_OUT_OF_BOUNDS, SPACE_THREADGROUP, k, (u64)(long long)(int)inside, size, is_write, pc);
    return;
  }
  u64 in_window = (u64)address - (u64)launch->window;
  u32 k = in_window >> launch->window_bits;
  if (in_window >> launch->window_bits < launch->buffer_count) {
    Buffer* b = &launch->buffers[k];
    u64 inside = (u64)address - (u64)b->base;
    if (inside >= b->bytes || inside + size > b->bytes)
      report_access(w, REPORT_OUT_OF_BOUNDS, SPACE_DEVICE, k, inside, size, is_write, pc);
    if (is_write && !b->writable) report_access(w, REPORT_WRITE_TO_INPUT, SPACE_DEVICE, k, inside, size, is_write, pc);
  }
}

#define CALLBACK(SIZE)                                                                                                      \
  EXPORTED void __tsan_read##SIZE(void* p) { access(p, SIZE, 0, (u64)__builtin_return_address(0)); }                       \
  EXPORTED void __tsan_write##SIZE(void* p) { access(p, SIZE, 1, (u64)__builtin_return_address(0)); }                      \
  EXPORTED void __tsan_unaligned_read##SIZE(void* p) { access(p, SIZE, 0, (u64)__builtin_return_address(0)); }             \
  EXPORTED void __tsan_unaligned_write##SIZE(void* p) { access(p, SIZE, 1, (u64)__builtin_return_address(0)); }
CALLBACK(1)
CALLBACK(2)
CALLBACK(4)
CALLBACK(8)
CALLBACK(16)
EXPORTED void __tsan_init(void) {}
