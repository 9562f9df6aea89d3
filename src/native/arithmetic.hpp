// Lifts and finishes: what happens to the elements of a row before and after they are merged.
#pragma once
#include <math.h>

#include "exponential.hpp"
#include "lanes.hpp"

namespace anypool {
namespace {

template <class T>
ANYPOOL_INLINE T integer_power(T x, i64 n) {
  T y = T{} + 1;
  for (; n; n >>= 1, x *= x)
    if (n & 1) y *= x;
  return y;
}
template <int N, class V>
ANYPOOL_INLINE V small_power(V x) {
  if constexpr (N == 0) return splat<V>(1.0);
  if constexpr (N == 1) return x;
  if constexpr (N == 2) return x * x;
  return x * x * x;
}
// With the sign of x; 0 is 0.
template <int N, class V>
ANYPOOL_INLINE V signed_power(V x) {
  if constexpr (N == 0) return x > 0 ? splat<V>(1.0) : x < 0 ? splat<V>(-1.0) : x;
  if constexpr (N == 2) return (x < 0 ? -x : x) * x;
  return small_power<N>(x);
}
// f(tag of n).
template <class F>
ANYPOOL_INLINE void with_small_power(int n, F&& f) {
  switch (n) {
    case 0: return f(Tap<0>{});
    case 1: return f(Tap<1>{});
    case 2: return f(Tap<2>{});
    default: return f(Tap<3>{});
  }
}
ANYPOOL_INLINE float absolute(float x) { return __builtin_fabsf(x); }
ANYPOOL_INLINE double absolute(double x) { return __builtin_fabs(x); }
// v[i] = f(x[i], by[i]), f being given vectors of L; v may be x.
template <int L, class T, class F>
ANYPOOL_INLINE void each(T* v, const T* x, const T* by, i64 n, F&& f) {
  using V = Vec<T, L>;
  i64 i = 0;
  for (; i + L <= n; i += L) store(v + i, f(load<V>(x + i), load<V>(by + i)));
  if (i == n) return;
  if constexpr (L == kLanes<T>) {
    using Memory = Lanes<T, T, L>;
    const Part rest({0, n - i});
    Memory::store_part(v + i, f(Memory::load_part(x + i, rest, V{}), Memory::load_part(by + i, rest, V{})), rest);
  } else {
    V rest{}, by_rest{};
    const size_t bytes = size_t(n - i) * sizeof(T);
    __builtin_memcpy(&rest, x + i, bytes);
    __builtin_memcpy(&by_rest, by + i, bytes);
    rest = f(rest, by_rest);
    __builtin_memcpy(v + i, &rest, bytes);
  }
}
// v[i] = f(x[i]), f being given vectors of L; v may be x.
template <int L, class T, class F>
ANYPOOL_INLINE void each(T* v, const T* x, i64 n, F&& f) {
  each<L>(v, x, x, n, [&](Vec<T, L> a, Vec<T, L>) { return f(a); });
}
template <class V>
ANYPOOL_INLINE V magnitude(V x) {  // 0.0 for -0.0, too
  return max_of_numbers(x, -x) + V{};
}
template <class T>
void lift_powers(T* v, const T* x, i64 n, Lift lift, double p) {  // |x|^p, or x^p for odd p; v may be x
  using V = Vec<T, kLanes<T>>;
  const bool keep_sign = lift == Lift::signed_power;
  const i64 whole = lift == Lift::absolute ? 1 : p <= 16 ? i64(p) : 0;
  if (lift != Lift::absolute && p != double(whole)) {
    for (i64 i = 0; i < n; ++i) {
      double a = pow(fabs(double(x[i])), p);
      v[i] = T(keep_sign && x[i] < 0 ? -a : a);
    }
  } else if (whole == 2) {
    each<kLanes<T>>(v, x, n, [](V a) { return a * a; });
  } else if (keep_sign) {
    whole == 3 ? each<kLanes<T>>(v, x, n, [](V a) { return a * (a * a); })
               : each<kLanes<T>>(v, x, n, [&](V a) { return integer_power(a, whole); });
  } else if (whole == 1) {
    each<kLanes<T>>(v, x, n, [](V a) { return magnitude(a); });
  } else if (whole == 3) {
    each<kLanes<T>>(v, x, n, [](V a) { return magnitude(a) * (a * a); });
  } else {
    each<kLanes<T>>(v, x, n, [&](V a) { return integer_power(magnitude(a), whole); });
  }
}

// The cube root of numbers that are floats, so that every one is a normal number in double; -0.0, infinities and NaNs are
// their own. r = |s|^(-1/3) is the solution of |s| r^3 = 1: the first guess divides the exponent by 3, as the number that
// the upper half of the bits is, and each step has the error e = 1 - |s| r^3 to the fourth power.
template <int L>
ANYPOOL_INLINE Vec<double, L> cube_root(Vec<double, L> s) {
  using V = Vec<double, L>;
  using I = Vec<int64_t, L>;
  const V a = magnitude(s);
  I bits;
  __builtin_memcpy(&bits, &a, sizeof bits);
  const I as_number = (bits >> 32) | 0x4330000000000000;  // 2^52 + the upper half
  V upper;
  __builtin_memcpy(&upper, &as_number, sizeof upper);
  const V guess = (0x553f09fd + 0x1p52) - (upper - 0x1p52) * (1.0 / 3);
  __builtin_memcpy(&bits, &guess, sizeof bits);
  bits <<= 32;
  V r;
  __builtin_memcpy(&r, &bits, sizeof r);
  for (int i = 0; i < 2; ++i) {
    const V e = 1.0 - a * r * (r * r);
    r += r * e * (1.0 / 3 + e * (2.0 / 9 + e * (14.0 / 81)));
  }
  const V root = a * r * r;
  return (a > 0) & (a < __builtin_inf()) ? (s < 0 ? -root : root) : s;
}
inline void finish_cube_roots(float* v, i64 n) {
  constexpr int L = kLanes<double>;
  using F = Vec<float, L>;
  each<L>(v, v, n, [](F s) { return convert<F>(cube_root<L>(convert<Vec<double, L>>(s))); });
}
inline void finish_cube_roots(double* v, i64 n) {
  for (i64 i = 0; i < n; ++i) v[i] = cbrt(v[i]);
}

template <class T>
void finish_roots(T* v, i64 n, double p) {  // sign(s) |s|^(1/p)
  if (p == 1) return;
  if (p == 3) return finish_cube_roots(v, n);
  if (p == 2) {  // no sum of squares is negative; rounded once, as in double
    for (i64 i = 0; i < n; ++i)
      v[i] = kSame<T, float> ? T(__builtin_sqrtf(float(v[i]))) : T(__builtin_sqrt(double(v[i])));
    return;
  }
  for (i64 i = 0; i < n; ++i) {
    double s = fabs(double(v[i]));
    s = p == 4 ? sqrt(sqrt(s)) : pow(s, 1 / p);
    v[i] = T(v[i] < 0 ? -s : s);
  }
}

// factor * 2^t as a scaled number, for any real t.
ANYPOOL_INLINE void scale(double& a, double& b, double factor, double t) {
  if (fabs(t) < __builtin_inf()) {
    b = floor(t);
    a = factor * exp2(t - b);
  } else {
    a = t != t ? t : t > 0 ? factor * t : factor * 0;  // an infinity stands above every finite exponent
    b = t < 0 ? ScaledSum::kZeroExponent : t > 0 ? -ScaledSum::kZeroExponent : 0;
  }
}
// The same of factor 1 for e^(by x), in vectors.
template <int L>
ANYPOOL_INLINE void scale_exp(double* x, double* b, double by) {
  using V = Vec<double, L>;
  const V v = load<V>(x) * by, t = v * kLog2E, infinity = splat<V>(__builtin_inf());
  const Exponential<L> e(v);
  const auto small = magnitude(t) < 0x1p50;  // else t is as good as integral
  V a = small ? e.factor : V{} + 1, n = small ? e.n : t;
  a = t == infinity ? infinity : t == -infinity ? V{} : t != t ? t : a;
  n = t == infinity ? splat<V>(-ScaledSum::kZeroExponent) : t == -infinity ? splat<V>(ScaledSum::kZeroExponent) : n;
  store(x, a);
  store(b, t != t ? V{} : n);
}
inline void scale_exps(double* x, double* b, i64 n, double by) {
  constexpr int L = kLanes<double>;
  i64 i = 0;
  for (; i + L <= n; i += L) scale_exp<L>(x + i, b + i, by);
  if (i == n) return;
  double rest[L] = {}, exponent[L];
  __builtin_memcpy(rest, x + i, size_t(n - i) * sizeof *rest);
  scale_exp<L>(rest, exponent, by);
  __builtin_memcpy(x + i, rest, size_t(n - i) * sizeof *rest);
  __builtin_memcpy(b + i, exponent, size_t(n - i) * sizeof *rest);
}

ANYPOOL_INLINE i64 divide_half_even(i64 sum, i64 n) {
  i64 q = sum / n, r = sum % n;
  if (r < 0) r += n, --q;
  i64 twice = r - (n - r);
  return q + (twice > 0 || (twice == 0 && (q & 1)));
}
ANYPOOL_INLINE uint64_t divide_half_even(uint64_t sum, i64 count) {
  uint64_t n = uint64_t(count), q = sum / n, r = sum % n;
  return q + (r > n - r || (r == n - r && (q & 1)));
}
// Up to 2^31 the quotient of doubles is near enough to the exact one to be rounded instead of it: a quotient that is not
// a tie is at least 1 / (2 n) away from one. Adding and taking away 1.5 * 2^52 rounds to nearest, ties to even.
ANYPOOL_INLINE int32_t divide_half_even(int32_t sum, double n) {
  return int32_t(double(sum) / n + 0x1.8p52 - 0x1.8p52);
}

// The same for sums up to 2^22, in floats, which are as wide as the sums: a quotient q of n is off by q / 2^24 at most,
// half of what a tie would need.
inline void divide_small(int32_t* v, i64 n, float by) {
  for (i64 i = 0; i < n; ++i) v[i] = int32_t(float(v[i]) / by + 0x1.8p23f - 0x1.8p23f);
}

// And for sums up to 2^50 in doubles, whose quotients are off by 1 / (8 n) at most.
template <class T>
void divide_exact(T* v, i64 n, double by) {
  for (i64 i = 0; i < n; ++i) v[i] = T(i64(double(i64(v[i])) / by + 0x1.8p52 - 0x1.8p52));
}

template <class T>
void divide_all(T* v, i64 n, double by) {
  for (i64 i = 0; i < n; ++i) {
    if constexpr (kIsFloat<T>)
      v[i] /= T(by);
    else if constexpr (sizeof(T) == 4)
      v[i] = divide_half_even(v[i], by);
    else
      v[i] = divide_half_even(v[i], i64(by));
  }
}
template <class T>
void divide_each(T* v, i64 n, double by, const double* each) {
  for (i64 i = 0; i < n; ++i) {
    if constexpr (kIsFloat<T>)
      v[i] /= T(by * each[i]);
    else if constexpr (sizeof(T) == 4)
      v[i] = divide_half_even(v[i], by * each[i]);
    else
      v[i] = divide_half_even(v[i], i64(by * each[i]));
  }
}

}  // namespace
}  // namespace anypool
