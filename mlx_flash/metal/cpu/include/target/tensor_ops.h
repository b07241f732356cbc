// Products of cooperative tensors and the lanes' places in them, by the runtime.
#pragma once

enum { MSL_FLOAT, MSL_HALF, MSL_BFLOAT, MSL_CHAR, MSL_INT };  // types of elements; the runtime's tensors.c counts the same

extern "C" {
__attribute__((nomerge)) void msl_tensor_multiply(ulong descriptor, uint types, const __generic void* a, const __generic void* b, __generic void* c);
// row << 16 | column of this lane's element; role: 0 left, 1 right, 2 destination
uint msl_tensor_place(uint role, uint rows, uint columns, uint element);
void msl_tensor_unset(__generic void* elements, uint bytes);
__attribute__((nomerge)) void msl_tensor_index(uint element);
}
