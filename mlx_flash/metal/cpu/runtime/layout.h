// What the runtime, the instrumented kernels and launch.py (through ctypes) agree on.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum {
  LANES = 32,             // threads of a simdgroup
  MAX_THREADS = 1024,     // of a threadgroup, as on Apple GPUs
  MAX_SIMDS = MAX_THREADS / LANES,
  MAX_BUFFERS = 64,
  MAX_VARIABLES = 64,     // threadgroup variables of one kernel
  MAX_REPORTS = 16,
  STACK_BITS = 17,        // 128 KiB of stack a fiber
  REGION_BITS = 28,       // one aligned region an OS thread: state in the lower half, stacks in the upper
};

enum Kind {               // why a launch is reported; report.py has the words
  REPORT_NONE,
  REPORT_OUT_OF_BOUNDS,
  REPORT_WRITE_TO_INPUT,
  REPORT_UNINITIALISED,
  REPORT_UNWRITTEN,
  REPORT_THREADGROUP_RACE,
  REPORT_DEVICE_RACE,
  REPORT_BARRIER_EXITED,
  REPORT_BARRIER_DIFFERENT,
  REPORT_INACTIVE_LANES,
  REPORT_THREADGROUP_BYTES,
  REPORT_MISALIGNED,
  REPORT_RAGGED,
  REPORT_STEP_LIMIT,
  REPORT_WILD,
  REPORT_OVERFLOW,
  REPORT_DIVISION,
  REPORT_ARRAY_BOUNDS,
  REPORT_RECURSION,
  REPORT_TENSOR_UNSET,
  REPORT_IN_FLIGHT,       // these are NVIDIA's, see flights.h
  REPORT_RELEASED_IN_FLIGHT,
  REPORT_RELEASED,
  REPORT_STAGE_HELD,
  REPORT_STAGE_RELEASED_TWICE,
  REPORT_ACCUMULATOR_IN_FLIGHT,
};

enum Space { SPACE_DEVICE, SPACE_THREADGROUP, SPACE_OTHER };

enum Schedule { SCHEDULE_FORWARD, SCHEDULE_REVERSED, SCHEDULE_RANDOM };

typedef struct {
  u8* base;
  u64 bytes;
  u32 item;               // bytes of one element, to turn an offset into an index
  u32 writable;
  u64 start;              // where element 0 is: not 0 when a stride is negative
  u32 shift, initialised; // log2 of the granule its shadow knows; whether reading before writing is right
  u8* shadow;             // check mode: a Cell of every granule, see shadow.h
} Buffer;

typedef struct {
  u32 kind, space, buffer, size;
  u32 is_write, other_is_write;
  u32 thread[3], group[3];
  u32 other_thread[3], other_group[3];
  u64 offset, pc, other_pc;
  u64 value;
} Report;

typedef struct {
  u64 matmuls, tensor_matmuls, exp2, log2, shuffles, reductions, group_barriers, simd_barriers;
  u64 loaded[3], stored[3];             // bytes by Space
  u64 reads[3], writes[3];              // accesses of a thread, by Space
  u64 buffer_loaded[MAX_BUFFERS], buffer_stored[MAX_BUFFERS];
} Counters;

typedef struct Order Order;
typedef struct {
  u32 grid[3], group[3], groups[3];
  u32 check, schedule, seed, stop;
  u32 tensor_layout, tensor_rounding;   // settings.py: 1 for the opaque layout, for truncation
  u64 total, next, step_limit, stride;
  u32 buffer_count, report_count;
  u8* window;             // check mode: buffers lie at window + (k << window_bits)
  u32 window_bits, arena_bytes;
  u32 arena_limit;        // bytes of threadgroup memory that the GPU grants
  u32 variable_size[MAX_VARIABLES];
  Buffer buffers[MAX_BUFFERS];
  Report reports[MAX_REPORTS];
  Counters counters;
  Order* order;           // check mode: what fences have ordered so far; null before the first
  u32 fence_time;         // of the latest fence
  u32 running;            // workers
} Launch;

typedef struct {
  void* stack;            // saved stack pointer
  void* perform;          // what the last lane to arrive calls
  void* combine;          // the kernel's own part of it: a reduction of its type
  u64 site;               // where it waits
  u32 local[3];           // thread_position_in_threadgroup
  u16 index, lane;
  u32 choice;             // flags of a simdgroup barrier, or products that a wait leaves in flight
  u32 issuing;            // an asynchronous product: what it reads stays in use until a wait
} Fiber;

typedef struct {
  float a[64], b[64], c[64];            // operands of a matmul, row by row
  u8 in[LANES][64], out[LANES][64];     // operands and results of shuffles and reductions
  u32 choice[LANES];
  u32 exists, alive, runnable, waiting, at_barrier;
  u32 mixed, epoch, device_epoch, size;
  u32 last;                             // lane that ran last
  u32 wrote;                            // since its last fence
  // Lanes, by Space: which have passed a fence that acquires, which may publish; fences.c. `pending`: which have read an atomic.
  u32 fresh[2], released[2], release_time[2], pending;
  u64 site;
} Simd;

typedef struct Worker Worker;
