// Dropout of probabilities. A random word that depends on (key, n, i, j) alone decides whether element (i, j) of head n
// survives, so that all kernels draw the same pattern with any blocks. Survivors are scaled to keep the expectation.
//
// Generator: Philox-2x32-10 (Salmon et al. 2011), a counter-based generator.
namespace flash {
namespace dropout {

METAL_FUNC uint philox(uint x, uint y, uint key) {
  for (int round = 0; round < 10; round++) {
    const uint high = mulhi(x, 0xD256D193u), low = x * 0xD256D193u;
    x = high ^ key ^ y;
    y = low;
    key += 0x9E3779B9u;
  }
  return x;
}

struct Dropout {
  uint key, threshold;  // an element survives if its word is at least the threshold
  float scale;

  METAL_FUNC void open(thread const Arguments& args, int b, int h) thread {
    key = philox(b * args.Hq + h, args.dropout_key[1], args.dropout_key[0]);
    threshold = args.dropout_key[2];
    scale = args.survivor_scale;
  }
};

// P = P * survives / (1 - probability)
template <int R, int C>
METAL_FUNC void apply(
    thread tile::Tile<float, R, C>& p, thread const Dropout& dropout, int first_query, int first_key,
    tile::Lane lane) {
  for (int i = 0; i < R / 8; i++) {
#pragma clang loop unroll(full)
    for (int c = 0; c < C / 8; c++) {
      for (int e = 0; e < 2; e++) {
        const int row = i * 8 + lane.row, column = tile::fixed_place(c) + tile::lane_place(C, c, lane.column) + e;
        const uint word = philox(
            first_query + (TRANSPOSED ? column : row), first_key + (TRANSPOSED ? row : column), dropout.key);
        p.at[i][c][e] = word < dropout.threshold ? 0 : p.at[i][c][e] * dropout.scale;
      }
    }
  }
}

}  // namespace dropout
}  // namespace flash
