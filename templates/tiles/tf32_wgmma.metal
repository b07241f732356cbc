// S = Q K^T of float32 operands by wgmma (Hopper), each product as three of TF32 (tf32.metal): the matrix unit reads
// keys, of which it truncates the numbers, and their low parts, which producer warps have put behind them, from
// threadgroup memory; and queries, which are split here, from registers.
namespace flash {
namespace tile {

// Writes the low parts of the numbers that this producer thread has copied, behind their block.
template <int BT, int D, int WIDTH> METAL_FUNC void write_low_parts(threadgroup float* block, int index) {
  nv::wait_copies();
#pragma clang loop unroll(disable)
  for (int row = index / 8; row < BT; row += 4 * PRODUCER_WARPS) {
#pragma clang loop unroll(full)
    for (int column = index % 8 * CHUNK; column < STEPS<D> * DEPTH; column += PANEL) {
      threadgroup float4* from = (threadgroup float4*)(block + place<BT>(row, column));
      const float4 x = *from;
      from[BT * WIDTH / 4] = x - as_type<float4>(as_type<uint4>(x) & 0xffffe000u);
    }
  }
  nv::fence_cta();
}

template <int BP, int R, int D, int BT, int BH, int THREADS>
METAL_FUNC void multiply_abt(
    thread Tile<float, R, BT>& s, thread const Rows<float, BP, R, D, false>& a,
    thread const Traversed<float, BT, D, BH, THREADS>& b) {
  static_assert(SUMMED * DEPTH == PANEL, "a panel of columns is summed by the matrix unit");
  const nv::Matrix<float> high = nv::Matrix<float>::of(b.block, PANEL);
  const nv::Matrix<float> low = nv::Matrix<float>::of(b.block + BT * b.WIDTH, PANEL);
  clear(s);
  nv::fence_async_proxy();
#pragma clang loop unroll(full)
  for (int panel = 0; panel < PANELS<D>; panel++) {
    const int steps = min(SUMMED, STEPS<D> - panel * SUMMED);
    Split<uint4> rows[SUMMED];
    Tile<float, R, BT> sum;
    clear(sum);
#pragma clang loop unroll(full)
    for (int n = 0; n < steps; n++) {
      rows[n] = split(a.fragment(0, panel * SUMMED + n));
      nv::pin_register(rows[n].high);
      nv::pin_register(rows[n].low);
    }
    nv::pin_register(sum.at);
    nv::wgmma_fence();
    // Small products first: what a truncated sum loses is then as small as they are.
#pragma clang loop unroll(full)
    for (int n = 0; n < steps; n++) {
      nv::multiply_registers<float, BT>(sum.at, rows[n].low, high.at(panel * BT * PANEL, n * DEPTH));
      nv::multiply_registers<float, BT>(sum.at, rows[n].high, low.at(panel * BT * PANEL, n * DEPTH));
    }
#pragma clang loop unroll(full)
    for (int n = 0; n < steps; n++) {
      nv::multiply_registers<float, BT>(sum.at, rows[n].high, high.at(panel * BT * PANEL, n * DEPTH));
    }
    nv::wgmma_commit();
    nv::wgmma_wait<0>();
    nv::pin_register(sum.at);
#pragma clang loop unroll(full)
    for (int t = 0; t < BT / 8; t++) {
      s.at[0][t] += sum.at[0][t];
      s.at[1][t] += sum.at[1][t];
    }
  }
  repair_unless_finite(s, a, b);
}

}  // namespace tile
}  // namespace flash
