// How a launch reaches the kernel's parameters: each argument converts itself to the parameter's declared type.
#pragma once
#include <shim/math.h>

extern "C" {
__generic void* msl_variable(uint index, uint size, uint align);
ulong msl_buffer(uint index);
uint msl_attribute(uint which, uint axis);
uint msl_threadgroup_bytes(uint index);
}

struct msl_buffer_argument {
  uint index;
  template <typename T> MSL_INLINE operator T*() const { return (T*)msl_buffer(index); }
  template <typename T> MSL_INLINE operator T&() const { return *(T*)msl_buffer(index); }
};

// Threadgroup memory that the launch sizes; Metal aligns it to 16 bytes.
struct msl_threadgroup_argument {
  uint index;
  template <typename T> MSL_INLINE operator T*() const { return (T*)(ulong)msl_variable(index, msl_threadgroup_bytes(index), 16); }
  template <typename T> MSL_INLINE operator T&() const { return *(T*)(ulong)msl_variable(index, msl_threadgroup_bytes(index), 16); }
};

// A position or a size: one, two or three unsigned numbers of 16 or 32 bits.
template <uint WHICH> struct msl_attribute_argument {
  MSL_INLINE operator uint() const { return msl_attribute(WHICH, 0); }
  MSL_INLINE operator ushort() const { return (ushort)msl_attribute(WHICH, 0); }
  template <typename T> MSL_INLINE operator vec<T, 2>() const {
    return vec<T, 2>((T)msl_attribute(WHICH, 0), (T)msl_attribute(WHICH, 1));
  }
  template <typename T> MSL_INLINE operator vec<T, 3>() const {
    return vec<T, 3>((T)msl_attribute(WHICH, 0), (T)msl_attribute(WHICH, 1), (T)msl_attribute(WHICH, 2));
  }
};

// Has a class a constant constructor of threadgroup objects? The translation (frontend/constructors.py) marks those.
template <typename T, typename = void> constexpr bool msl_constructed = false;
template <typename T> constexpr bool msl_constructed<T, typename T::msl_threadgroup_object> = true;
template <typename T, int N> constexpr bool msl_constructed<T[N], void> = msl_constructed<T>;

template <typename T, uint INDEX, uint ALIGN> MSL_INLINE threadgroup T& msl_threadgroup_variable() {
  static_assert(__is_trivially_constructible(T) || msl_constructed<T>, "threadgroup memory holds nothing at first: no object with a constructor or initialised members");
  return *(threadgroup T*)(ulong)msl_variable(INDEX, sizeof(T), ALIGN > alignof(T) ? ALIGN : alignof(T));
}
