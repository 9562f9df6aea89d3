// Exponentials in vectors, by the same operations on every level: the C library's may differ from machine to machine.
#pragma once
#include "simd.hpp"

namespace anypool {
namespace {

constexpr double kLog2E = 1.4426950408889634074;

// e^x = factor * 2^n, n integral, for |x| < 2^50.
template <int L>
struct Exponential {
  using V = Vec<double, L>;
  V shifted, n, factor;  // the low bits of `shifted` are n

  explicit ANYPOOL_INLINE Exponential(V x) {
    const V magic = V{} + 0x1.8p52;
    shifted = x * kLog2E + magic;
    n = shifted - magic;
    const V r = (x - n * 0x1.62e42fefa0000p-1) - n * 0x1.cf79abc9e3b3ap-40;
    constexpr double kInverse[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
    factor = V{} + kInverse[0];
    for (int i = 1; i < 14; ++i) factor = factor * r + kInverse[i];
  }
};

// exp(x) for x <= 0 (NaN stays NaN, and below -708 it is 0).
template <int L>
ANYPOOL_INLINE Vec<double, L> exp_of(Vec<double, L> x) {
  const Exponential<L> e(x);
  Vec<uint64_t, L> bits;  // unsigned: a shift over the end is then defined
  __builtin_memcpy(&bits, &e.shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  Vec<double, L> power;
  __builtin_memcpy(&power, &bits, sizeof power);
  const Vec<double, L> y = e.factor * power;
  return x < -708.0 ? Vec<double, L>{} : y;
}

// log(x 2^b), b integral: with x = m 2^k, m between sqrt(1/2) and sqrt(2), and f = m - 1, log(m) = f - f^2 / 2 + s (f^2 / 2 +
// R), where s = f / (2 + f) and R is the rest of the series of artanh(s). (So do many C libraries: all but f is small.)
// x must be a normal number, 0, inf or NaN.
template <int L>
ANYPOOL_INLINE Vec<double, L> log_of(Vec<double, L> x, Vec<double, L> b) {
  using V = Vec<double, L>;
  constexpr uint64_t kRootOfHalf = 0x3fe6a09e667f3bcd, kMagic = 0x4338000000000000;  // 1.5 * 2^52
  Vec<uint64_t, L> bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const Vec<uint64_t, L> above = bits - kRootOfHalf, k = (Vec<uint64_t, L>)((Vec<int64_t, L>)above >> 52);
  const Vec<uint64_t, L> of_m = bits - (k << 52), of_k = k + kMagic;
  V m, scale;
  __builtin_memcpy(&m, &of_m, sizeof m);
  __builtin_memcpy(&scale, &of_k, sizeof scale);
  scale = (scale - 0x1.8p52) + b;
  const V f = m - 1.0, half = 0.5 * f * f, s = f / (2.0 + f), z = s * s;
  V series = V{} + 2.0 / 23;
  for (int i = 21; i >= 3; i -= 2) series = series * z + 2.0 / i;
  const V small = s * (half + z * series) + scale * 0x1.cf79abc9e3b3ap-40;
  const V y = scale * 0x1.62e42fefa0000p-1 - ((half - small) - f);
  const V infinity = V{} + __builtin_inf();
  return x == 0 ? -infinity : x < infinity ? y : x;
}

}  // namespace
}  // namespace anypool
