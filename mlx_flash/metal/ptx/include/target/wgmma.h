// Asynchronous products of warpgroups on Hopper.
#pragma once
#include "nv.h"

namespace nv {

// A matrix in threadgroup memory, as its descriptor says it: address, distance of panels, distance of groups of 8 rows,
// 128-byte swizzle. All lanes of a simdgroup name the same one.
template <typename T> struct Matrix {
  ulong bits;
  static MSL_INLINE Matrix of(threadgroup T* start, int panel) {
    const uint low = (NV_ADDRESS(start) >> 4 & 0x3fff) | (uint)(panel * sizeof(T) >> 4) << 16;
    return {(ulong)msl_from_lane(low, 0) | (ulong)(1024 >> 4 | 1u << 30) << 32};
  }
  // The part that begins so many elements after the start, at a column of its panel
  MSL_INLINE Matrix at(int elements, int column) const { return {bits + ((elements + column) * sizeof(T) >> 4)}; }
};

// The registers of C, for N columns
#define NV_REG(j) "+f"(c[0][j].x), "+f"(c[0][j].y), "+f"(c[1][j].x), "+f"(c[1][j].y)
#define NV_LIST_8 "%0, %1, %2, %3"
#define NV_REGS_8 NV_REG(0)
#define NV_LIST_16 NV_LIST_8 ", %4, %5, %6, %7"
#define NV_REGS_16 NV_REGS_8, NV_REG(1)
#define NV_LIST_24 NV_LIST_16 ", %8, %9, %10, %11"
#define NV_REGS_24 NV_REGS_16, NV_REG(2)
#define NV_LIST_32 NV_LIST_24 ", %12, %13, %14, %15"
#define NV_REGS_32 NV_REGS_24, NV_REG(3)
#define NV_LIST_40 NV_LIST_32 ", %16, %17, %18, %19"
#define NV_REGS_40 NV_REGS_32, NV_REG(4)
#define NV_LIST_48 NV_LIST_40 ", %20, %21, %22, %23"
#define NV_REGS_48 NV_REGS_40, NV_REG(5)
#define NV_LIST_56 NV_LIST_48 ", %24, %25, %26, %27"
#define NV_REGS_56 NV_REGS_48, NV_REG(6)
#define NV_LIST_64 NV_LIST_56 ", %28, %29, %30, %31"
#define NV_REGS_64 NV_REGS_56, NV_REG(7)
#define NV_LIST_72 NV_LIST_64 ", %32, %33, %34, %35"
#define NV_REGS_72 NV_REGS_64, NV_REG(8)
#define NV_LIST_80 NV_LIST_72 ", %36, %37, %38, %39"
#define NV_REGS_80 NV_REGS_72, NV_REG(9)
#define NV_LIST_88 NV_LIST_80 ", %40, %41, %42, %43"
#define NV_REGS_88 NV_REGS_80, NV_REG(10)
#define NV_LIST_96 NV_LIST_88 ", %44, %45, %46, %47"
#define NV_REGS_96 NV_REGS_88, NV_REG(11)
#define NV_LIST_104 NV_LIST_96 ", %48, %49, %50, %51"
#define NV_REGS_104 NV_REGS_96, NV_REG(12)
#define NV_LIST_112 NV_LIST_104 ", %52, %53, %54, %55"
#define NV_REGS_112 NV_REGS_104, NV_REG(13)
#define NV_LIST_120 NV_LIST_112 ", %56, %57, %58, %59"
#define NV_REGS_120 NV_REGS_112, NV_REG(14)
#define NV_LIST_128 NV_LIST_120 ", %60, %61, %62, %63"
#define NV_REGS_128 NV_REGS_120, NV_REG(15)
#define NV_LIST_136 NV_LIST_128 ", %64, %65, %66, %67"
#define NV_REGS_136 NV_REGS_128, NV_REG(16)
#define NV_LIST_144 NV_LIST_136 ", %68, %69, %70, %71"
#define NV_REGS_144 NV_REGS_136, NV_REG(17)
#define NV_LIST_152 NV_LIST_144 ", %72, %73, %74, %75"
#define NV_REGS_152 NV_REGS_144, NV_REG(18)
#define NV_LIST_160 NV_LIST_152 ", %76, %77, %78, %79"
#define NV_REGS_160 NV_REGS_152, NV_REG(19)
#define NV_LIST_168 NV_LIST_160 ", %80, %81, %82, %83"
#define NV_REGS_168 NV_REGS_160, NV_REG(20)
#define NV_LIST_176 NV_LIST_168 ", %84, %85, %86, %87"
#define NV_REGS_176 NV_REGS_168, NV_REG(21)
#define NV_LIST_184 NV_LIST_176 ", %88, %89, %90, %91"
#define NV_REGS_184 NV_REGS_176, NV_REG(22)
#define NV_LIST_192 NV_LIST_184 ", %92, %93, %94, %95"
#define NV_REGS_192 NV_REGS_184, NV_REG(23)
#define NV_LIST_200 NV_LIST_192 ", %96, %97, %98, %99"
#define NV_REGS_200 NV_REGS_192, NV_REG(24)
#define NV_LIST_208 NV_LIST_200 ", %100, %101, %102, %103"
#define NV_REGS_208 NV_REGS_200, NV_REG(25)
#define NV_LIST_216 NV_LIST_208 ", %104, %105, %106, %107"
#define NV_REGS_216 NV_REGS_208, NV_REG(26)
#define NV_LIST_224 NV_LIST_216 ", %108, %109, %110, %111"
#define NV_REGS_224 NV_REGS_216, NV_REG(27)
#define NV_LIST_232 NV_LIST_224 ", %112, %113, %114, %115"
#define NV_REGS_232 NV_REGS_224, NV_REG(28)
#define NV_LIST_240 NV_LIST_232 ", %116, %117, %118, %119"
#define NV_REGS_240 NV_REGS_232, NV_REG(29)
#define NV_LIST_248 NV_LIST_240 ", %120, %121, %122, %123"
#define NV_REGS_248 NV_REGS_240, NV_REG(30)
#define NV_LIST_256 NV_LIST_248 ", %124, %125, %126, %127"
#define NV_REGS_256 NV_REGS_248, NV_REG(31)
#define NV_EVERY_N(DO) DO(8) DO(16) DO(24) DO(32) DO(40) DO(48) DO(56) DO(64) DO(72) DO(80) DO(88) DO(96) DO(104) DO(112) DO(120) DO(128) \
  DO(136) DO(144) DO(152) DO(160) DO(168) DO(176) DO(184) DO(192) DO(200) DO(208) DO(216) DO(224) DO(232) DO(240) DO(248) DO(256)

#define NV_SHARED(N, TYPE)                                                                                            \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %[add], 0;\n\t"                                                 \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                                        \
               " {" NV_LIST_##N "}, %[a], %[b], p, 1, 1, 0, 0;\n\t}"                                                  \
               : NV_REGS_##N : [a] "l"(a.bits), [b] "l"(b.bits), [add] "r"((int)add) : "memory")
#define NV_REGISTERS(N, TYPE)                                                                                         \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                                        \
               " {" NV_LIST_##N "}, {%[a0], %[a1], %[a2], %[a3]}, %[b], 1, 1, 1, 1;"                                  \
               : NV_REGS_##N                                                                                          \
               : [a0] "r"(a.x), [a1] "r"(a.y), [a2] "r"(a.z), [a3] "r"(a.w), [b] "l"(b.bits) : "memory")
#define NV_REGISTERS_TF32(N)                                                                                          \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32"                                              \
               " {" NV_LIST_##N "}, {%[a0], %[a1], %[a2], %[a3]}, %[b], 1, 1, 1;"                                     \
               : NV_REGS_##N                                                                                          \
               : [a0] "r"(a.x), [a1] "r"(a.y), [a2] "r"(a.z), [a3] "r"(a.w), [b] "l"(b.bits) : "memory")

// C = A B^T, or C += A B^T: 16 columns of `a` (64 rows) and `b` (N rows)
template <typename T, int N>
MSL_INLINE void multiply_shared(
    thread vec<float, 2> (&c)[2][N / 8], Matrix<T> a, Matrix<T> b, int, bool add) {
#define NV_CASE(SIZE)                                 \
  if constexpr (N == SIZE) {                          \
    if constexpr (is_half_v<T>) NV_SHARED(SIZE, "f16"); \
    else NV_SHARED(SIZE, "bf16");                     \
  }
  NV_EVERY_N(NV_CASE)
#undef NV_CASE
}

// C += A B: A 64 x 16 in the registers of its simdgroups, B 16 rows x N columns. Of float32, of which the bits are used
// that TF32 has: C += A B^T with A 64 x 8, B N rows x 8 columns.
template <typename T, int N>
MSL_INLINE void multiply_registers(
    thread vec<float, 2> (&c)[2][N / 8], vec<uint, 4> a, Matrix<T> b) {
#define NV_CASE(SIZE)                                    \
  if constexpr (N == SIZE) {                             \
    if constexpr (sizeof(T) == 4) NV_REGISTERS_TF32(SIZE); \
    else if constexpr (is_half_v<T>) NV_REGISTERS(SIZE, "f16"); \
    else NV_REGISTERS(SIZE, "bf16");                     \
  }
  NV_EVERY_N(NV_CASE)
#undef NV_CASE
}

// C += 0, by a product with zeros
template <typename T, int N> MSL_INLINE void add_zero(thread vec<float, 2> (&c)[2][N / 8], uint zeros) {
  // 8 rows of 16 bytes without a swizzle, which stand for every part of the matrix
  const ulong bits = msl_from_lane(zeros >> 4 & 0x3fff, 0);
  multiply_registers<T, N>(c, vec<uint, 4>(0), Matrix<T>{bits});
}

// Keeps the values in their registers from here on.
MSL_INLINE void pin_register(thread vec<uint, 4>& a) { asm volatile("" : "+r"(a.x), "+r"(a.y), "+r"(a.z), "+r"(a.w)); }
template <int N> MSL_INLINE void pin_register(thread vec<float, 2> (&c)[2][N]) {
#pragma clang loop unroll(full)
  for (int j = 0; j < N; ++j) asm volatile("" : NV_REG(j));
}

// Makes earlier writes to threadgroup memory visible to the matrix unit, which reads through the async proxy.
MSL_INLINE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

// Products are asynchronous: a fence before each group, a commit after it; `wgmma_wait` returns when all groups but the
// last LATER are done. Nothing may touch their registers or operands before.
MSL_INLINE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }
MSL_INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }
template <int LATER> MSL_INLINE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(LATER) : "memory");
}

// Ping-pong scheduling of warpgroups: `wait` blocks until the warpgroup before has arrived, and the first one starts.
// `arrive` hands on to the next, if this warpgroup has waited.
template <int GROUPS> struct PingPong {
  uint own;
  bool waited;
  MSL_INLINE void open(uint thread_index) thread {
    own = msl_from_lane(thread_index / 128, 0);
    waited = own == GROUPS - 1;
    arrive();
  }
  MSL_INLINE void wait() thread {
    if (GROUPS > 1) asm volatile("barrier.cta.sync.aligned %0, 256;" : : "r"(1 + own) : "memory");
    waited = true;
  }
  MSL_INLINE void arrive() thread {
    const uint next = own + 1 == GROUPS ? 1 : own + 2;
    if (GROUPS > 1 && waited) asm volatile("barrier.cta.arrive.aligned %0, 256;" : : "r"(next) : "memory");
    waited = false;
  }
};

}  // namespace nv
