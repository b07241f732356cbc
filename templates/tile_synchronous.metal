// Products begun early, for layers whose products are done when they return: all is done at the finish.
namespace tile {

template <typename S, typename A, typename B> METAL_FUNC void begin_abt(thread S&, thread const A&, thread const B&) {}

template <int LATER, typename S, typename A, typename B>
METAL_FUNC void finish_abt(thread S& s, thread const A& a, thread const B& b) {
  multiply_abt(s, a, b);
}

}  // namespace tile
