// The components of a vector are plain members: texts are judged on the CPU, and the compiler makes most of plain members.
#pragma once

#include <shim/plain_components.h>
#define msl_element __private
#define msl_held
#define msl_component(i, n) (i)
