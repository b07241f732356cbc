// Instructions of NVIDIA's matrix units and copies, for tile layers that name them. Included last.
#pragma once
