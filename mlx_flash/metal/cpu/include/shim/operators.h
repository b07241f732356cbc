// x += c, where c is of a class that converts to a number: clang's built-in operators take no left side that has an address space.
// Only on demand (compiler.py): where a function of this name is in sight, clang takes `v.x += 1` of a vector whose type
// depends on a template for a call of it, and finds none.
#pragma once
#include "types.h"

#ifdef MSL_CLASS_STEPS
#define MSL_ASSIGNING(OP, ALLOWED)                                                                               \
  template <typename T, typename C,                                                                              \
            typename = metal::enable_if_t<ALLOWED && __is_class(metal::msl_plain_t<C>) && __is_convertible(C, long)>> \
  MSL_INLINE T& operator OP##=(T& left, const C& right) {                                                        \
    return left = left OP (long)right;                                                                           \
  }
#define MSL_NUMBER_OR_POINTER (__is_pointer(metal::msl_plain_t<T>) || metal::msl_integral_v<T>)
MSL_ASSIGNING(+, MSL_NUMBER_OR_POINTER) MSL_ASSIGNING(-, MSL_NUMBER_OR_POINTER)
MSL_ASSIGNING(*, metal::msl_integral_v<T>) MSL_ASSIGNING(/, metal::msl_integral_v<T>) MSL_ASSIGNING(%, metal::msl_integral_v<T>)
#endif
