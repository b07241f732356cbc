// What the instrumented kernel calls at every access to memory: the callbacks of clang's thread sanitizer and of its alignment and
// overflow sanitizers, without their runtimes.
#include "flights.h"
#include "system.h"

enum { POISON = 0x7fed };               // a NaN as half, as bfloat and, twice, as float
enum { READ, WRITE, ATOMIC, ATOMIC_STORE };

static void locate(Report* r, u32 space, u32 buffer, u64 offset, u32 size, u32 access) {
  if (!r) return;
  r->space = space;
  r->buffer = buffer;
  r->offset = offset;
  r->size = size;
  r->is_write = access != READ;
}

static void report_access(Worker* w, u32 kind, u32 space, u32 buffer, u64 offset, u32 size, u32 access, u64 pc) {
  locate(msl_report(w, this_fiber(w), kind, pc), space, buffer, offset, size, access);
  msl_abandon(w);
}

// Goes on: if the write comes later without a fence, it is a race, and that is the better report.
static void remember_uninitialised(Worker* w, u32 space, u32 buffer, u64 offset, u32 size, u64 pc) {
  if (w->has_pending) return;
  w->has_pending = 1;
  msl_fill_report(w, this_fiber(w), &w->pending, REPORT_UNINITIALISED, pc);
  locate(&w->pending, space, buffer, offset, size, READ);
}

// The threadgroup variable number k of the kernel: the first thread to meet its declaration places and poisons it.
EXPORTED void* msl_variable(u32 k, u32 size, u32 align) {
  Worker* w = this_worker();
  u64 pc = (u64)__builtin_return_address(0);
  while (w->variable_count <= k) w->variable_offset[w->variable_count++] = UNASSIGNED;
  if (w->variable_offset[k] != UNASSIGNED) return arena_of(w) + w->variable_offset[k];
  if (w->launch->check && w->ragged) msl_refuse_ragged(w, pc);
  w->arena_bytes = (w->arena_bytes + align - 1) / align * align + size;
  w->launch->variable_size[k] = w->variable_size[k] = size;
  if (w->arena_bytes > w->launch->arena_limit) report_access(w, REPORT_THREADGROUP_BYTES, SPACE_THREADGROUP, k, w->arena_bytes, size, READ, pc);
  u32 offset = w->arena_bytes - size;
  if (w->launch->check) {
    // Far apart, and aligned to no more than the declaration asks for.
    offset = k * VARIABLE_GAP + VARIABLE_START;
    if (align < 16) offset += align;
    w->variable_shift[k] = 2;
  }
  w->variable_offset[k] = offset;
  u8* memory = arena_of(w) + offset;
  for (u32 i = 0; i < size / 2; ++i) ((u16*)memory)[i] = POISON;
  if (size & 1) memory[size - 1] = 0xff;
  return memory;
}

static Cell* variable_cells(Worker* w, u32 k) { return (Cell*)(w->shadow + (u64)k * VARIABLE_GAP * sizeof(Cell)); }

// A narrower access than any before: what was known of a granule holds for each of its parts.
static void refine_variable(Worker* w, u32 k, u32 shift) {
  Cell* cells = variable_cells(w, k);
  u32 old = w->variable_shift[k], factor = 1u << (old - shift);
  for (u32 i = w->variable_size[k] >> old; i-- > 0;)
    for (u32 j = factor; j-- > 0;) cells[i * factor + j] = cells[i];
  w->variable_shift[k] = shift;
}

static inline Stamp stamp_of(Fiber* f, u64 group, u32 epoch, u32 simd_epoch, u32 access) {
  Stamp s = {0};
  s.group = group;
  s.epoch = epoch;
  s.simd_epoch = simd_epoch;
  s.thread = f->index;
  s.valid = 1;
  s.atomic = access >= ATOMIC;
  return s;
}

static void describe_race(Worker* w, Report* r, Cell before, int found) {
  Stamp other = found == RACE_WITH_READ ? before.read : before.write;
  r->other_is_write = found != RACE_WITH_READ;
  r->other_pc = (u64)image_start + (found == RACE_WITH_READ ? before.read_at : before.write_at);
  u32 sx = w->size[0], sy = w->size[1];
  r->other_thread[0] = other.thread % sx;
  r->other_thread[1] = other.thread / sx % sy;
  r->other_thread[2] = other.thread / (sx * sy);
  r->value = other.group;
}

static Report* report_race(Worker* w, u32 kind, u64 pc, Cell before, int found) {
  Report* r = msl_report(w, this_fiber(w), kind, pc);
  w->has_pending = 0;
  if (r) describe_race(w, r, before, found);
  return r;
}

static void doubt_write(Worker* w, Buffer* b, u32 k, u64 inside, u32 size, u64 pc, Cell before) {
  if (w->doubtful_size) return;         // another part of the same write
  w->doubtful = (const u8*)b->base + inside;
  w->doubtful_size = size;
  __builtin_memcpy(w->doubtful_bytes, w->doubtful, size);
  msl_fill_report(w, this_fiber(w), &w->doubt, REPORT_DEVICE_RACE, pc);
  describe_race(w, &w->doubt, before, RACE_WITH_WRITE);
  locate(&w->doubt, SPACE_DEVICE, k, inside, size, WRITE);
}

// A race by the barriers alone may be none by the fences.
static int despite_fences(Worker* w, Fiber* f, Cell before, Stamp now, u32 access, u32 space, int found) {
  if (!w->launch->order || (found != RACE_WITH_WRITE && found != RACE_WITH_READ)) return found;
  u64 writer = space == SPACE_DEVICE ? before.write.group : w->number, reader = space == SPACE_DEVICE ? before.read.group : w->number;
  if (unordered(before.write, now) && !msl_fences_order(w, f, before.write, before.write_time, writer, space)) return RACE_WITH_WRITE;
  if (access == READ || !unordered_readers(before.read, now)) return CLEAN;
  return msl_fences_order(w, f, before.read, before.read_time, reader, space) ? CLEAN : RACE_WITH_READ;
}

static void record_threadgroup(Worker* w, Fiber* f, u32 k, u32 inside, u32 size, u32 access, u64 pc) {
  u32 narrow = __builtin_ctz(size | (inside & 3) | 4);
  if (narrow < w->variable_shift[k]) refine_variable(w, k, narrow);
  u32 shift = w->variable_shift[k];
  Stamp now = stamp_of(f, w->serial, w->threadgroup_epoch, simd_of(w, f)->epoch, access);
  Cell* cells = variable_cells(w, k);
  u32 at = pc - (u64)image_start, time = w->launch->fence_time;
  if (access != READ) simd_of(w, f)->wrote = 1;
  if (w->asynchronous) msl_check_flights(w, f, k, inside, size, access != READ, cells[inside >> shift].write, pc);
  for (u32 i = inside >> shift; i <= (inside + size - 1) >> shift; ++i) {
    Cell* cell = &cells[i];
    if (!same_group(cell->write, now)) cell->write.bits = 0;
    if (!same_group(cell->read, now)) cell->read.bits = 0;
    Cell before = *cell;
    int found = access == READ ? record_read(cell, now, at, time, 0) : record_write(cell, now, at, time);
    found = despite_fences(w, f, before, now, access, SPACE_THREADGROUP, found);
    // The simdgroup itself learns by a wait that its product has read this: flights.c. Others need a barrier.
    if (access == READ && f->issuing) --cell->read.simd_epoch;
    if (access == ATOMIC && !before.write.valid) found = NEVER_WRITTEN;
    if (found == CLEAN) continue;
    if (found == NEVER_WRITTEN) {
      remember_uninitialised(w, SPACE_THREADGROUP, k, inside, size, pc);
      continue;
    }
    Report* r = report_race(w, REPORT_THREADGROUP_RACE, pc, before, found);
    locate(r, SPACE_THREADGROUP, k, inside, size, access);
    msl_abandon(w);
  }
}

static void record_device(Worker* w, Fiber* f, u32 k, Buffer* b, u64 inside, u32 size, u32 access, u64 pc) {
  u32 shift = b->shift;
  Stamp now = stamp_of(f, w->number, w->device_epoch, simd_of(w, f)->device_epoch, access);
  Cell* cells = (Cell*)b->shadow;
  u32 at = pc - (u64)image_start, time = w->launch->fence_time;
  if (access != READ) simd_of(w, f)->wrote = 1;
  // Part of a granule only: its other part may be someone else's, so no race can be told.
  int part = ((inside | size) & ((1u << shift) - 1)) != 0;
  for (u64 i = inside >> shift; i <= (inside + size - 1) >> shift; ++i) {
    Cell before = cells[i];
    int initialised = b->initialised || access >= ATOMIC;
    int found = access == READ ? record_read(&cells[i], now, at, time, initialised) : record_write(&cells[i], now, at, time);
    found = despite_fences(w, f, before, now, access, SPACE_DEVICE, found);
    if (access == ATOMIC && !before.write.valid && !b->initialised) found = NEVER_WRITTEN;
    if (found == CLEAN || (part && found != NEVER_WRITTEN)) continue;
    if (found == NEVER_WRITTEN) {
      remember_uninitialised(w, SPACE_DEVICE, k, inside, size, pc);
      continue;
    }
    if (found == RACE_WITH_WRITE && access == WRITE) {
      doubt_write(w, b, k, inside, size, pc, before);
      continue;
    }
    Report* r = report_race(w, REPORT_DEVICE_RACE, pc, before, found);
    locate(r, SPACE_DEVICE, k, inside, size, access);
    msl_abandon(w);
  }
}

static inline void check_step(Worker* w, u64 pc) {
  if (!--w->steps_left) msl_next_turn(w, this_fiber(w), pc);
}

static inline void access(const void* address, u32 size, u32 kind, u64 pc) {
  Worker* w = this_worker();
  if (w->doubtful_size && msl_doubt_was_race(w)) msl_abandon(w);
  Launch* launch = w->launch;
  u64 in_region = (u64)address - (u64)w;
  if (in_region < REGION_BYTES) {
    if (in_region - ARENA_OFFSET >= STACKS_OFFSET - ARENA_OFFSET) return;   // the fiber's own stack, or our state
    u32 offset = in_region - ARENA_OFFSET, k = offset / VARIABLE_GAP;
    u32 inside = k < w->variable_count ? offset - w->variable_offset[k] : UNASSIGNED;
    check_step(w, pc);
    if (inside == UNASSIGNED || inside + size > w->variable_size[k] || inside >= w->variable_size[k])
      report_access(w, REPORT_OUT_OF_BOUNDS, SPACE_THREADGROUP, k, (u64)(long long)(int)inside, size, kind, pc);
    w->counters.loaded[SPACE_THREADGROUP] += kind == WRITE ? 0 : size;
    w->counters.stored[SPACE_THREADGROUP] += kind == READ ? 0 : size;
    w->counters.reads[SPACE_THREADGROUP] += kind != WRITE;
    w->counters.writes[SPACE_THREADGROUP] += kind != READ;
    record_threadgroup(w, this_fiber(w), k, inside, size, kind, pc);
    return;
  }
  u64 k = ((u64)address - (u64)launch->window) >> launch->window_bits;
  if (k < launch->buffer_count) {
    Buffer* b = &launch->buffers[k];
    u64 inside = (u64)address - (u64)b->base;
    check_step(w, pc);
    if (inside >= b->bytes || inside + size > b->bytes) report_access(w, REPORT_OUT_OF_BOUNDS, SPACE_DEVICE, k, inside, size, kind, pc);
    w->counters.loaded[SPACE_DEVICE] += kind == WRITE ? 0 : size;
    w->counters.stored[SPACE_DEVICE] += kind == READ ? 0 : size;
    w->counters.reads[SPACE_DEVICE] += kind != WRITE;
    w->counters.writes[SPACE_DEVICE] += kind != READ;
    w->counters.buffer_loaded[k] += kind == WRITE ? 0 : size;
    w->counters.buffer_stored[k] += kind == READ ? 0 : size;
    if (b->writable) record_device(w, this_fiber(w), k, b, inside, size, kind, pc);
    else if (kind != READ) report_access(w, REPORT_WRITE_TO_INPUT, SPACE_DEVICE, k, inside, size, kind, pc);
    return;
  }
  if ((u64)address - (u64)image_start < (u64)(image_end - image_start)) return;   // tables in the constant space
  if ((u64)address - (u64)w->shadow < SHADOW_BYTES) return;
  report_access(w, REPORT_WILD, SPACE_OTHER, 0, (u64)address, size, kind, pc);
}

static void access_range(const void* address, u64 bytes, u32 kind, u64 pc) {
  const u8* at = address;
  for (; bytes >= 16; bytes -= 16, at += 16) access(at, 16, kind, pc);
  for (; bytes >= 4; bytes -= 4, at += 4) access(at, 4, kind, pc);
  for (; bytes; --bytes, ++at) access(at, 1, kind, pc);
}

static void report_misaligned(void* p, u64 pc) {
  Worker* w = this_worker();
  u64 k = ((u64)p - (u64)w->launch->window) >> w->launch->window_bits;
  u32 offset = (u64)p - (u64)w - ARENA_OFFSET;
  if (k < w->launch->buffer_count) report_access(w, REPORT_MISALIGNED, SPACE_DEVICE, k, (u64)p - (u64)w->launch->buffers[k].base, 0, READ, pc);
  k = offset / VARIABLE_GAP;
  if (k < w->variable_count) report_access(w, REPORT_MISALIGNED, SPACE_THREADGROUP, k, offset - w->variable_offset[k], 0, READ, pc);
  report_access(w, REPORT_MISALIGNED, SPACE_OTHER, 0, (u64)p, 0, READ, pc);
}
// What the compiler takes to be aligned: a vector is copied as a whole, without a check of its own.
static inline void aligned_access(void* p, u32 size, u32 kind, u64 pc) {
  if ((u64)p % (size < 8 ? size : 8)) report_misaligned(p, pc);
  access(p, size, kind, pc);
}

#define HERE ((u64)__builtin_return_address(0))
#define CALLBACK(SIZE)                                                                                  \
  EXPORTED void __tsan_read##SIZE(void* p) { aligned_access(p, SIZE, READ, HERE); }                     \
  EXPORTED void __tsan_write##SIZE(void* p) { aligned_access(p, SIZE, WRITE, HERE); }                   \
  EXPORTED void __tsan_unaligned_read##SIZE(void* p) { access(p, SIZE, READ, HERE); }                   \
  EXPORTED void __tsan_unaligned_write##SIZE(void* p) { access(p, SIZE, WRITE, HERE); }                 \
  EXPORTED void __tsan_read_write##SIZE(void* p) { access(p, SIZE, READ, HERE); access(p, SIZE, WRITE, HERE); }
CALLBACK(1)
CALLBACK(2)
CALLBACK(4)
CALLBACK(8)
CALLBACK(16)
EXPORTED void __tsan_init(void) {}

EXPORTED void* __tsan_memcpy(void* to, const void* from, u64 bytes) {
  access_range(from, bytes, READ, HERE);
  access_range(to, bytes, WRITE, HERE);
  return __builtin_memcpy(to, from, bytes);
}
EXPORTED void* __tsan_memmove(void* to, const void* from, u64 bytes) {
  access_range(from, bytes, READ, HERE);
  access_range(to, bytes, WRITE, HERE);
  return __builtin_memmove(to, from, bytes);
}
EXPORTED void* __tsan_memset(void* to, int value, u64 bytes) {
  access_range(to, bytes, WRITE, HERE);
  return __builtin_memset(to, value, bytes);
}

// -fsanitize=alignment: the type promises more than the address keeps.
EXPORTED void __ubsan_handle_type_mismatch_v1_abort(void* data, void* p) {
  (void)data;
  report_misaligned(p, HERE);
}

// The shim's atomics announce themselves; `stores` says that the operation does not read.
EXPORTED void msl_atomic(void* p, u32 size, u32 stores) {
  Worker* w = this_worker();
  if (!w->launch->check) return;
  if ((u64)p % size) report_misaligned(p, HERE);
  access(p, size, stores ? ATOMIC_STORE : ATOMIC, HERE);
  msl_publish(w, this_fiber(w), p, stores);
}

// -fsanitize=signed-integer-overflow and implicit truncation: an index that does not fit its 32 bits.
#define OVERFLOW(NAME)                                                              \
  EXPORTED void __ubsan_handle_##NAME##_abort(void* data, u64 a, u64 b) {           \
    (void)data;                                                                     \
    report_access(this_worker(), REPORT_OVERFLOW, SPACE_OTHER, 0, a, 0, READ, HERE); \
  }
OVERFLOW(add_overflow)
OVERFLOW(sub_overflow)
OVERFLOW(mul_overflow)
OVERFLOW(negate_overflow)
// A promoted byte that becomes a byte again is meant: only what should have fitted 32 bits is an index.
typedef struct { u16 kind, info; char name[]; } Type;
typedef struct { const char* file; u32 line, column; const Type *from, *to; } Conversion;
EXPORTED void __ubsan_handle_implicit_conversion(const Conversion* data, u64 a, u64 b) {
  (void)b;
  if (data->to->info >> 1 >= 5) report_access(this_worker(), REPORT_OVERFLOW, SPACE_OTHER, 0, a, 0, READ, HERE);
}

static int contains(const char* name, const char* wanted) {
  for (; *name; ++name) {
    u32 same = 0;
    while (wanted[same] && name[same] == wanted[same]) ++same;
    if (!wanted[same]) return 1;
  }
  return 0;
}

static void report_index(u64 index, u64 pc) {
  report_access(this_worker(), REPORT_ARRAY_BOUNDS, SPACE_OTHER, 0, (u64)(long long)(int)index, 0, READ, pc);
}

// -fsanitize=array-bounds: an array of the thread's own, which lies on its stack, a member of an object, or a constant
// of the text. Of buffers and threadgroup memory the access itself is reported, with more words.
typedef struct { const char* file; u32 line, column; const Type* array; } ArrayAccess;
EXPORTED void __ubsan_handle_out_of_bounds(const ArrayAccess* data, u64 index) {
  const char* name = data->array->name;
  if (contains(name, "__private") || contains(name, "__generic") || contains(name, "__constant")) report_index(index, HERE);
}

// A component that a vector does not have: target/components.h.
EXPORTED void msl_outside(int index) { report_index((u64)(long long)index, HERE); }

// -fsanitize=integer-divide-by-zero, in both modes: x86-64 would end the process.
EXPORTED void __ubsan_handle_divrem_overflow_abort(void* data, u64 a, u64 b) {
  (void)data;
  (void)b;
  report_access(this_worker(), REPORT_DIVISION, SPACE_OTHER, 0, a, 0, READ, HERE);
}
