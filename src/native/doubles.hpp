// Floats and halves as doubles, and back: what is computed from them is rounded once.
#pragma once
#include "lanes.hpp"

namespace anypool {
namespace {

// f(tag of the elements' type) for the types that have vectors here, and whether there was one.
template <class F>
ANYPOOL_INLINE bool with_doubles(DType t, F&& f) {
  switch (t) {
    case DType::f32: f(Tag<float>{}); return true;
    case DType::bf16: f(Tag<bf16>{}); return true;
#if defined(__F16C__)
    case DType::f16: f(Tag<f16>{}); return true;
#endif
    default: return false;
  }
}

inline bool has_doubles(DType t) {
  return with_doubles(t, [](auto) {});
}

// The lower or the upper half of a vector.
template <int Upper, class A, int L, int... I>
ANYPOOL_INLINE Vec<double, L / 2> half_as_doubles(Vec<A, L> v, Indices<I...>) {
  const auto half = __builtin_shufflevector(v, v, (I + Upper * L / 2)...);
  return convert<Vec<double, L / 2>>(half);
}

template <class T>
class AsDoubles {
  static constexpr int L = kLanes<float>, H = L / 2;
  using Memory = Lanes<T, float, L>;
  using Floats = Vec<float, L>;

 public:
  using V = Vec<double, H>;  // half as many as are loaded at once

  // v[i] = f(a[i], b[i]), f being given vectors.
  template <class F>
  static ANYPOOL_INLINE void load(double* v, const T* a, const T* b, i64 n, F&& f) {
    const auto put = [&](double* to, Floats x, Floats y) {
      store(to, f(half<0>(x), half<0>(y)));
      store(to + H, f(half<1>(x), half<1>(y)));
    };
    i64 i = 0;
    for (; i + L <= n; i += L) put(v + i, Memory::load(a + i), Memory::load(b + i));
    if (i == n) return;
    const Part part({0, n - i});
    double rest[L];
    put(rest, Memory::load_part(a + i, part, Floats{}), Memory::load_part(b + i, part, Floats{}));
    __builtin_memcpy(v + i, rest, size_t(n - i) * sizeof(double));
  }
  // y[i] = f(v[i], x[i]).
  template <class F>
  static ANYPOOL_INLINE void put(T* y, const double* v, const T* x, i64 n, F&& f) {
    const auto joined = [&](const double* from, Floats x) {
      return join(f(anypool::load<V>(from), half<0>(x)), f(anypool::load<V>(from + H), half<1>(x)));
    };
    i64 i = 0;
    for (; i + L <= n; i += L) Memory::store(y + i, joined(v + i, Memory::load(x + i)));
    if (i == n) return;
    const Part part({0, n - i});
    double rest[L] = {};
    __builtin_memcpy(rest, v + i, size_t(n - i) * sizeof(double));
    Memory::store_part(y + i, joined(rest, Memory::load_part(x + i, part, Floats{})), part);
  }

 private:
  template <int Upper>
  static ANYPOOL_INLINE V half(Floats v) {
    return half_as_doubles<Upper, float, L>(v, typename MakeIndices<H>::type{});
  }
  template <int... I>
  static ANYPOOL_INLINE Floats join(Vec<float, H> a, Vec<float, H> b, Indices<I...>) {
    return __builtin_shufflevector(a, b, I...);
  }
  static ANYPOOL_INLINE Floats join(V a, V b) { return join(floats(a), floats(b), typename MakeIndices<L>::type{}); }
  // Of halves rounded to odd, so that rounding twice equals rounding once.
  static ANYPOOL_INLINE Vec<float, H> floats(V d) {
    using Bits = Vec<int32_t, H>;
    const auto f = convert<Vec<float, H>>(d);
    if constexpr (kSame<T, float>) return f;
    const V back = convert<V>(f);
    Bits u;
    __builtin_memcpy(&u, &f, sizeof u);
    // Masks are -1. Of what is inexact and even, the magnitude grows by 1 where it had been rounded down, else it shrinks.
    const Bits inexact = __builtin_convertvector((back != d) & (d == d), Bits) & ((u & 1) - 1),
               grows = __builtin_convertvector((back < d) == (d > 0), Bits);
    u += inexact & ~(grows + grows);
    Vec<float, H> odd;
    __builtin_memcpy(&odd, &u, sizeof odd);
    return odd;
  }
};

}  // namespace
}  // namespace anypool
