// Products begun early, for layers whose products are done when they return: all is done at the finish.
namespace tile {

template <typename S, typename A, typename B> METAL_FUNC void begin_abt(thread S&, thread const A&, thread const B&) {}

template <int LATER, typename S, typename A, typename B>
METAL_FUNC void finish_abt(thread S& s, thread const A& a, thread const B& b) {
  multiply_abt(s, a, b);
}

// Where each simdgroup multiplies on its own, products need no turns.
template <int BP, int D> struct Turns {
  METAL_FUNC void open(Lane) thread {}
  METAL_FUNC void take() thread {}
  METAL_FUNC void pass() thread {}
};

}  // namespace tile
