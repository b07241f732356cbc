// A launch of the simulator.
#pragma once
#include <shim/../target/entry.h>  // the CPU's: only its headers have a shim beside
