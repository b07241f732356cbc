// vec<T, N> as a class: clang's own vectors would turn int4(float4(3)) into a bit cast and know no address spaces.
// Swizzles are rewritten by translate.py into get<...>() and put<...>().
#pragma once
#include "types.h"

namespace metal {
using ::vec;
template <typename T> using msl_scalar_only = enable_if_t<msl_arithmetic_v<T> || is_enum_v<msl_plain_t<T>>>;
}  // namespace metal

// A vector of R whose member m is ELEMENT(m, ...): spelt out, because loops over members take the compiler longer than all the rest.
#define MSL_ELEMENTS(R, N, ELEMENT, ...)                                                                                     \
  if constexpr (N == 2) return vec<R, 2>(ELEMENT(x, __VA_ARGS__), ELEMENT(y, __VA_ARGS__));                                   \
  else if constexpr (N == 3) return vec<R, 3>(ELEMENT(x, __VA_ARGS__), ELEMENT(y, __VA_ARGS__), ELEMENT(z, __VA_ARGS__));      \
  else if constexpr (N == 4) return vec<R, 4>(ELEMENT(x, __VA_ARGS__), ELEMENT(y, __VA_ARGS__), ELEMENT(z, __VA_ARGS__), ELEMENT(w, __VA_ARGS__)); \
  else return vec<R, 8>(ELEMENT(msl_x, __VA_ARGS__), ELEMENT(msl_1, __VA_ARGS__), ELEMENT(msl_2, __VA_ARGS__), ELEMENT(msl_3, __VA_ARGS__), \
                        ELEMENT(msl_4, __VA_ARGS__), ELEMENT(msl_5, __VA_ARGS__), ELEMENT(msl_6, __VA_ARGS__), ELEMENT(msl_7, __VA_ARGS__));
// The initialisers of a vector's members.
#define MSL_MEMBERS2(VALUE) msl_x(VALUE(x)), msl_y(VALUE(y))
#define MSL_MEMBERS3(VALUE) MSL_MEMBERS2(VALUE), msl_z(VALUE(z))
#define MSL_MEMBERS4(VALUE) MSL_MEMBERS3(VALUE), msl_w(VALUE(w))
#define MSL_MEMBERS8(VALUE) msl_x(VALUE(msl_x)), msl_1(VALUE(msl_1)), msl_2(VALUE(msl_2)), msl_3(VALUE(msl_3)), \
  msl_4(VALUE(msl_4)), msl_5(VALUE(msl_5)), msl_6(VALUE(msl_6)), msl_7(VALUE(msl_7))
#define MSL_SAME(m) msl_static_cast<T>(a)
#define MSL_MEMBER(m) msl_static_cast<T>(a.m)
#define MSL_PLAIN_MEMBER(m) a.m
#define MSL_PACKED_MEMBER(m) msl_static_cast<T>(packed.m)
#define MSL_VOLATILE_MEMBER(m) a.msl_##m
#define MSL_ZERO(m) T(0)

// uint4 v = {a, b}; leaves zero in what the list does not name (see casts.py). A list of vectors and numbers names all.
struct msl_list {};
template <typename T, int N, typename... U> constexpr vec<T, N> msl_listed(U... values);

// A component is a property: it is read and written, but has no address, so that no reference binds to it and no pointer
// leads there. v.r is v.x.
#define MSL_COMPONENT(LETTER, MEMBER)                                                          \
  MSL_INLINE constexpr T msl_get_##LETTER() const { return MEMBER; }                           \
  MSL_INLINE constexpr T msl_get_##LETTER() const __constant { return MEMBER; }                \
  MSL_INLINE constexpr T msl_get_##LETTER() const volatile { return MEMBER; }                  \
  MSL_INLINE constexpr void msl_put_##LETTER(T value) { MEMBER = value; }                      \
  MSL_INLINE constexpr void msl_put_##LETTER(T value) volatile { MEMBER = value; }             \
  __declspec(property(get = msl_get_##LETTER, put = msl_put_##LETTER)) T LETTER;
#include <target/components.h>

// Templates where clang would see no difference for a value that lies in no space yet: (a + b)[0] is of the thread.
#define MSL_INDEXING(N)                                                                                           \
  MSL_INLINE msl_element T& operator[](int i) __private { return *(msl_element T*)(__generic T*)(&msl_x + msl_component(i, N)); } \
  template <typename = void> MSL_INLINE __local msl_held T& operator[](int i) __local { return (&msl_x)[i]; }         \
  template <typename = void> MSL_INLINE __global msl_held T& operator[](int i) __global { return (&msl_x)[i]; }       \
  MSL_INLINE T operator[](int i) const { return (&msl_x)[msl_component(i, N)]; }                                      \
  template <typename = void> MSL_INLINE T operator[](int i) const __local { return (&msl_x)[i]; }                     \
  template <typename = void> MSL_INLINE T operator[](int i) const __global { return (&msl_x)[i]; }                    \
  template <typename = void> MSL_INLINE T operator[](int i) const __constant { return (&msl_x)[i]; }                  \
  template <int... I> MSL_INLINE auto get() const {                                            \
    if constexpr (sizeof...(I) == 1) return lane<I...>();                                      \
    else return vec<T, sizeof...(I)>(lane<I>()...);                                            \
  }                                                                                            \
  template <int... I> MSL_INLINE auto get() const __constant {                                 \
    if constexpr (sizeof...(I) == 1) return lane<I...>();                                      \
    else return vec<T, sizeof...(I)>(lane<I>()...);                                            \
  }                                                                                            \
  template <int... I> MSL_INLINE msl_lanes<T, I...> put() { return {&msl_x}; }

#define MSL_COMPOUND(OP)                                                                       \
  template <typename U> MSL_INLINE vec& operator OP##=(U b) { return *this = *this OP b; }

#define MSL_STEP(OP, BY)                                                                       \
  MSL_INLINE vec& operator OP() {                                                              \
    static_assert(__is_integral(T) && !__is_same(T, bool), "++ and -- take vectors of integers"); \
    return *this = *this BY vec(T(1));                                                         \
  }                                                                                            \
  MSL_INLINE vec operator OP(int) {                                                            \
    vec before = *this;                                                                        \
    OP *this;                                                                                  \
    return before;                                                                             \
  }
#define MSL_MEMBERS(N)                                                                         \
  static_assert(metal::msl_arithmetic_v<T>, "the elements of a vector are numbers");             \
  vec() = default;                                                                             \
  MSL_INLINE constexpr vec() __constant : MSL_MEMBERS##N(MSL_ZERO) {}                          \
  template <typename U, typename = metal::enable_if_t<metal::is_same_v<T, U>>>                 \
  MSL_INLINE vec(const volatile vec<U, N>& a) : MSL_MEMBERS##N(MSL_VOLATILE_MEMBER) {}         \
  template <typename = void> MSL_INLINE void operator=(const vec& a) volatile {                \
    for (int i = 0; i < N; ++i) (&msl_x)[i] = a.at(i);                                         \
  }                                                                                            \
  template <typename U, typename = metal::msl_scalar_only<U>>                                      \
  MSL_INLINE constexpr vec(U a) : MSL_MEMBERS##N(MSL_SAME) {}                                  \
  template <typename U>                                                                        \
  MSL_INLINE constexpr explicit vec(const vec<U, N>& a) : MSL_MEMBERS##N(MSL_MEMBER) {}        \
  template <typename U>                                                                        \
  MSL_INLINE constexpr vec(const __constant vec<U, N>& a) : MSL_MEMBERS##N(MSL_MEMBER) {}      \
  template <typename U, typename = metal::enable_if_t<!metal::is_same_v<T, U>>>                \
  MSL_INLINE explicit vec(packed_vec<U, N> packed) : MSL_MEMBERS##N(MSL_PACKED_MEMBER) {}      \
  template <typename U> MSL_INLINE vec& operator=(const __constant vec<U, N>& a) {             \
    static_assert(__is_same(T, U), "vectors of different elements do not convert implicitly"); \
    return *this = vec(a);                                                                     \
  }                                                                                            \
  MSL_INDEXING(N)                                                                              \
  MSL_COMPOUND(+) MSL_COMPOUND(-) MSL_COMPOUND(*) MSL_COMPOUND(/) MSL_COMPOUND(%)              \
  MSL_COMPOUND(&) MSL_COMPOUND(|) MSL_COMPOUND(^) MSL_COMPOUND(<<) MSL_COMPOUND(>>)            \
  MSL_STEP(++, +) MSL_STEP(--, -)

namespace metal {
template <int FIRST, int... REST> constant constexpr bool msl_differ = ((FIRST != REST) && ...) && msl_differ<REST...>;
template <int LAST> constant constexpr bool msl_differ<LAST> = true;
}  // namespace metal

// The target of an assignment to a swizzle.
template <typename T, int... I> struct msl_lanes {
  __generic T* base;
  template <typename U> MSL_INLINE void operator=(const U& value) const {
    static_assert(metal::msl_differ<I...>, "a swizzle that is assigned to names a component twice");
    T parts[sizeof...(I)];
    int k = 0;
    if constexpr (metal::msl_arithmetic_v<U>)
      ((parts[k++] = (T)value, (void)I), ...);
    else
      ((parts[k] = (T)value.at(k), ++k, (void)I), ...);
    k = 0;
    ((base[I] = parts[k++]), ...);
  }
  MSL_INLINE vec<T, sizeof...(I)> read() const { return vec<T, sizeof...(I)>(base[I]...); }
#define MSL_COMPOUND_LANES(OP)                                                                   \
  template <typename U> MSL_INLINE void operator OP##=(const U& v) const {                      \
    static_assert(metal::msl_arithmetic_v<U> || metal::is_vector_v<metal::msl_plain_t<U>>,           \
                  "a swizzle takes numbers and vectors in a compound assignment, no matrices"); \
    *this = read() OP v;                                                                        \
  }
  MSL_COMPOUND_LANES(+) MSL_COMPOUND_LANES(-) MSL_COMPOUND_LANES(*) MSL_COMPOUND_LANES(/) MSL_COMPOUND_LANES(%)
  MSL_COMPOUND_LANES(&) MSL_COMPOUND_LANES(|) MSL_COMPOUND_LANES(^) MSL_COMPOUND_LANES(<<) MSL_COMPOUND_LANES(>>)
};

template <typename T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  T msl_x, msl_y;
  MSL_COMPONENTS2
  MSL_MEMBERS(2)
  template <typename A, typename B, typename = metal::msl_scalar_only<A>, typename = metal::msl_scalar_only<B>>
  MSL_INLINE constexpr vec(A a, B b) : msl_x(msl_static_cast<T>(a)), msl_y(msl_static_cast<T>(b)) {}
  MSL_INLINE constexpr vec(T a, T b) : msl_x(a), msl_y(b) {}
  template <typename... U> MSL_INLINE constexpr vec(msl_list, U... values) : vec(msl_listed<T, 2>(values...)) {}
  template <int I> MSL_INLINE constexpr T lane() const { if constexpr (I == 0) return msl_x; else return msl_y; }
  template <int I> MSL_INLINE constexpr T lane() const __constant { if constexpr (I == 0) return msl_x; else return msl_y; }
  MSL_INLINE constexpr T at(int i) const { return i ? msl_y : msl_x; }
  MSL_INLINE constexpr T at(int i) const __constant { return i ? msl_y : msl_x; }
  MSL_INLINE constexpr void set(int i, T v) { (i ? msl_y : msl_x) = v; }
};

template <typename T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  T msl_x, msl_y, msl_z;
  MSL_COMPONENTS3
  MSL_MEMBERS(3)
  template <typename A, typename B, typename C, typename = metal::msl_scalar_only<A>>
  MSL_INLINE constexpr vec(A a, B b, C c) : msl_x(msl_static_cast<T>(a)), msl_y(msl_static_cast<T>(b)), msl_z(msl_static_cast<T>(c)) {}
  MSL_INLINE constexpr vec(T a, T b, T c) : msl_x(a), msl_y(b), msl_z(c) {}
  MSL_INLINE constexpr vec(vec<T, 2> a, T b) : msl_x(a.x), msl_y(a.y), msl_z(b) {}
  MSL_INLINE constexpr vec(T a, vec<T, 2> b) : msl_x(a), msl_y(b.x), msl_z(b.y) {}
  template <typename... U> MSL_INLINE constexpr vec(msl_list, U... values) : vec(msl_listed<T, 3>(values...)) {}
  template <int I> MSL_INLINE constexpr T lane() const { if constexpr (I == 0) return msl_x; else if constexpr (I == 1) return msl_y; else return msl_z; }
  template <int I> MSL_INLINE constexpr T lane() const __constant { if constexpr (I == 0) return msl_x; else if constexpr (I == 1) return msl_y; else return msl_z; }
  MSL_INLINE constexpr T at(int i) const { return i == 0 ? msl_x : i == 1 ? msl_y : msl_z; }
  MSL_INLINE constexpr T at(int i) const __constant { return i == 0 ? msl_x : i == 1 ? msl_y : msl_z; }
  MSL_INLINE constexpr void set(int i, T v) { (i == 0 ? msl_x : i == 1 ? msl_y : msl_z) = v; }
};

template <typename T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  T msl_x, msl_y, msl_z, msl_w;
  MSL_COMPONENTS4
  MSL_MEMBERS(4)
  template <typename A, typename B, typename C, typename D, typename = metal::msl_scalar_only<A>>
  MSL_INLINE constexpr vec(A a, B b, C c, D d)
      : msl_x(msl_static_cast<T>(a)), msl_y(msl_static_cast<T>(b)), msl_z(msl_static_cast<T>(c)), msl_w(msl_static_cast<T>(d)) {}
  MSL_INLINE constexpr vec(T a, T b, T c, T d) : msl_x(a), msl_y(b), msl_z(c), msl_w(d) {}
  template <typename... U> MSL_INLINE constexpr vec(msl_list, U... values) : vec(msl_listed<T, 4>(values...)) {}
  MSL_INLINE constexpr vec(vec<T, 2> a, vec<T, 2> b) : msl_x(a.x), msl_y(a.y), msl_z(b.x), msl_w(b.y) {}
  MSL_INLINE constexpr vec(vec<T, 3> a, T b) : msl_x(a.x), msl_y(a.y), msl_z(a.z), msl_w(b) {}
  MSL_INLINE constexpr vec(T a, vec<T, 3> b) : msl_x(a), msl_y(b.x), msl_z(b.y), msl_w(b.z) {}
  MSL_INLINE constexpr vec(vec<T, 2> a, T b, T c) : msl_x(a.x), msl_y(a.y), msl_z(b), msl_w(c) {}
  MSL_INLINE constexpr vec(T a, vec<T, 2> b, T c) : msl_x(a), msl_y(b.x), msl_z(b.y), msl_w(c) {}
  MSL_INLINE constexpr vec(T a, T b, vec<T, 2> c) : msl_x(a), msl_y(b), msl_z(c.x), msl_w(c.y) {}
  template <int I> MSL_INLINE constexpr T lane() const { if constexpr (I == 0) return msl_x; else if constexpr (I == 1) return msl_y; else if constexpr (I == 2) return msl_z; else return msl_w; }
  template <int I> MSL_INLINE constexpr T lane() const __constant { if constexpr (I == 0) return msl_x; else if constexpr (I == 1) return msl_y; else if constexpr (I == 2) return msl_z; else return msl_w; }
  MSL_INLINE constexpr T at(int i) const { return i == 0 ? msl_x : i == 1 ? msl_y : i == 2 ? msl_z : msl_w; }
  MSL_INLINE constexpr T at(int i) const __constant { return i == 0 ? msl_x : i == 1 ? msl_y : i == 2 ? msl_z : msl_w; }
  MSL_INLINE constexpr void set(int i, T v) { (i == 0 ? msl_x : i == 1 ? msl_y : i == 2 ? msl_z : msl_w) = v; }
};

// Metal 4 has vectors of eight, whose components have no letters.
template <typename T> struct alignas(8 * sizeof(T)) vec<T, 8> {
  T msl_x, msl_1, msl_2, msl_3, msl_4, msl_5, msl_6, msl_7;
  MSL_MEMBERS(8)
  MSL_INLINE constexpr vec(T a, T b, T c, T d, T e, T f, T g, T h)
      : msl_x(a), msl_1(b), msl_2(c), msl_3(d), msl_4(e), msl_5(f), msl_6(g), msl_7(h) {}
  MSL_INLINE T at(int i) const { return (&msl_x)[i]; }
  MSL_INLINE void set(int i, T v) { (&msl_x)[i] = v; }
  // No templates, which go before a kernel's own operators for any type: in Metal a vector is no class.
  friend MSL_INLINE vec operator*(vec a, T b) { return a * vec(b); }
  friend MSL_INLINE vec operator+(vec a, T b) { return a + vec(b); }
};

template <typename T, int N, typename... U> MSL_INLINE constexpr vec<T, N> msl_listed(U... values) {
  if constexpr ((metal::msl_arithmetic_v<U> && ...) && sizeof...(U) < N) return msl_listed<T, N>(values..., T(0));
  else return vec<T, N>(values...);
}

#define MSL_ELEMENT_OF_TWO(m, R, OP) (R)(a.m OP b.m)
#define MSL_ELEMENT_OF_ONE(m, R, OP) (R)(OP a.m)

#define MSL_BINARY(OP, RESULT) MSL_BINARY_OF(OP, RESULT, )
#define MSL_ARITHMETIC(OP) \
  MSL_BINARY_OF(OP, T, static_assert(!metal::is_same_v<T, bool>, "Metal has no arithmetic on vectors of bool");)
#define MSL_BINARY_OF(OP, RESULT, DEMAND)                                                                 \
  template <typename T, int N> MSL_INLINE constexpr vec<RESULT, N> operator OP(vec<T, N> a, vec<T, N> b) { \
    DEMAND                                                                                                \
    MSL_ELEMENTS(RESULT, N, MSL_ELEMENT_OF_TWO, RESULT, OP)                                                \
  }                                                                                                       \
  template <typename T, int N, typename U, typename = metal::msl_scalar_only<U>>                              \
  MSL_INLINE constexpr vec<RESULT, N> operator OP(vec<T, N> a, U b) { return a OP vec<T, N>(b); }          \
  template <typename T, int N, typename U, typename = metal::msl_scalar_only<U>>                              \
  MSL_INLINE constexpr vec<RESULT, N> operator OP(U a, vec<T, N> b) { return vec<T, N>(a) OP b; }
MSL_ARITHMETIC(+) MSL_ARITHMETIC(-) MSL_ARITHMETIC(*) MSL_ARITHMETIC(/) MSL_ARITHMETIC(%)
MSL_BINARY(&, T) MSL_BINARY(|, T) MSL_BINARY(^, T) MSL_ARITHMETIC(<<) MSL_ARITHMETIC(>>)
MSL_BINARY(==, bool) MSL_BINARY(!=, bool) MSL_BINARY(<, bool) MSL_BINARY(<=, bool)
MSL_BINARY(>, bool) MSL_BINARY(>=, bool) MSL_BINARY(&&, bool) MSL_BINARY(||, bool)

// The vector that says how far to shift may be of other integers.
#define MSL_SHIFT(OP)                                                                                              \
  template <typename T, int N, typename U, typename = metal::enable_if_t<metal::msl_shifts<T, U>>>                  \
  MSL_INLINE constexpr vec<T, N> operator OP(vec<T, N> a, vec<U, N> b) { return a OP vec<T, N>(b); }
namespace metal {
template <typename T, typename U> constant constexpr bool msl_shifts = !__is_same(T, U) && msl_integral_v<T> && msl_integral_v<U>;
}  // namespace metal
MSL_SHIFT(<<) MSL_SHIFT(>>)

#define MSL_UNARY(OP, RESULT, DEMAND)                                                   \
  template <typename T, int N> MSL_INLINE constexpr vec<RESULT, N> operator OP(vec<T, N> a) { \
    static_assert(DEMAND, "Metal has no arithmetic on vectors of bool");                \
    MSL_ELEMENTS(RESULT, N, MSL_ELEMENT_OF_ONE, RESULT, OP)                              \
  }
#define MSL_NO_BOOL (!metal::is_same_v<T, bool>)
MSL_UNARY(-, T, MSL_NO_BOOL) MSL_UNARY(+, T, MSL_NO_BOOL) MSL_UNARY(~, T, MSL_NO_BOOL) MSL_UNARY(!, bool, true)

#define MSL_NAMES2 x, y
#define MSL_NAMES3 x, y, z
#define MSL_NAMES4 x, y, z, w

// Packed vectors: the same elements, aligned as one of them.
#define MSL_PACKED_MEMBERS(N)                                                                        \
  packed_vec() = default;                                                                            \
  MSL_INLINE constexpr packed_vec() __constant : MSL_MEMBERS##N(MSL_ZERO) {}                         \
  MSL_INLINE constexpr packed_vec(vec<T, N> a) : MSL_MEMBERS##N(MSL_PLAIN_MEMBER) {}                 \
  template <typename U, typename = metal::msl_scalar_only<U>>                                            \
  MSL_INLINE constexpr packed_vec(U a) : MSL_MEMBERS##N(MSL_SAME) {}                                           \
  template <int I> MSL_INLINE T lane() const { return (&msl_x)[I]; }                                     \
  template <int I> MSL_INLINE T lane() const __constant { return (&msl_x)[I]; }                          \
  template <typename U> MSL_INLINE packed_vec& operator+=(U b) { return *this = *this + b; }         \
  template <typename U> MSL_INLINE packed_vec& operator-=(U b) { return *this = *this - b; }         \
  template <typename U> MSL_INLINE packed_vec& operator*=(U b) { return *this = *this * b; }         \
  template <typename U> MSL_INLINE packed_vec& operator/=(U b) { return *this = *this / b; }         \
  template <typename U> MSL_INLINE packed_vec& operator%=(U b) { return *this = *this % b; }          \
  template <typename U> MSL_INLINE packed_vec& operator&=(U b) { return *this = *this & b; }          \
  template <typename U> MSL_INLINE packed_vec& operator|=(U b) { return *this = *this | b; }          \
  template <typename U> MSL_INLINE packed_vec& operator^=(U b) { return *this = *this ^ b; }          \
  template <typename U> MSL_INLINE packed_vec& operator<<=(U b) { return *this = *this << b; }        \
  template <typename U> MSL_INLINE packed_vec& operator>>=(U b) { return *this = *this >> b; }        \
  MSL_INLINE operator vec<T, N>() const { return vec<T, N>(MSL_NAMES##N); }                          \
  MSL_INLINE operator vec<T, N>() const __constant { return vec<T, N>(MSL_NAMES##N); }               \
  MSL_INDEXING(N)

// Operators give what those of plain vectors do, where these exist.
#define MSL_PACKED_BINARY(OP)                                                                                          \
  template <typename T, int N> MSL_INLINE auto operator OP(packed_vec<T, N> a, packed_vec<T, N> b)                     \
      -> decltype(vec<T, N>() OP vec<T, N>()) { return vec<T, N>(a) OP vec<T, N>(b); }                                 \
  template <typename T, int N> MSL_INLINE auto operator OP(packed_vec<T, N> a, vec<T, N> b)                            \
      -> decltype(vec<T, N>() OP vec<T, N>()) { return vec<T, N>(a) OP b; }                                            \
  template <typename T, int N> MSL_INLINE auto operator OP(vec<T, N> a, packed_vec<T, N> b)                            \
      -> decltype(vec<T, N>() OP vec<T, N>()) { return a OP vec<T, N>(b); }                                            \
  template <typename T, int N, typename U, typename = metal::msl_scalar_only<U>>                                           \
  MSL_INLINE auto operator OP(packed_vec<T, N> a, U b) -> decltype(vec<T, N>() OP U()) { return vec<T, N>(a) OP b; }   \
  template <typename T, int N, typename U, typename = metal::msl_scalar_only<U>>                                           \
  MSL_INLINE auto operator OP(U a, packed_vec<T, N> b) -> decltype(U() OP vec<T, N>()) { return a OP vec<T, N>(b); }
#define MSL_PACKED_UNARY(OP)                                                                                           \
  template <typename T, int N> MSL_INLINE auto operator OP(packed_vec<T, N> a) -> decltype(OP vec<T, N>()) {           \
    return OP vec<T, N>(a);                                                                                            \
  }
MSL_PACKED_BINARY(+) MSL_PACKED_BINARY(-) MSL_PACKED_BINARY(*) MSL_PACKED_BINARY(/) MSL_PACKED_BINARY(%)
MSL_PACKED_BINARY(&) MSL_PACKED_BINARY(|) MSL_PACKED_BINARY(^) MSL_PACKED_BINARY(<<) MSL_PACKED_BINARY(>>)
MSL_PACKED_BINARY(==) MSL_PACKED_BINARY(!=) MSL_PACKED_BINARY(<) MSL_PACKED_BINARY(>) MSL_PACKED_BINARY(<=) MSL_PACKED_BINARY(>=)
MSL_PACKED_UNARY(-) MSL_PACKED_UNARY(+) MSL_PACKED_UNARY(~) MSL_PACKED_UNARY(!)

template <typename T> struct packed_vec<T, 2> {
  T msl_x, msl_y;
  MSL_COMPONENTS2
  MSL_PACKED_MEMBERS(2)
  MSL_INLINE constexpr packed_vec(T a, T b) : msl_x(a), msl_y(b) {}
};
template <typename T> struct packed_vec<T, 3> {
  T msl_x, msl_y, msl_z;
  MSL_COMPONENTS3
  MSL_PACKED_MEMBERS(3)
  MSL_INLINE constexpr packed_vec(T a, T b, T c) : msl_x(a), msl_y(b), msl_z(c) {}
};
template <typename T> struct packed_vec<T, 4> {
  T msl_x, msl_y, msl_z, msl_w;
  MSL_COMPONENTS4
  MSL_PACKED_MEMBERS(4)
  MSL_INLINE constexpr packed_vec(T a, T b, T c, T d) : msl_x(a), msl_y(b), msl_z(c), msl_w(d) {}
};

#define MSL_VECTOR_NAMES(T)                                                                     \
  typedef vec<T, 2> T##2; typedef vec<T, 3> T##3; typedef vec<T, 4> T##4;                       \
  typedef packed_vec<T, 2> packed_##T##2; typedef packed_vec<T, 3> packed_##T##3; typedef packed_vec<T, 4> packed_##T##4;
MSL_VECTOR_NAMES(float) MSL_VECTOR_NAMES(half) MSL_VECTOR_NAMES(bfloat) MSL_VECTOR_NAMES(bool)
MSL_VECTOR_NAMES(char) MSL_VECTOR_NAMES(uchar) MSL_VECTOR_NAMES(short) MSL_VECTOR_NAMES(ushort)
MSL_VECTOR_NAMES(int) MSL_VECTOR_NAMES(uint) MSL_VECTOR_NAMES(long) MSL_VECTOR_NAMES(ulong)

namespace metal {
#define MSL_IN_METAL(T)                                                         \
  using ::T##2; using ::T##3; using ::T##4;                                     \
  using ::packed_##T##2; using ::packed_##T##3; using ::packed_##T##4;
MSL_IN_METAL(float) MSL_IN_METAL(half) MSL_IN_METAL(bfloat) MSL_IN_METAL(bool) MSL_IN_METAL(char) MSL_IN_METAL(uchar)
MSL_IN_METAL(short) MSL_IN_METAL(ushort) MSL_IN_METAL(int) MSL_IN_METAL(uint) MSL_IN_METAL(long) MSL_IN_METAL(ulong)
using ::uchar; using ::ushort; using ::uint; using ::ulong; using ::size_t; using ::ptrdiff_t; using ::bfloat;
using ::int8_t; using ::uint8_t; using ::int16_t; using ::uint16_t; using ::int32_t; using ::uint32_t; using ::int64_t; using ::uint64_t;
}  // namespace metal
