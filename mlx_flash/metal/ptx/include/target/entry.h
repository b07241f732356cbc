// How a launch reaches the kernel's parameters on an NVIDIA GPU: what the entry was given converts itself to the declared type.
#pragma once

struct msl_device_argument {
  __global char* at;
  template <typename T> MSL_INLINE operator T*() const { return (T*)at; }
  template <typename T> MSL_INLINE operator T&() const { return *(T*)at; }
};
struct msl_constant_argument {
  const __constant char* at;
  template <typename T> MSL_INLINE operator T*() const { return (T*)at; }
  template <typename T> MSL_INLINE operator T&() const { return *(T*)at; }
};
// Numbers that the launch passes by value.
template <typename VECTOR> struct msl_value_argument {
  VECTOR at;
  template <typename T> MSL_INLINE operator T*() const { return (T*)&at; }
  template <typename T> MSL_INLINE operator T&() const { return *(T*)&at; }
};

// The launch's size in threads, and where this threadgroup lies in it.
struct msl_grid {
  uint threads[3];
  uint own;  // number of this thread within its threadgroup

  MSL_INLINE uint groups(uint axis) const { return (threads[axis] + size(axis) - 1) / size(axis); }
  MSL_INLINE static uint size(uint axis) { return axis == 0 ? MSL_THREADS_X : axis == 1 ? MSL_THREADS_Y : MSL_THREADS_Z; }
#ifdef MSL_FOLDED
  // More threadgroups along y or z than a launch may have: those of both axes are numbered in rows of 65535.
  MSL_INLINE uint folded() const { return __nvvm_read_ptx_sreg_ctaid_y() + __nvvm_read_ptx_sreg_ctaid_z() * 65535u; }
  MSL_INLINE uint group(uint axis) const {
    if (axis == 0) return __nvvm_read_ptx_sreg_ctaid_x();
    return axis == 1 ? folded() % groups(1) : folded() / groups(1);
  }
  MSL_INLINE bool unwanted() const { return folded() >= groups(1) * groups(2); }
#else
  // Threadgroups along the launch's first axis start one after another.
#ifdef MSL_SWAPPED
  MSL_INLINE static uint launched(uint axis) { return axis == 0 ? 1 : axis == 1 ? 0 : 2; }
#else
  MSL_INLINE static uint launched(uint axis) { return axis; }
#endif
  MSL_INLINE uint group(uint axis) const {
    const uint own = launched(axis);
    if (own == 0) return __nvvm_read_ptx_sreg_ctaid_x();
    return own == 1 ? __nvvm_read_ptx_sreg_ctaid_y() : __nvvm_read_ptx_sreg_ctaid_z();
  }
  // Threads along an axis of a grid that is not ragged, where the launch does not pass them.
  MSL_INLINE static uint launched_threads(uint axis) {
    const uint own = launched(axis);
    const uint along_y_or_z = own == 1 ? __nvvm_read_ptx_sreg_nctaid_y() : __nvvm_read_ptx_sreg_nctaid_z();
    return size(axis) * (own == 0 ? __nvvm_read_ptx_sreg_nctaid_x() : along_y_or_z);
  }
  MSL_INLINE bool unwanted() const { return false; }
#endif
  MSL_INLINE uint position(uint axis) const { return group(axis) * size(axis) + msl_thread(axis); }
  // Threads of this threadgroup along an axis; fewer at the edge of a ragged grid.
  MSL_INLINE uint here(uint axis) const { return metal::min(size(axis), threads[axis] - group(axis) * size(axis)); }
#ifdef MSL_RAGGED
  MSL_INLINE bool outside() const {
    return unwanted() || position(0) >= threads[0] || position(1) >= threads[1] || position(2) >= threads[2];
  }
  MSL_INLINE uint index() const { return msl_thread(0) + here(0) * (msl_thread(1) + here(1) * msl_thread(2)); }
#else
  MSL_INLINE bool outside() const { return unwanted(); }
  MSL_INLINE uint index() const { return own; }
#endif
};

// The numbers of signature.py's ATTRIBUTES.
template <uint WHICH> struct msl_attribute_argument {
  msl_grid grid;

  MSL_INLINE uint at(uint axis) const {
    switch (WHICH) {
      case 0: return (MSL_THREADS + 3) / 4;
      case 1: return (MSL_THREADS + 31) / 32;
      case 2: return msl_grid::size(axis);
      case 3: return 0;
      case 4: case 17: return grid.threads[axis];
      case 5: return msl_thread_index() / 4;
      case 6: return (here() + 3) / 4;
      case 7: return msl_thread_index() / 32;
      case 8: return (here() + 31) / 32;
      case 9: case 18: return 32;
      case 10: return msl_thread_index() % 4;
      case 11: return msl_thread_index() % 32;
      case 12: return grid.index();
      case 13: return grid.position(axis);
      case 14: return msl_thread(axis);
      case 15: return grid.group(axis);
      case 16: return grid.groups(axis);
      case 19: return grid.here(axis);
    }
    return 0;
  }
  MSL_INLINE uint here() const { return grid.here(0) * grid.here(1) * grid.here(2); }
  MSL_INLINE operator uint() const { return at(0); }
  MSL_INLINE operator ushort() const { return (ushort)at(0); }
  template <typename T> MSL_INLINE operator vec<T, 2>() const { return vec<T, 2>((T)at(0), (T)at(1)); }
  template <typename T> MSL_INLINE operator vec<T, 3>() const { return vec<T, 3>((T)at(0), (T)at(1), (T)at(2)); }
};

// The assembler's text declares the variable: ptx.py reads its size and alignment from its name.
template <typename T, uint INDEX, uint ALIGN> MSL_INLINE threadgroup T& msl_threadgroup_variable() {
  constexpr uint align = ALIGN > alignof(T) ? (ALIGN > 16 ? ALIGN : 16) : (alignof(T) > 16 ? alignof(T) : 16);
  ulong at;
  __asm__("mov.u64 %0, msl_threadgroup_%c1_%c2_%c3;" : "=l"(at) : "n"(INDEX), "n"(sizeof(T)), "n"(align));
  __builtin_assume((at & (align - 1)) == 0);
  return *(threadgroup T*)at;
}
