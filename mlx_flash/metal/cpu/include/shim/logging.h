// metal_logging, of Metal 3.2: what a kernel logs goes nowhere.
#pragma once
#include "types.h"

namespace metal {

struct os_log {
  MSL_INLINE constexpr os_log(constant char*, constant char*) {}
  MSL_INLINE constexpr os_log(constant char*, constant char*) __constant {}
#define MSL_LOG(NAME)                                                                    \
  template <typename... A> MSL_INLINE void NAME(constant char*, A...) const constant {} \
  template <typename... A> MSL_INLINE void NAME(constant char*, A...) const {}
  MSL_LOG(log) MSL_LOG(log_debug) MSL_LOG(log_info) MSL_LOG(log_error) MSL_LOG(log_fault)
};
constexpr constant os_log os_log_default("", "");

}  // namespace metal
