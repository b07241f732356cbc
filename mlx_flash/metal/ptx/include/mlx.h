// What every kernel for an NVIDIA GPU is compiled with: the shim of Metal's library, over the machine's own functions.
#pragma once
#include <shim/mlx.h>

// Metal has no recursion: all of a kernel becomes one function, and nothing else is left of it. The entry ends this.
#pragma clang attribute push(__attribute__((always_inline, internal_linkage)), apply_to = function)
