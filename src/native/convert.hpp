// Lanes of one type as those of another, as __builtin_convertvector makes them: it takes GCC 12 five instructions between
// vectors of different sizes, one lane after the other between bytes and what is four times as wide, and halves of
// vectors between floats and doubles.
#pragma once
#include "elements.hpp"
#include "simd.hpp"

namespace anypool {
namespace {

#if defined(__x86_64__)
// A vector of 4, 8 or 16 bytes in a register, and back.
template <class V>
ANYPOOL_INLINE __m128i in_register(V v) {
  if constexpr (sizeof(V) == 16) return (__m128i)v;
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &v, sizeof v);
  return _mm_cvtsi64_si128(int64_t(bits));
}
template <class V>
ANYPOOL_INLINE V from_register(__m128i v) {
  if constexpr (sizeof(V) == 16) return (V)v;
  const int64_t bits = _mm_cvtsi128_si64(v);
  V lanes;
  __builtin_memcpy(&lanes, &bits, sizeof lanes);
  return lanes;
}
// The lower halves of lanes twice as wide, whose upper halves are 0.
ANYPOOL_INLINE __m128i lower_halves(__m128i a, __m128i b, int bytes) {
  return bytes == 4 ? _mm_packus_epi32(a, b) : _mm_packus_epi16(a, b);
}
#endif

// To is a vector type of as many lanes.
template <class To, class V>
ANYPOOL_INLINE To convert(V v) {
  using F = typename LaneOf<V>::type;
  using T = typename LaneOf<To>::type;
  constexpr int kFrom = sizeof(F), kTo = sizeof(T), kCount = sizeof(To) / sizeof(T);
  constexpr bool kWhole = !kIsFloat<F> && !kIsFloat<T>, kPositive = kWhole && F(-1) > F(0);
  static_assert(sizeof(V) == kCount * sizeof(F), "lanes neither come nor go");
  if constexpr (kSame<V, To>) return v;
  if constexpr (kIsFloat<T> && !kIsFloat<F> && kFrom < 4) return convert<To>(convert<Vec<int32_t, kCount>>(v));
#if defined(__AVX512BW__)
  if constexpr (sizeof(To) == 64 && kPositive) {
    if constexpr (kFrom == 1 && kTo == 2) return (To)_mm512_cvtepu8_epi16((__m256i)v);
    if constexpr (kFrom == 1 && kTo == 4) return (To)_mm512_maskz_cvtepu8_epi32(-1, in_register(v));
    if constexpr (kFrom == 1 && kTo == 8) return (To)_mm512_maskz_cvtepu8_epi64(-1, in_register(v));
    if constexpr (kFrom == 2 && kTo == 4) return (To)_mm512_maskz_cvtepu16_epi32(-1, (__m256i)v);
  }
  if constexpr (sizeof(V) == 64 && kWhole) {
    if constexpr (kFrom == 2 && kTo == 1) return (To)_mm512_maskz_cvtepi16_epi8(-1, (__m512i)v);
    if constexpr (kFrom == 4 && kTo == 1) return (To)_mm512_maskz_cvtepi32_epi8(-1, (__m512i)v);
    if constexpr (kFrom == 4 && kTo == 2) return (To)_mm512_maskz_cvtepi32_epi16(-1, (__m512i)v);
  }
  if constexpr (sizeof(To) == 64 && kSame<F, int32_t> && kSame<T, i64>)
    return (To)_mm512_maskz_cvtepi32_epi64(-1, (__m256i)v);
  if constexpr (sizeof(To) == 64 && kSame<F, float> && kSame<T, double>)
    return (To)_mm512_maskz_cvtps_pd(-1, (__m256)v);
  if constexpr (sizeof(V) == 64 && kSame<F, double> && kSame<T, float>)
    return (To)_mm512_maskz_cvtpd_ps(-1, (__m512d)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(To) == 32 && kPositive) {
    if constexpr (kFrom == 1 && kTo == 2) return (To)_mm256_cvtepu8_epi16(in_register(v));
    if constexpr (kFrom == 1 && kTo == 4) return (To)_mm256_cvtepu8_epi32(in_register(v));
    if constexpr (kFrom == 1 && kTo == 8) return (To)_mm256_cvtepu8_epi64(in_register(v));
    if constexpr (kFrom == 2 && kTo == 4) return (To)_mm256_cvtepu16_epi32(in_register(v));
  }
  if constexpr (sizeof(V) == 32 && kWhole && kTo < kFrom && kFrom <= 4) {
    const __m256i all = (__m256i)(v & F((uint64_t(1) << 8 * kTo) - 1));
    const __m128i half = lower_halves(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1), kFrom);
    return from_register<To>(kFrom == 2 * kTo ? half : lower_halves(half, half, kFrom / 2));
  }
  if constexpr (sizeof(To) == 32 && kSame<F, int32_t> && kSame<T, i64>)
    return (To)_mm256_cvtepi32_epi64(in_register(v));
#endif
#if defined(__SSE4_1__)
  if constexpr (sizeof(To) == 16 && kPositive) {
    if constexpr (kFrom == 1 && kTo == 2) return (To)_mm_cvtepu8_epi16(in_register(v));
    if constexpr (kFrom == 1 && kTo == 4) return (To)_mm_cvtepu8_epi32(in_register(v));
    if constexpr (kFrom == 1 && kTo == 8) return (To)_mm_cvtepu8_epi64(in_register(v));
    if constexpr (kFrom == 2 && kTo == 4) return (To)_mm_cvtepu16_epi32(in_register(v));
  }
  if constexpr (sizeof(V) == 16 && kWhole && kTo < kFrom && kFrom <= 4) {
    const __m128i all = (__m128i)(v & F((uint64_t(1) << 8 * kTo) - 1)), half = lower_halves(all, all, kFrom);
    return from_register<To>(kFrom == 2 * kTo ? half : lower_halves(half, half, kFrom / 2));
  }
#endif
  return __builtin_convertvector(v, To);
}

}  // namespace
}  // namespace anypool
