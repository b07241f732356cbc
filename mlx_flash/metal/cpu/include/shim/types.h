// Metal's keywords, scalar types and type traits in terms of clang's C++ for OpenCL.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#pragma OPENCL EXTENSION __cl_clang_bitfields : enable

#define __METAL__ 1
#define __METAL_MACOS__ 1
// In the conditions of all loops, with msl_step: frontend/loops.py.
#define msl_ends(limit, by) (__builtin_constant_p(limit) && __builtin_constant_p(by) && (limit) <= 1024 && (by) > 0)
#include <target/steps.h>
#ifndef __METAL_VERSION__
#define __METAL_VERSION__ 310
#endif

#define device __global
#define threadgroup __local
#define thread __private
// Before a reference to a constant (see compiler.py).
#ifdef MSL_VALUES_BIND
#define msl_const_thread
#else
#define msl_const_thread __private
#endif
// Behind the parameters of methods without an address space (see frontend/methods.py).
#ifdef MSL_THREAD_METHODS
#define msl_method_space __private
#else
#define msl_method_space
#endif
#ifdef MSL_THREAD_CONST_METHODS
#define msl_const_method_space __private
#else
#define msl_const_method_space
#endif
#ifdef MSL_VALUES_HAVE_METHODS
#define msl_own_const_method_space
#else
#define msl_own_const_method_space __private
#endif
// The constant space is constant: a pointer to it needs no const to take the address of what is declared const.
#define constant const __constant
// A coherence scope changes nothing where every access goes to the same memory.
#define coherent(scope)
#define threadgroup_imageblock __local
// Metal checks nothing at run time; the condition has to be one.
#define assert(...) ((void)sizeof(bool(__VA_ARGS__)))
#define METAL_FUNC inline __attribute__((always_inline))
// nodebug: what is inlined from the shim counts as the Metal line that called it. Where a caller hands over a reference or an object
// its alignment is checked already; what takes pointers checks itself.
#define MSL_INLINE_CHECKED inline __attribute__((always_inline, nodebug))
#define MSL_INLINE MSL_INLINE_CHECKED __attribute__((no_sanitize("alignment")))

// Ordinary identifiers in Metal, keywords in OpenCL.
#define local msl_local
#define global msl_global
#define generic msl_generic
#define pipe msl_pipe
// Types that clang's OpenCL declares by itself.
#define atomic_int msl_atomic_int
#define atomic_uint msl_atomic_uint
#define atomic_long msl_atomic_long
#define atomic_ulong msl_atomic_ulong
#define atomic_bool msl_atomic_bool
#define atomic_float msl_atomic_float
#define atomic_flag msl_atomic_flag
#define event_t msl_event_t
#define queue_t msl_queue_t

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef long intptr_t;
typedef unsigned long uintptr_t;
typedef __bf16 bfloat;

template <typename T, int N> struct vec;
template <typename T, int N> struct packed_vec;

namespace metal {

template <typename T, T V> struct integral_constant {
  static constant constexpr T value = V;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return V; }
  constexpr T operator()() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> { typedef T type; };
template <bool B, typename T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool, typename A, typename B> struct conditional { typedef A type; };
template <typename A, typename B> struct conditional<false, A, B> { typedef B type; };
template <bool C, typename A, typename B> using conditional_t = typename conditional<C, A, B>::type;

template <typename A, typename B> constant constexpr bool is_same_v = __is_same(A, B);
template <typename A, typename B> struct is_same : bool_constant<__is_same(A, B)> {};

template <typename T> struct remove_reference { typedef __remove_reference_t(T) type; };
template <typename T> using remove_reference_t = typename remove_reference<T>::type;

// The address space is a qualifier here: strip it with const and volatile wherever Metal's traits would not see it.
template <typename T> struct msl_remove_space { typedef T type; };
template <typename T> struct msl_remove_space<__global T> { typedef T type; };
template <typename T> struct msl_remove_space<__local T> { typedef T type; };
template <typename T> struct msl_remove_space<__private T> { typedef T type; };
template <typename T> struct msl_remove_space<__constant T> { typedef T type; };
template <typename T> struct msl_remove_space<__generic T> { typedef T type; };
template <typename T> using msl_plain_t = __remove_cv(typename msl_remove_space<__remove_cv(__remove_reference_t(T))>::type);

template <typename T> struct remove_addrspace { typedef typename msl_remove_space<T>::type type; };
template <typename T> using remove_addrspace_t = typename remove_addrspace<T>::type;

template <typename T> struct remove_const { typedef T type; };
template <typename T> struct remove_const<const T> { typedef T type; };
template <typename T> using remove_const_t = typename remove_const<T>::type;
template <typename T> struct remove_volatile { typedef T type; };
template <typename T> struct remove_volatile<volatile T> { typedef T type; };
template <typename T> using remove_volatile_t = typename remove_volatile<T>::type;
template <typename T> struct remove_cv { typedef __remove_cv(T) type; };
template <typename T> using remove_cv_t = typename remove_cv<T>::type;
template <typename T> struct remove_pointer { typedef __remove_pointer(T) type; };
template <typename T> using remove_pointer_t = typename remove_pointer<T>::type;
template <typename T> struct decay { typedef msl_plain_t<T> type; };
template <typename T> using decay_t = typename decay<T>::type;

template <typename T> constant constexpr bool msl_floating_v =
    __is_same(msl_plain_t<T>, float) || __is_same(msl_plain_t<T>, half) || __is_same(msl_plain_t<T>, bfloat);
template <typename T> constant constexpr bool msl_integral_v = __is_integral(msl_plain_t<T>);
template <typename T> constant constexpr bool msl_arithmetic_v = msl_integral_v<T> || msl_floating_v<T>;

// The traits of a vector are those of its elements; what is no vector has none, and is its own element.
template <typename T> struct msl_elements { typedef T type; static constant constexpr int count = 1; };
template <typename T, int N> struct msl_elements<vec<T, N>> { typedef T type; static constant constexpr int count = N; };
template <typename T, int N> struct msl_elements<packed_vec<T, N>> { typedef T type; static constant constexpr int count = N; };
template <typename T> using msl_element_t = typename msl_elements<T>::type;
template <typename T> struct make_scalar { typedef msl_element_t<msl_plain_t<T>> type; };
template <typename T> using make_scalar_t = typename make_scalar<T>::type;
template <typename T> struct msl_vec_elements : integral_constant<size_t, 0> {};
template <typename T, int N> struct msl_vec_elements<vec<T, N>> : integral_constant<size_t, N> {};
template <typename T, int N> struct msl_vec_elements<packed_vec<T, N>> : integral_constant<size_t, N> {};
template <typename T> struct vec_elements : msl_vec_elements<msl_plain_t<T>> {};
template <typename T> constant constexpr bool is_vector_v = vec_elements<T>::value > 0;
template <typename T> struct is_vector : bool_constant<is_vector_v<T>> {};

template <typename T> constant constexpr bool is_floating_point_v = msl_floating_v<make_scalar_t<T>>;
template <typename T> struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <typename T> constant constexpr bool is_integral_v = msl_integral_v<make_scalar_t<T>>;
template <typename T> struct is_integral : bool_constant<is_integral_v<T>> {};
template <typename T> constant constexpr bool is_arithmetic_v = msl_arithmetic_v<make_scalar_t<T>>;
template <typename T> struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};
template <typename T> constant constexpr bool is_scalar_v = msl_arithmetic_v<T> || __is_enum(msl_plain_t<T>) || __is_pointer(msl_plain_t<T>);
template <typename T> struct is_scalar : bool_constant<is_scalar_v<T>> {};
template <typename T> constant constexpr bool is_signed_v = is_floating_point_v<T> || __is_signed(make_scalar_t<T>);
template <typename T> struct is_signed : bool_constant<is_signed_v<T>> {};
template <typename T> constant constexpr bool is_unsigned_v = is_integral_v<T> && !is_signed_v<T>;
template <typename T> struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <typename T> constant constexpr bool is_pointer_v = __is_pointer(T);
template <typename T> struct is_pointer : bool_constant<is_pointer_v<T>> {};
template <typename T> constant constexpr bool is_enum_v = __is_enum(T);
template <typename T> struct is_enum : bool_constant<is_enum_v<T>> {};
template <typename T> constant constexpr bool is_class_v = __is_class(T);
template <typename T> struct is_class : bool_constant<is_class_v<T>> {};
template <typename A, typename B> constant constexpr bool is_convertible_v = __is_convertible(A, B);
template <typename A, typename B> struct is_convertible : bool_constant<__is_convertible(A, B)> {};
template <typename A, typename B> constant constexpr bool is_base_of_v = __is_base_of(A, B);
template <typename A, typename B> struct is_base_of : bool_constant<__is_base_of(A, B)> {};
template <typename T> constant constexpr bool is_const_v = __is_const(T);
template <typename T> struct is_const : bool_constant<__is_const(T)> {};
template <typename T> constant constexpr bool is_void_v = __is_void(T);
template <typename T> struct is_void : bool_constant<__is_void(T)> {};

template <typename T> struct make_unsigned { typedef __make_unsigned(T) type; };
template <typename T, int N> struct make_unsigned<vec<T, N>> { typedef vec<__make_unsigned(T), N> type; };
template <typename T> using make_unsigned_t = typename make_unsigned<T>::type;
template <typename T> struct make_signed { typedef __make_signed(T) type; };
template <typename T, int N> struct make_signed<vec<T, N>> { typedef vec<__make_signed(T), N> type; };
template <typename T> using make_signed_t = typename make_signed<T>::type;
template <typename T> struct underlying_type { typedef __underlying_type(T) type; };
template <typename T> using underlying_type_t = typename underlying_type<T>::type;

template <typename... T> struct disjunction : false_type {};
template <typename T, typename... U> struct disjunction<T, U...> : conditional_t<bool(T::value), T, disjunction<U...>> {};
template <typename... T> constant constexpr bool disjunction_v = disjunction<T...>::value;
template <typename... T> struct conjunction : true_type {};
template <typename T> struct conjunction<T> : T {};
template <typename T, typename... U> struct conjunction<T, U...> : conditional_t<bool(T::value), conjunction<U...>, T> {};
template <typename... T> constant constexpr bool conjunction_v = conjunction<T...>::value;

template <typename T> T&& declval();

}  // namespace metal

template <typename T> struct msl_in_constant { static constexpr __constant bool value = false; };
template <typename T> struct msl_in_constant<__constant T> { static constexpr __constant bool value = true; };

// Reads an operand of ?: so that both sides are values, and structures out of the constant space, which the compiler's own copy
// constructors do not reach (see translate.py).
template <typename T> MSL_INLINE constexpr auto msl_value(T&& value) {
  using Plain = metal::msl_plain_t<T>;
  if constexpr (__is_class(Plain) && msl_in_constant<__remove_reference_t(T)>::value) {
    alignas(Plain) char bytes[sizeof(Plain)];
    __builtin_memcpy(bytes, (const __generic void*)(ulong)&value, sizeof(Plain));
    return *(__private Plain*)bytes;
  } else {
    return value;
  }
}

// An element of which `auto` keeps a reference or pointer, and one whose address is passed on: see addresses.py. Those of vectors
// are refused in target/components.h.
#define MSL_ADDRESSED(SPACE)                                                                   \
  template <typename T> MSL_INLINE constexpr SPACE T& msl_addressed(SPACE T& element) { return element; }                     \
  template <typename T> MSL_INLINE constexpr SPACE T& msl_pointed(SPACE T& element) { return element; }
MSL_ADDRESSED(__private) MSL_ADDRESSED(__local) MSL_ADDRESSED(__global) MSL_ADDRESSED(__constant) MSL_ADDRESSED(__generic)
#undef MSL_ADDRESSED

// The type that the address of a function has, which is another than that of a pointer: function_pointers.py.
template <typename R, typename... A> R msl_any_function(A...);
template <typename F> struct msl_function { typedef F type; };
template <typename R, typename... A> struct msl_function<R(A...)> { typedef decltype(&msl_any_function<R, A...>) type; };
template <typename R, typename... A> struct msl_function<R (*)(A...)> : msl_function<R(A...)> {};
template <typename R, typename... A> struct msl_function<R (&)(A...)> : msl_function<R(A...)> {};

// What a method returns by a thread reference or pointer, where its object lies in no particular space: frontend/methods.py.
template <typename T> MSL_INLINE constexpr __private T& msl_own_reference(__generic T& member) { return *(__private T*)&member; }
template <typename T> MSL_INLINE constexpr __private T& msl_own_reference(__private T& member) { return member; }
template <typename T> MSL_INLINE constexpr __private T* msl_own_pointer(__generic T* member) { return (__private T*)member; }
template <typename T> MSL_INLINE constexpr __private T* msl_own_pointer(__private T* member) { return member; }
MSL_INLINE constexpr decltype(nullptr) msl_own_pointer(decltype(nullptr)) { return nullptr; }

// A float constant that the compiler takes for a variable when it judges what converts to bfloat: bfloats.py.
MSL_INLINE float msl_hidden(float value) { return value; }
MSL_INLINE constexpr float msl_float(float value) { return __builtin_is_constant_evaluated() ? value : msl_hidden(value); }
template <typename T> MSL_INLINE constexpr decltype(auto) msl_named(T&& value) {
  if constexpr (__is_same(metal::msl_plain_t<T>, float)) return msl_float(value);
  else return (T&&)value;
}
MSL_INLINE constexpr float msl_limit(float value) { return msl_float(value); }
MSL_INLINE constexpr half msl_limit(half value) { return value; }
MSL_INLINE constexpr bfloat msl_limit(bfloat value) { return value; }

// Clang refuses to convert between its half and its bfloat; Metal does it, rounding once (float holds both exactly).
template <typename A, typename B> constant constexpr bool msl_half_and_bfloat =
    (__is_same(A, bfloat) && __is_same(B, half)) || (__is_same(A, half) && __is_same(B, bfloat));
// The operand of a cast to `To` that is written (To)x.
template <typename To, typename From> MSL_INLINE constexpr decltype(auto) msl_castable(From&& value) {
  if constexpr (msl_half_and_bfloat<To, metal::msl_plain_t<From>>) return (float)value;
  else return (From&&)value;
}
// To(x), which is the same cast.
template <typename To, typename From> MSL_INLINE constexpr To msl_convert(From&& value) {
  return (To)msl_castable<To>((From&&)value);
}
template <typename T> constant constexpr bool msl_nowhere = false;
template <typename T> constant constexpr bool msl_nowhere<__generic T*> = true;
// In a method that names no space `this` points to the thread's own in Metal, to anywhere here.
template <typename To, typename From> MSL_INLINE constexpr To msl_static_cast(From&& value) {
  if constexpr (__is_pointer(To) && msl_nowhere<metal::msl_plain_t<From>>) return (To)value;
  else return static_cast<To>(msl_castable<To>((From&&)value));
}
