#pragma once
#include "types.h"
#include "operators.h"
#include "vector.h"
#include "numeric.h"
#include "math.h"
#include "matrices.h"
#include "pack.h"
#include "simdgroup.h"
#include "matrix.h"
#include "atomic.h"
#include "array.h"
#include "internals.h"
#include "uniform.h"
#ifdef __NVPTX__
#include <nvptx/entry.h>
#else
#include "entry.h"
#endif
