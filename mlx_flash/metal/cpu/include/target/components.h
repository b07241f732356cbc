// The components of a vector are properties, and v[i] lies in a space to which no reference of a kernel binds.
// With MSL_PLAIN_COMPONENTS they are plain members: for texts with an operator += of their own (shim/operators.h).
#pragma once

#ifdef MSL_PLAIN_COMPONENTS
#include <shim/plain_components.h>
#else

namespace metal {
template <typename T> struct msl_remove_space<__attribute__((opencl_global_host)) T> { typedef T type; };
}  // namespace metal

#define MSL_COMPONENTS2 MSL_COMPONENT(x, msl_x) MSL_COMPONENT(r, msl_x) MSL_COMPONENT(y, msl_y) MSL_COMPONENT(g, msl_y)
#define MSL_COMPONENTS3 MSL_COMPONENTS2 MSL_COMPONENT(z, msl_z) MSL_COMPONENT(b, msl_z)
#define MSL_COMPONENTS4 MSL_COMPONENTS3 MSL_COMPONENT(w, msl_w) MSL_COMPONENT(a, msl_w)
#endif
// Is there a component i of n?
#if __has_feature(thread_sanitizer)
extern "C" void msl_outside(int index);
MSL_INLINE constexpr int msl_component(int i, int n) {
  if ((uint)i >= (uint)n) msl_outside(i);
  return i;
}
#else
#define msl_component(i, n) (i)
#endif

// v[i] has no address either: what it returns lies in a space, or is volatile, to which no reference of a kernel binds.
#define msl_element __attribute__((opencl_global_host))
#define msl_held volatile

#define MSL_NO_ADDRESS(FUNCTION, KIND)                                                          \
  template <typename T> MSL_INLINE KIND T& FUNCTION(KIND T& element) {                          \
    static_assert(!sizeof(T), "a component of a vector has no address: no reference or pointer leads to it"); \
    return element;                                                                             \
  }
MSL_NO_ADDRESS(msl_pointed, msl_element)
MSL_NO_ADDRESS(msl_addressed, msl_element)
MSL_NO_ADDRESS(msl_addressed, __local msl_held)
MSL_NO_ADDRESS(msl_addressed, __global msl_held)
#undef MSL_NO_ADDRESS
