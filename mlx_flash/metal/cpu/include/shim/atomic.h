// metal_atomic: relaxed atomics on int, uint, long, ulong, bool and float, in device and threadgroup memory.
#pragma once
#include "simdgroup.h"

#include <target/atomic.h>

namespace metal {

// Of another type: only fences are sequentially consistent.
enum memory_order { memory_order_relaxed = 0 };
enum msl_fence_order { memory_order_acquire = 2, memory_order_release = 3, memory_order_acq_rel = 4, memory_order_seq_cst = 5 };

template <typename T, typename = void> struct atomic {
  static_assert(__is_same(T, int) || __is_same(T, uint) || __is_same(T, bool) || __is_same(T, float) || __is_same(T, ulong),
                "atomic<T> needs int, uint, bool, float or ulong");
  T msl_value;
  atomic() = default;
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

template <typename T> struct msl_bits { typedef T type; };
template <> struct msl_bits<float> { typedef uint type; };
template <> struct msl_bits<bool> { typedef uchar type; };

// Replaces the value by change(value), atomically; returns the old one.
template <typename T, typename F> MSL_INLINE T msl_change(__generic T* p, T operand, F change) {
  using B = typename msl_bits<T>::type;
  __generic B* bits = (__generic B*)p;
  msl_atomic(p, sizeof(T), 0);
  B old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    T before = __builtin_bit_cast(T, old);
    B wanted = __builtin_bit_cast(B, change(before, operand));
    if (__atomic_compare_exchange_n(bits, &old, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      msl_atomic_seen(p);
      return before;
    }
  }
}

// Which types an operation takes where: floats are in device memory, and 64 bits know the least and the largest value alone.
#define MSL_ATOMIC_TYPE(T, DEVICE)                                                                                            \
  static_assert(!__is_same(T, float) || DEVICE, "atomics of float are in device memory, not in threadgroup memory");           \
  static_assert(!__is_same(T, ulong), "atomics of 64 bits have atomic_min_explicit and atomic_max_explicit alone")
#define MSL_ATOMIC_CHANGE(SPACE, DEVICE, NAME, FLOAT, RESULT)                                                                          \
  template <typename T> MSL_INLINE_CHECKED T atomic_fetch_##NAME##_explicit(volatile SPACE atomic<T>* p, msl_same_t<T> v, memory_order) { \
    MSL_ATOMIC_TYPE(T, DEVICE);                                                                         \
    static_assert(!__is_same(T, bool), "atomics of bool are loaded, stored and exchanged; they do not calculate");      \
    static_assert(!__is_same(T, float) || FLOAT, "float atomics only add and subtract");                \
    struct change { MSL_INLINE T operator()(T a, T b) const { (void)b; return RESULT; } };                                       \
    return msl_change((__generic T*)&p->msl_value, v, change());                                                        \
  }
#define MSL_ATOMICS(SPACE, DEVICE)                                                                                              \
  MSL_ATOMIC_CHANGE(SPACE, DEVICE, add, true, a + b) MSL_ATOMIC_CHANGE(SPACE, DEVICE, sub, true, a - b)                                             \
  MSL_ATOMIC_CHANGE(SPACE, DEVICE, and, false, a & b) MSL_ATOMIC_CHANGE(SPACE, DEVICE, or, false, a | b) MSL_ATOMIC_CHANGE(SPACE, DEVICE, xor, false, a ^ b)         \
  MSL_ATOMIC_CHANGE(SPACE, DEVICE, min, false, b < a ? b : a) MSL_ATOMIC_CHANGE(SPACE, DEVICE, max, false, a < b ? b : a)                             \
  template <typename T> MSL_INLINE_CHECKED T atomic_exchange_explicit(volatile SPACE atomic<T>* p, msl_same_t<T> v, memory_order) { \
    MSL_ATOMIC_TYPE(T, DEVICE);                                                                                          \
    struct change { MSL_INLINE T operator()(T, T b) const { return b; } };                                              \
    return msl_change((__generic T*)&p->msl_value, v, change());                                                        \
  }                                                                                                                     \
  template <typename T> MSL_INLINE_CHECKED T atomic_load_explicit(const volatile SPACE atomic<T>* p, memory_order) {            \
    MSL_ATOMIC_TYPE(T, DEVICE);                                                                                          \
    using B = typename msl_bits<T>::type;                                                                               \
    msl_atomic((__generic void*)&p->msl_value, sizeof(T), 0);                                                           \
    B bits = __atomic_load_n((const __generic B*)&p->msl_value, __ATOMIC_RELAXED);                                      \
    msl_atomic_seen((const __generic void*)&p->msl_value);                                                              \
    return __builtin_bit_cast(T, bits);                                                                                 \
  }                                                                                                                     \
  template <typename T> MSL_INLINE_CHECKED void atomic_store_explicit(volatile SPACE atomic<T>* p, msl_same_t<T> v, memory_order) { \
    MSL_ATOMIC_TYPE(T, DEVICE);                                                                                          \
    using B = typename msl_bits<T>::type;                                                                               \
    msl_atomic((__generic void*)&p->msl_value, sizeof(T), 1);                                                           \
    __atomic_store_n((__generic B*)&p->msl_value, __builtin_bit_cast(B, v), __ATOMIC_RELAXED);                          \
  }                                                                                                                     \
  template <typename T> MSL_INLINE_CHECKED bool atomic_compare_exchange_weak_explicit(                                          \
      volatile SPACE atomic<T>* p, thread T* expected, msl_same_t<T> desired, memory_order, memory_order) {                 \
    MSL_ATOMIC_TYPE(T, DEVICE);                                                                                          \
    using B = typename msl_bits<T>::type;                                                                               \
    msl_atomic((__generic void*)&p->msl_value, sizeof(T), 0);                                                           \
    B old = __builtin_bit_cast(B, *expected);                                                                           \
    bool done = __atomic_compare_exchange_n((__generic B*)&p->msl_value, &old, __builtin_bit_cast(B, desired), false,   \
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED);                                        \
    msl_atomic_seen((const __generic void*)&p->msl_value);                                                              \
    *expected = __builtin_bit_cast(T, old);                                                                             \
    return done;                                                                                                        \
  }
MSL_ATOMICS(device, true) MSL_ATOMICS(threadgroup, false)

#define MSL_ATOMIC_EXTREME(NAME, VALUE)                                                                                 \
  MSL_INLINE_CHECKED void atomic_##NAME##_explicit(volatile device atomic<ulong>* p, ulong v, memory_order) {           \
    struct change { MSL_INLINE ulong operator()(ulong a, ulong b) const { return VALUE; } };                            \
    msl_change((__generic ulong*)&p->msl_value, v, change());                                                           \
  }
MSL_ATOMIC_EXTREME(min, b < a ? b : a) MSL_ATOMIC_EXTREME(max, a < b ? b : a)

// A relaxed one orders nothing.
MSL_INLINE_CHECKED void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
MSL_INLINE_CHECKED void atomic_thread_fence(mem_flags flags, msl_fence_order order, thread_scope scope = thread_scope_device) {
  msl_fence((uint)flags, order, scope);
}

}  // namespace metal
