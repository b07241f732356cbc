// The components of a vector as plain members, for target/components.h.
#pragma once

#define msl_x x
#define msl_y y
#define msl_z z
#define msl_w w
#define MSL_COMPONENTS2 MSL_COMPONENT(r, x) MSL_COMPONENT(g, y)
#define MSL_COMPONENTS3 MSL_COMPONENTS2 MSL_COMPONENT(b, z)
#define MSL_COMPONENTS4 MSL_COMPONENTS3 MSL_COMPONENT(a, w)
