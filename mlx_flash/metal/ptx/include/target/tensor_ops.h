// Metal's own tensor operations have no counterpart here; NVIDIA's tensor cores are reached through nv.h.
#pragma once
#error "mpp::tensor_ops runs on Apple GPUs and on the simulator only"
