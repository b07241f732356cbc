// Runs one recorded launch on a machine without Python. Input: a Launch whose buffers have no address yet, then the bytes of each
// buffer in order. Output: the Launch as it was left, then the bytes of the buffers again.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "layout.h"

void msl_run(Launch*, void*);
void* msl_create_region(void);
void* msl_reserve(u64);

enum { WINDOW_BITS = 30, WORKERS = 2 };

static Launch launch;

static void* work(void* region) {
  msl_run(&launch, region);
  return 0;
}

static void copy(void* data, u64 bytes, int writing, FILE* file) {
  u64 done = writing ? fwrite(data, 1, bytes, file) : fread(data, 1, bytes, file);
  if (done != bytes) exit(2);
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  FILE* in = fopen(arguments[1], "rb");
  FILE* out = fopen(arguments[2], "wb");
  if (!in || !out) return 2;
  copy(&launch, sizeof launch, 0, in);
  u8* window = msl_reserve((u64)MAX_BUFFERS << WINDOW_BITS);
  if (!window) return 3;
  launch.window = window;
  launch.window_bits = WINDOW_BITS;
  for (u32 i = 0; i < launch.buffer_count; ++i) {
    Buffer* b = &launch.buffers[i];
    b->base = window + ((u64)i << WINDOW_BITS) + (1 << (WINDOW_BITS - 2));
    b->shadow = window + ((u64)i << WINDOW_BITS) + (1 << (WINDOW_BITS - 1));
    copy(b->base, b->bytes, 0, in);
  }
  pthread_t threads[WORKERS];
  for (int i = 0; i < WORKERS; ++i)
    if (pthread_create(&threads[i], 0, work, msl_create_region())) return 4;
  for (int i = 0; i < WORKERS; ++i) pthread_join(threads[i], 0);
  copy(&launch, sizeof launch, 1, out);
  for (u32 i = 0; i < launch.buffer_count; ++i) copy(launch.buffers[i].base, launch.buffers[i].bytes, 1, out);
  return fclose(out);
}
