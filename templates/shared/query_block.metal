// The query rows of a threadgroup. Causal blocks grow with their position: the longest go first.
namespace flash {

struct QueryBlock {
  int b, h, h_k;     // batch entry, query head and the key head it reads
  int block, first;  // first row of the threadgroup and of the simdgroup
  long row0;         // of the head, in [B, Hq, Lq]

  static METAL_FUNC QueryBlock of(thread const Arguments& args, uint3 position, tile::Lane lane) {
    const int blocks = (args.Lq + BP - 1) / BP, x = position.x, h = position.y, b = position.z;
    const int block = (CAUSAL ? blocks - 1 - x : x) * BP;
    return {
        b, h, h / (args.Hq / args.Hk), block, block + int(lane.simdgroup) * R, (long(b) * args.Hq + h) * args.Lq};
  }
};

}  // namespace flash
