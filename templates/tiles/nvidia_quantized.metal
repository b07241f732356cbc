// Quantized operands of the tile layer for NVIDIA's tensor cores: producer warps dequantize blocks on their way to a
// stage.
namespace flash {
namespace tile {

// Fills the next stage with the block that was fetched.
template <typename T, int BT, int D, int BH, int THREADS>
METAL_FUNC void put(thread Traversed<T, BT, D, BH, THREADS>& b) {
  constexpr int ROWS = Traversed<T, BT, D, BH, THREADS>::ROWS;
  threadgroup T* to = b.stages + b.pipe.producer_acquire() * b.BLOCK_ELEMENTS;
#pragma clang loop unroll(full)
  for (int pass = 0; pass < b.packed.PASSES; pass++) {
    const int row = b.packed.row(pass), column = b.packed.column;
    if (row >= ROWS || column >= D) continue;
    const Run<T, 8> values = b.packed.values(pass);
    uint4 chunk;
#pragma clang loop unroll(full)
    for (int e = 0; e < 4; e++) chunk[e] = as_type<uint>(Pair<T>(values.at[2 * e], values.at[2 * e + 1]));
    *(threadgroup uint4*)(to + place<ROWS>(row, column)) = chunk;
  }
  nv::fence_cta();
  b.pipe.producer_commit();
}

// Producer warps return true. They read both blocks before there is a stage for either.
template <typename A, typename B> METAL_FUNC bool produce(thread A& a, thread B& b, int row, int end) {
  if (!a.lane.produces()) return false;
  a.packed.fetch(row, end);
  b.packed.fetch(row, end);
  put(a);
  put(b);
  return true;
}

}  // namespace tile
}  // namespace flash
