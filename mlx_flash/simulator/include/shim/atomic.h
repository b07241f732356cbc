#pragma once
#include "simdgroup.h"
