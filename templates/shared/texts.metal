// The texts of a call, opened for one batch entry and head.
namespace flash {
namespace formula {

struct Texts {
  int b, h;  // the first head of the group in decoding
#if HAS_SCORE
  Score score;
#endif
#if HAS_VISIBLE
  Visible visible;
#endif

  METAL_FUNC void open(thread const Arguments& args, int entry, int head) thread {
    b = entry;
    h = head;
    const Pair at = {b, h, 0, 0, 0};
    const device int* from = args.formula_data;
#if HAS_SCORE
    from = score.open(from, at);
#endif
#if HAS_VISIBLE
    visible.open(from, at);
#endif
  }
};

// The variables of the texts for a query's row and a key
template <typename V> METAL_FUNC Pair pair(thread const V& visibility, int row, int j) {
  const int query = visibility.query_of(row);
#if HAS_SEGMENTS
  const int segment = visibility.q_segments[query];
#else
  const int segment = 0;
#endif
  const int position = query + visibility.shift_of_query(query);
  return Pair{visibility.texts.b, visibility.texts.h + visibility.head_of(row), position, j, segment};
}

}  // namespace formula
}  // namespace flash
