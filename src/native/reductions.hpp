// The algebra in native code: what a state is, how two states merge, what an absent input counts as.
// A new fast reduction is one trait here. Nothing in this file knows about windows, layouts or threads.
//
// merge(l, r) gets l from the part of the window that comes first in the window's own order.
#pragma once
#include "simd.hpp"

namespace anypool {
namespace {

struct Row {  // a row of states: one array per component
  char* a;
  char* b;
};
// Sources are filled and read field by field, never copied whole: a copy would load in one piece what was stored in
// several, which the processor cannot forward (15 cycles each, a third of the time of a short row).
struct Source {  // rows to merge; `add` moves their codes to where they stand in the window
  const char* a;
  const char* b;  // null: codes start at zero (plain input)
  int64_t add;
  int64_t pitch;  // from one row to the next, in elements
};

template <class T, class U>
constexpr bool kSame = false;
template <class T>
constexpr bool kSame<T, T> = true;
template <class T>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<float> = true;
template <>
constexpr bool kIsFloat<double> = true;

template <class T>
struct Limits {
  static constexpr bool kSigned = T(-1) < T(0);
  static constexpr T top = kSigned ? T((uint64_t(1) << (8 * sizeof(T) - 1)) - 1) : T(-1);
  static constexpr T bottom = kSigned ? T(-top - 1) : T(0);
};
template <>
struct Limits<float> {
  static constexpr float top = __builtin_inff(), bottom = -__builtin_inff();
};
template <>
struct Limits<double> {
  static constexpr double top = __builtin_inf(), bottom = -__builtin_inf();
};

template <class T, bool IsMax>
struct Select {  // the largest or smallest value; the sign of a zero among equal zeros is that of the merge order
  using A = T;
  using B = char;
  static constexpr bool kPair = false, kCoded = false, kIdempotent = true;
  static constexpr bool kSelects = true;       // a result is one of the inputs
  static constexpr bool kNumbersOnly = false;  // whether a NaN would be lost
  static constexpr int kMaxLanes = kLanes<T>;
  template <int L>
  struct State {
    Vec<T, L> a;
  };
  template <int L>
  static ANYPOOL_INLINE State<L> get(const char* a, const char*, int64_t, int64_t i) {
    return {load<Vec<T, L>>(a + i * sizeof(T))};
  }
  template <int L>
  static ANYPOOL_INLINE void put(const Row& r, int64_t i, State<L> s) {
    store(r.a + i * sizeof(T), s.a);
  }
  template <int L>
  static ANYPOOL_INLINE Vec<T, L> merged(Vec<T, L> l, Vec<T, L> r) {
    return IsMax ? max_of(l, r) : min_of(l, r);
  }
  template <int L>
  static ANYPOOL_INLINE State<L> merge(State<L> l, State<L> r) {
    return {merged<L>(l.a, r.a)};
  }
  static ANYPOOL_INLINE State<1> identity() { return {IsMax ? Limits<T>::bottom : Limits<T>::top}; }
};

// The same among numbers, free of NaNs: one instruction.
template <class T, bool IsMax>
struct SelectNumbers : Select<T, IsMax> {
  static constexpr bool kNumbersOnly = kIsFloat<T>;
  template <int L>
  static ANYPOOL_INLINE Vec<T, L> merged(Vec<T, L> l, Vec<T, L> r) {
    return IsMax ? max_of_numbers(l, r) : min_of_numbers(l, r);
  }
};

// The winner and its offset in the window: the first of equal values, the last of several NaNs. The order is total, so
// any merge order gives the same winner.
template <class T, class I, bool IsMax>
struct SelectCoded {
  using A = T;
  using B = I;
  static constexpr bool kPair = true, kCoded = true, kIdempotent = true;
  static constexpr int kMaxLanes = kLanes<T>;
  static_assert(sizeof(T) == sizeof(I), "one code lane per value lane");
  template <int L>
  struct State {
    Vec<T, L> a;
    Vec<I, L> b;
  };
  template <int L>
  static ANYPOOL_INLINE State<L> get(const char* a, const char* b, int64_t add, int64_t i) {
    Vec<I, L> code = Vec<I, L>{} + I(add);
    if (b) code += load<Vec<I, L>>(b + i * sizeof(I));
    return {load<Vec<T, L>>(a + i * sizeof(T)), code};
  }
  template <int L>
  static ANYPOOL_INLINE void put(const Row& r, int64_t i, State<L> s) {
    store(r.a + i * sizeof(T), s.a);
    store(r.b + i * sizeof(I), s.b);
  }
  template <int L>
  static ANYPOOL_INLINE State<L> merge(State<L> l, State<L> r) {
    auto better = IsMax ? r.a > l.a : r.a < l.a;
    auto right = better | ((r.a == l.a) & (r.b < l.b));
    if constexpr (kIsFloat<T>) right = right | ((r.a != r.a) & ((l.a == l.a) | (r.b > l.b)));
    return {right ? r.a : l.a, right ? r.b : l.b};
  }
  static ANYPOOL_INLINE State<1> identity() {
    return {IsMax ? Limits<T>::bottom : Limits<T>::top, I(Limits<I>::top / 2)};
  }
};

// Integers are added as unsigned ones, which wrap: kernels also add what lies behind the end of a row, whatever that is,
// and NumPy's sums of 64 bits wrap, too.
template <class T>
struct Wrapping {
  using type = T;
};
template <>
struct Wrapping<int32_t> {
  using type = uint32_t;
};
template <>
struct Wrapping<int64_t> {
  using type = uint64_t;
};

template <class T>
struct Sum {
  using A = T;
  using B = char;
  static constexpr bool kPair = false, kCoded = false, kIdempotent = false;
  static constexpr bool kSelects = false;
  static constexpr bool kNumbersOnly = false;  // whether a NaN would be lost
  static constexpr int kMaxLanes = kLanes<T>;
  template <int L>
  struct State {
    Vec<T, L> a;
  };
  template <int L>
  static ANYPOOL_INLINE State<L> get(const char* a, const char*, int64_t, int64_t i) {
    return {load<Vec<T, L>>(a + i * sizeof(T))};
  }
  template <int L>
  static ANYPOOL_INLINE void put(const Row& r, int64_t i, State<L> s) {
    store(r.a + i * sizeof(T), s.a);
  }
  template <int L>
  static ANYPOOL_INLINE Vec<T, L> merged(Vec<T, L> l, Vec<T, L> r) {
    using U = Vec<typename Wrapping<T>::type, L>;
    return (Vec<T, L>)((U)l + (U)r);
  }
  template <int L>
  static ANYPOOL_INLINE State<L> merge(State<L> l, State<L> r) {
    return {merged<L>(l.a, r.a)};
  }
  // -0.0 and not 0.0: the only float that leaves every other one as it is, -0.0 included.
  static ANYPOOL_INLINE State<1> identity() { return {kIsFloat<T> ? T(-0.0) : T(0)}; }
};

// A sum of numbers too large or too small for a double: sum of a * 2^b, b integral. No maximum has to be found first.
struct ScaledSum {
  using A = double;
  using B = double;
  static constexpr bool kPair = true, kCoded = false, kIdempotent = false;
  static constexpr int kMaxLanes = kLanes<double>;
  static constexpr double kZeroExponent = -0x1p1020;
  template <int L>
  struct State {
    Vec<double, L> a;
    Vec<double, L> b;
  };
  template <int L>
  static ANYPOOL_INLINE State<L> get(const char* a, const char* b, int64_t, int64_t i) {
    return {load<Vec<double, L>>(a + i * 8), load<Vec<double, L>>(b + i * 8)};
  }
  template <int L>
  static ANYPOOL_INLINE void put(const Row& r, int64_t i, State<L> s) {
    store(r.a + i * 8, s.a);
    store(r.b + i * 8, s.b);
  }
  // 2^e for an integral e <= 0, by writing e into the exponent bits; 0 where a double has no such number.
  template <int L>
  static ANYPOOL_INLINE Vec<double, L> two_to(Vec<double, L> e) {
    const Vec<double, L> lowest = e - e - 1023.0;
    Vec<double, L> shifted = (e > lowest ? e : lowest) + (1023.0 + 0x1.8p52);
    Vec<int64_t, L> bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits & 0x7ff) << 52;
    __builtin_memcpy(&shifted, &bits, sizeof bits);
    return shifted;
  }
  template <int L>
  static ANYPOOL_INLINE State<L> merge(State<L> l, State<L> r) {
    Vec<double, L> top = l.b > r.b ? l.b : r.b;
    return {l.a * two_to<L>(l.b - top) + r.a * two_to<L>(r.b - top), top};
  }
  static ANYPOOL_INLINE State<1> identity() { return {0.0, kZeroExponent}; }
};

// The merge of N values that f gives, from f(Tap<From>) on: the first h and the other N - h, h the largest power of two
// below N. See split_point() in merge.hpp, which does the same for numbers known at run time.
template <int T>
struct Tap {
  static constexpr int value = T;
};
template <class Op, int From, int N, class F>
ANYPOOL_INLINE auto merged_taps(F&& f) {
  if constexpr (N == 1) {
    return f(Tap<From>{});
  } else {
    constexpr int half = N > 8 ? 8 : N > 4 ? 4 : N > 2 ? 2 : 1;
    return Op::template merged<kLanes<typename Op::A>>(merged_taps<Op, From, half>(f),
                                                       merged_taps<Op, From + half, N - half>(f));
  }
}
// f(Tap<n>) for a number from 1 to Most that is known at run time.
template <int Most, class F>
ANYPOOL_INLINE auto with_number(i64 n, F&& f) {
  if constexpr (Most > 1)
    if (n < Most) return with_number<Most - 1>(n, f);
  return f(Tap<Most>{});
}

}  // namespace
}  // namespace anypool
