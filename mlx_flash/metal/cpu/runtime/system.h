// What Linux and macOS do differently: anonymous memory, the ends of the loaded library, names in assembly.
#pragma once
#include "layout.h"

void* mmap(void*, unsigned long, int, int, int, long);
int munmap(void*, unsigned long);
int madvise(void*, unsigned long, int);

enum { READ_WRITE = 3, PRIVATE = 2, FIXED = 0x10 };

#ifdef __APPLE__
enum { ANONYMOUS = 0x1000, NO_RESERVE = 0x40 };
// Where the library is loaded, and the end of what is loaded of it.
extern const u8 image_start[] __asm("___dso_handle");
extern const u8 image_end[] __asm("segment$start$__LINKEDIT");
#define ASM_NAME(name) "_" name
#define ASM_FUNCTION(name) ".private_extern _" name "\n.globl _" name "\n.p2align 2\n_" name ":\n"
#else
enum { ANONYMOUS = 0x20, NO_RESERVE = 0x4000, NO_HUGE_PAGES = 15, FORGET_PAGES = 4 };
extern const u8 image_start[] __asm("__ehdr_start") __attribute__((visibility("hidden")));
extern const u8 image_end[] __asm("_end") __attribute__((visibility("hidden")));
#define ASM_NAME(name) name
#define ASM_FUNCTION(name) ".hidden " name "\n.globl " name "\n.type " name ",%function\n.p2align 2\n" name ":\n"
#endif

enum { LARGEST_PAGE = 1 << 16 };        // 4 KiB on x86-64, 16 KiB on Apple silicon, up to 64 KiB on Linux for arm64

// Address space that takes memory page by page when touched; null where there is none.
static inline u8* reserve(u64 bytes) {
  u8* memory = mmap(0, bytes, READ_WRITE, PRIVATE | ANONYMOUS | NO_RESERVE, -1, 0);
  return memory == (u8*)-1 ? 0 : memory;
}

// Gives back the memory of whole pages, which hold zeros when next touched.
static inline void forget(u8* start, u64 bytes) {
#ifdef __APPLE__
  // madvise leaves the old bytes there.
  mmap(start, bytes, READ_WRITE, PRIVATE | ANONYMOUS | NO_RESERVE | FIXED, -1, 0);
#else
  madvise(start, bytes, FORGET_PAGES);
#endif
}

// Small pages for sparse memory: a thousand stacks on 2 MiB pages would clear 128 MiB at the first launch.
static inline void use_small_pages(u8* start, u64 bytes) {
#ifndef __APPLE__
  madvise(start, bytes, NO_HUGE_PAGES);
#endif
}
