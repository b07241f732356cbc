// A launch of the simulator.
#pragma once
#include "shim/entry.h"
