// Many rows of outputs at once: what the kernels for small windows are given.
#pragma once
#include "around.hpp"
#include "lanes.hpp"
#include "new_rows.hpp"

namespace anypool {
namespace {

constexpr int kFusedRows = 9;

// Sums of bytes divided by one number, to nearest, ties to even, in shorts.
struct ByteDivision {
  bool known = false;
  bool power = false;  // of two
  uint16_t add = 0, by = 0;
  int shift = 0;

  ByteDivision() = default;
  // `most` is the largest sum.
  ByteDivision(i64 d, i64 most) {
    for (shift = 0; i64(2) << shift <= d; ++shift) continue;
    power = d == i64(1) << shift;
    if (power) {
      add = uint16_t(d / 2 - (d > 1));
      known = most + d < 65536;
      return;
    }
    // floor(t / d) = t * ceil(2^(16 + shift) / d) >> (16 + shift) as long as the excess of the factor stays too small to
    // reach the next quotient. Quotients of odd numbers are never ties.
    const i64 one = i64(65536) << shift, factor = (one + d - 1) / d, t = most + d / 2;
    add = uint16_t(d / 2), by = uint16_t(factor);
    known = d % 2 == 1 && d > 0 && t < 65536 && factor < 65536 && t * (factor * d - one) < one;
  }
  template <int L>
  ANYPOOL_INLINE Vec<uint16_t, L> divide(Vec<uint16_t, L> v) const {
    using V = Vec<uint16_t, L>;
    const V by_power = splat<V>(uint16_t(shift));
    if (power) return (v + add + ((v >> by_power) & splat<V>(uint16_t(shift > 0)))) >> by_power;
    return mul_high<L>(v + add, by) >> by_power;
  }
  template <int L>
  static ANYPOOL_INLINE Vec<uint16_t, L> mul_high(Vec<uint16_t, L> v, uint16_t by) {
    using V = Vec<uint16_t, L>;
#if defined(__AVX512BW__)
    return (V)_mm512_mulhi_epu16((__m512i)v, _mm512_set1_epi16(short(by)));
#elif defined(__AVX2__)
    return (V)_mm256_mulhi_epu16((__m256i)v, _mm256_set1_epi16(short(by)));
#elif defined(__x86_64__)
    return (V)_mm_mulhi_epu16((__m128i)v, _mm_set1_epi16(short(by)));
#else
    using Wide = Vec<uint32_t, L>;
    return convert<V>(convert<Wide>(v) * uint32_t(by) >> 16);
#endif
  }
};

// What outputs are divided by: output o by divisor[o], or multiplied by it if it is a reciprocal, if there is one.
struct FusedDivisor {
  const char* divisor = nullptr;
  bool reciprocal = false;
  ByteDivision bytes;  // instead of the divisor
};

// `count` rows of n outputs. rows[d * KH + h] are the input rows of the first window, `cols` columns each, and step[…] is
// how many bytes further those of the next output row lie. The first window starts at column `start`, which may be
// negative.
struct FusedJob {
  const char* rows[kFusedRows];
  i64 step[kFusedRows];
  i64 cols, start;
  char* y;
  i64 y_step, n, count;
  i64 planes = 1, x_plane = 0, y_plane = 0;  // the same rows of so many that lie without gaps, so many bytes apart
  // The array that rows lie in without gaps, so that what lies beside them may be read; null if they do not.
  const char *x_begin = nullptr, *x_end = nullptr;
  i64 y_behind = 0;  // bytes of results behind the rows of each plane that are written later, if rows have no gaps
  FusedDivisor by;
  AroundCaches* around = nullptr;  // of two rows of outputs at once, if results go around the caches
  bool in_order;                   // whether to read the new rows of a window one after the other first
  Ahead ahead;                     // and where what is wanted a page later lies
  // Channels innermost: `inner` of them in each column, columns `pitch` elements apart, and the windows' numbers on w.
  i64 inner, pitch, y_pitch, stride, dilation;
  bool far;              // whether no cache holds the input
  const char* none;      // a row that is absent
  char* kept = nullptr;  // room for all columns of a window but one, as vectors of what is merged; or null
  // The winners' offsets or indices: where they go; those of the window's taps; those of its first tap that is not absent,
  // as the sum of what the rows and what each column contributes; and the index of its first tap.
  char* codes;
  i64 codes_step, codes_plane = 0;
  const int32_t* tap;
  int32_t first_row;
  const int32_t* first_column;
  i64 index, index_step;
  // Where not all inputs count: bytes beside the rows, and how much further those of the next output row lie.
  const uint8_t* masks[kFusedRows];
  i64 mask_step[kFusedRows];
  uint8_t* columns;  // room for `cols` bytes and kBesideColumns on either side
  const Finishing* finishing;
  const char* padding;  // how many elements of each output's window are padding that counts; null for none
  i64 padding_step;
};
// Returns whether it met a NaN in the rows that the output row before has not seen, the last ones of each plane, as many
// as the stride on w, or any of several planes; the outputs are worth nothing then. Sums and integers never do, nor do kernels over channels.
using FusedKernel = bool (*)(const FusedJob&);

// L outputs divided as the job says, by L divisors from `by` on or, if Each is false, by the one there. Sums of bytes: in
// floats, to nearest, ties to even (see divide_small).
template <int L, bool Each = true, class V>
ANYPOOL_INLINE V finished(V v, const FusedDivisor& by, i64 o) {
  using A = typename LaneOf<V>::type;
  if constexpr (!kIsFloat<A> && !kSame<A, uint16_t>) return v;  // no sum
  if (!by.divisor) return v;
  const auto divisor = [&](auto zero) {
    using F = decltype(zero);
    using E = typename LaneOf<F>::type;
    const E* from = reinterpret_cast<const E*>(by.divisor) + o;
    if constexpr (Each)
      return load<F>(from);
    else
      return splat<F>(*from);
  };
  if constexpr (kSame<A, uint16_t>) {
    if (by.bytes.known) return by.bytes.divide<L>(v);
    using F = Vec<float, L>;
    const F f = __builtin_convertvector(v, F), d = divisor(F{});
    return __builtin_convertvector((by.reciprocal ? f * d : f / d) + 0x1.8p23f - 0x1.8p23f, V);
  } else if constexpr (kIsFloat<A>) {
    const V d = divisor(V{});
    return by.reciprocal ? v * d : v / d;
  }
}

}  // namespace
}  // namespace anypool
