// What every kernel for an NVIDIA GPU is compiled with: the shim of Metal's library, over the machine's own functions.
#pragma once
#include "../../../simulator/include/shim/mlx.h"
