// Checks of atomics and fences, made by the runtime: before an operation, and behind one that reads.
#pragma once

extern "C" {
void msl_atomic(__generic void* p, uint size, uint stores);
void msl_atomic_seen(const __generic void* p);
void msl_fence(uint flags, uint order, uint scope);
}
