// The asynchronous interface for layers with synchronous products: finish_abt computes the whole product.
namespace flash {
namespace tile {

template <typename S, typename A, typename B> METAL_FUNC void begin_abt(thread S&, thread const A&, thread const B&) {}

template <int LATER, typename S, typename A, typename B>
METAL_FUNC void finish_abt(thread S& s, thread const A& a, thread const B& b) {
  multiply_abt(s, a, b);
}

// Ping-pong scheduling needs asynchronous products: nothing to do here.
template <int BP, int D> struct PingPong {
  METAL_FUNC void open(Lane) thread {}
  METAL_FUNC void wait() thread {}
  METAL_FUNC void arrive() thread {}
};

}  // namespace tile
}  // namespace flash
