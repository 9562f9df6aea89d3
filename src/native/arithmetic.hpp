// Lifts and finishes: what happens to the elements of a row before and after they are merged.
#pragma once
#include <math.h>

#include "elements.hpp"

namespace anypool {
namespace {

template <class T>
ANYPOOL_INLINE T integer_power(T x, i64 n) {
  T y = 1;
  for (; n; n >>= 1, x *= x)
    if (n & 1) y *= x;
  return y;
}
ANYPOOL_INLINE double small_power(double x, int n) {  // n <= 3, without a branch in the loop around it
  return n == 0 ? 1 : n == 1 ? x : n == 2 ? x * x : x * x * x;
}
ANYPOOL_INLINE float absolute(float x) { return __builtin_fabsf(x); }
ANYPOOL_INLINE double absolute(double x) { return __builtin_fabs(x); }
template <class T>
void lift_powers(T* v, i64 n, Lift lift, double p) {  // |x|^p, or x^p for odd p
  const bool keep_sign = lift == Lift::signed_power;
  if (lift == Lift::absolute || (p == 1 && !keep_sign)) {
    for (i64 i = 0; i < n; ++i) v[i] = absolute(v[i]);
  } else if (p == 2) {
    for (i64 i = 0; i < n; ++i) v[i] *= v[i];
  } else if (p == i64(p) && p <= 16) {
    if (keep_sign)
      for (i64 i = 0; i < n; ++i) v[i] = integer_power(v[i], i64(p));
    else
      for (i64 i = 0; i < n; ++i) v[i] = integer_power(absolute(v[i]), i64(p));
  } else {
    for (i64 i = 0; i < n; ++i) {
      double a = pow(fabs(double(v[i])), p);
      v[i] = T(keep_sign && v[i] < 0 ? -a : a);
    }
  }
}
template <class T>
void finish_roots(T* v, i64 n, double p) {  // sign(s) |s|^(1/p)
  if (p == 1) return;
  for (i64 i = 0; i < n; ++i) {
    double s = fabs(double(v[i]));
    s = p == 2 ? sqrt(s) : p == 3 ? cbrt(s) : pow(s, 1 / p);
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
constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

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
