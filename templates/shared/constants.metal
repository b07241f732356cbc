// The constants of every tiled kernel; the glossary in forward.metal explains the names.
namespace flash {

using Element = $ELEMENT;  // of Q, K, V and dO
constant constexpr int D = $HEAD_DIM, DV = $VALUE_DIM;
constant constexpr int BP = $BLOCK_PARALLEL, BT = $BLOCK_TRAVERSAL, BH = $BLOCK_HEAD, R = $SIMDGROUP_ROWS;
constant constexpr int SLICES = $SLICES;  // simdgroups that share each block: BT of its rows for each
constant constexpr int THREADS = 32 * BP / R;
constant constexpr int SCRATCH = $SCRATCH;            // elements of threadgroup memory
constant constexpr bool CAUSAL = $CAUSAL, HAS_WINDOW = $HAS_WINDOW;
constant constexpr bool ADDITIVE = $ADDITIVE;         // the array mask is added
constant constexpr bool TRANSPOSED = $OVER_KEYS;      // rows of a tile are keys, and its columns queries
#if HAS_MASK && !MAPS
using MaskElement = $MASK_ELEMENT;
#endif
#if HAS_PIECES
constant constexpr int RANKS = $RANKS, RANK_PIECES = $RANK_PIECES;  // shards of a sequence, and pieces of each
#endif
#if HAS_PAGES
constant constexpr int PAGE = $PAGE;  // rows of a page of keys and values
#endif
#if HAS_BLOCKS
constant constexpr int BLOCK = $BLOCK;  // rows and columns of a block of the block mask
#endif

}  // namespace flash
