// The components of a vector are plain members: texts are judged on the CPU, and the compiler makes most of plain members.
#pragma once

#define msl_x x
#define msl_y y
#define msl_z z
#define msl_w w
#define MSL_COMPONENTS2 MSL_COMPONENT(r, x) MSL_COMPONENT(g, y)
#define MSL_COMPONENTS3 MSL_COMPONENTS2 MSL_COMPONENT(b, z)
#define MSL_COMPONENTS4 MSL_COMPONENTS3 MSL_COMPONENT(a, w)
#define msl_element __private
#define msl_held
