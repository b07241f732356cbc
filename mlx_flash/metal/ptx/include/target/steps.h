// Rounds of loops are not counted on a GPU.
#pragma once

#define msl_step() true
