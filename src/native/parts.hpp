// Parts of vectors: of those at the ends of a row, what lies outside is neither read nor written.
#pragma once
#include "convert.hpp"

namespace anypool {
namespace {

// Which lanes of a vector are inside: lo <= i < hi.
struct Inside {
  i64 lo, hi;
};
// Those of a vector at column c of a row of `cols`.
template <int L>
ANYPOOL_INLINE Inside inside(i64 c, i64 cols) {
  const i64 lo = lower(higher(-c, 0), L);
  return {lo, higher(lower(cols - c, L), lo)};
}

#if defined(__AVX512F__)
// As a kernel keeps it.
struct Part {
  uint64_t mask = 0;
  Part() = default;
  explicit Part(Inside in) : mask(in.lo == in.hi ? 0 : (~uint64_t(0) >> (64 - (in.hi - in.lo))) << in.lo) {}
  bool empty() const { return mask == 0; }
};

// L elements of T, of which those outside are not read, and are 0.
template <class T, int L>
ANYPOOL_INLINE Vec<T, L> load_bits(const T* p, const Part& part) {
  const uint64_t m = part.mask;
  if constexpr (sizeof(T) * L <= 16) {
    static_assert(sizeof(T) == 1, "others fill a vector, or half of one");
    return from_register<Vec<T, L>>(_mm_maskz_loadu_epi8(__mmask16(m), p));
  } else if constexpr (sizeof(T) * L == 32) {
    if constexpr (sizeof(T) == 1) return (Vec<T, L>)_mm256_maskz_loadu_epi8(__mmask32(m), p);
    if constexpr (sizeof(T) == 2) return (Vec<T, L>)_mm256_maskz_loadu_epi16(__mmask16(m), p);
    return (Vec<T, L>)_mm256_maskz_loadu_epi32(__mmask8(m), p);
  } else {
    if constexpr (sizeof(T) == 1) return (Vec<T, L>)_mm512_maskz_loadu_epi8(m, p);
    if constexpr (sizeof(T) == 2) return (Vec<T, L>)_mm512_maskz_loadu_epi16(__mmask32(m), p);
    if constexpr (sizeof(T) == 4) return (Vec<T, L>)_mm512_maskz_loadu_epi32(__mmask16(m), p);
    return (Vec<T, L>)_mm512_maskz_loadu_epi64(__mmask8(m), p);
  }
}
template <class T, int L>
ANYPOOL_INLINE void store_bits(T* p, Vec<T, L> v, const Part& part) {
  const uint64_t m = part.mask;
  if constexpr (sizeof(T) * L <= 16) {
    static_assert(sizeof(T) == 1, "others fill a vector, or half of one");
    _mm_mask_storeu_epi8(p, __mmask16(m), in_register(v));
  } else if constexpr (sizeof(T) * L == 32) {
    if constexpr (sizeof(T) == 1) return _mm256_mask_storeu_epi8(p, __mmask32(m), (__m256i)v);
    if constexpr (sizeof(T) == 2) return _mm256_mask_storeu_epi16(p, __mmask16(m), (__m256i)v);
    return _mm256_mask_storeu_epi32(p, __mmask8(m), (__m256i)v);
  } else {
    if constexpr (sizeof(T) == 1) return _mm512_mask_storeu_epi8(p, m, (__m512i)v);
    if constexpr (sizeof(T) == 2) return _mm512_mask_storeu_epi16(p, __mmask32(m), (__m512i)v);
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_epi32(p, __mmask16(m), (__m512i)v);
    return _mm512_mask_storeu_epi64(p, __mmask8(m), (__m512i)v);
  }
}

// Whether each lane of a vector counts.
template <class A, int L>
struct LaneMask {
  using V = Vec<A, L>;
  uint64_t bits;
  static ANYPOOL_INLINE LaneMask all() { return {~uint64_t(0)}; }
  static ANYPOOL_INLINE LaneMask of(const Part& part) { return {part.mask}; }
  static ANYPOOL_INLINE LaneMask where_set(Vec<uint8_t, L> bytes) {
    static_assert(L <= 16, "as many as there are floats in a vector");
    const __m128i v = in_register(bytes);
    return {_mm_test_epi8_mask(v, v)};
  }
  static ANYPOOL_INLINE LaneMask where_equal(Vec<uint8_t, L> bytes, uint8_t value) {
    static_assert(L <= 16, "as many as there are floats in a vector");
    return {_mm_cmpeq_epi8_mask(in_register(bytes), _mm_set1_epi8(char(value)))};
  }
  ANYPOOL_INLINE void clear(i64 lane) { bits &= ~(uint64_t(1) << lane); }
  ANYPOOL_INLINE V choose(V v, V none) const {
    if constexpr (sizeof(A) == 1) return (V)_mm512_mask_mov_epi8((__m512i)none, bits, (__m512i)v);
    if constexpr (sizeof(A) == 2) return (V)_mm512_mask_mov_epi16((__m512i)none, __mmask32(bits), (__m512i)v);
    if constexpr (sizeof(A) == 4) return (V)_mm512_mask_mov_epi32((__m512i)none, __mmask16(bits), (__m512i)v);
    return (V)_mm512_mask_mov_epi64((__m512i)none, __mmask8(bits), (__m512i)v);
  }
  ANYPOOL_INLINE V add(V sum, V v) const {
    if constexpr (sizeof(A) == 4) return (V)_mm512_mask_add_ps((__m512)sum, __mmask16(bits), (__m512)sum, (__m512)v);
    return (V)_mm512_mask_add_pd((__m512d)sum, __mmask8(bits), (__m512d)sum, (__m512d)v);
  }
};
#else
struct Part {
  Inside in{0, 0};
  Part() = default;
  explicit Part(Inside inside) : in(inside) {}
  bool empty() const { return in.lo == in.hi; }
};

#if defined(__SSE4_1__)
// Read from the right place on, these say which bytes of a vector lie inside, and which byte goes where in 16 of them
// that are moved.
struct ByteTables {
  static constexpr int kVector = ANYPOOL_VECTOR_BYTES;
  uint8_t inside[3 * kVector] = {}, places[48] = {};
  constexpr ByteTables() {
    for (int i = 0; i < kVector; ++i) inside[kVector + i] = 255;
    for (int i = 0; i < 48; ++i) places[i] = i < 16 || i >= 32 ? 128 : uint8_t(i - 16);  // 128: a zero
  }
};
constexpr ByteTables kBytes;

// Moved up by so many bytes, or down if they are negative.
ANYPOOL_INLINE __m128i moved(__m128i v, i64 up) { return _mm_shuffle_epi8(v, load<__m128i>(kBytes.places + 16 - up)); }

// Bytes [lo, hi) of 16, the others being 0: the first ones and the last ones of them, which may be the same.
template <class Piece>
ANYPOOL_INLINE __m128i both_ends(const char* p, i64 lo, i64 hi) {
  const i64 last = hi - i64(sizeof(Piece));
  const auto piece = [p](i64 at) { return _mm_cvtsi64_si128(int64_t(load<Piece>(p + at))); };
  return _mm_or_si128(moved(piece(lo), lo), moved(piece(last), last));
}
ANYPOOL_INLINE __m128i load_piece(const char* p, i64 lo, i64 hi) {
  const i64 n = hi - lo;
  if (n >= 16) return load<__m128i>(p);
  if (n >= 8) return both_ends<uint64_t>(p, lo, hi);
  if (n >= 4) return both_ends<uint32_t>(p, lo, hi);
  if (n >= 2) return both_ends<uint16_t>(p, lo, hi);
  return n == 1 ? both_ends<uint8_t>(p, lo, hi) : _mm_setzero_si128();
}
ANYPOOL_INLINE void store_piece(char* p, __m128i v, i64 lo, i64 hi) {
  const i64 n = hi - lo;
  if (n >= 16) return store(p, v);
  if (lo) v = moved(v, -lo);
  p += lo;
  if (n & 8) _mm_storel_epi64(reinterpret_cast<__m128i*>(p), v), v = _mm_srli_si128(v, 8), p += 8;
  if (n & 4) store(p, _mm_cvtsi128_si32(v)), v = _mm_srli_si128(v, 4), p += 4;
  if (n & 2) store(p, uint16_t(_mm_cvtsi128_si32(v))), v = _mm_srli_si128(v, 2), p += 2;
  if (n & 1) *p = char(_mm_cvtsi128_si32(v));
}
// The lanes inside, of `Bytes` bytes each, all ones.
template <class Flags, int Bytes>
ANYPOOL_INLINE Flags flags_inside(const Part& part) {
  const uint8_t* ones = kBytes.inside + ByteTables::kVector;
  return load<Flags>(ones - part.in.lo * Bytes) & load<Flags>(ones + ByteTables::kVector - part.in.hi * Bytes);
}

// L elements of T, of which those outside are not read, and are 0.
template <class T, int L>
ANYPOOL_INLINE Vec<T, L> load_bits(const T* p, const Part& part) {
  static_assert(sizeof(T) * L <= ANYPOOL_VECTOR_BYTES, "one vector at most");
  const char* from = reinterpret_cast<const char*>(p);
  const i64 lo = part.in.lo * i64(sizeof(T)), hi = part.in.hi * i64(sizeof(T));
  if constexpr (sizeof(T) * L <= 16) {
    return from_register<Vec<T, L>>(load_piece(from, lo, hi));
#if defined(__AVX2__)
  } else if constexpr (sizeof(T) >= 4) {
    const __m256i flags = flags_inside<__m256i, sizeof(T)>(part);
    if constexpr (sizeof(T) == 4) return (Vec<T, L>)_mm256_maskload_epi32(reinterpret_cast<const int*>(p), flags);
    return (Vec<T, L>)_mm256_maskload_epi64(reinterpret_cast<const long long*>(p), flags);
  } else {
    const __m128i low = load_piece(from, lower(lo, 16), lower(hi, 16)),
                  high = load_piece(from + 16, higher(lo, 16) - 16, higher(hi, 16) - 16);
    return (Vec<T, L>)_mm256_set_m128i(high, low);
#endif
  }
}
template <class T, int L>
ANYPOOL_INLINE void store_bits(T* p, Vec<T, L> v, const Part& part) {
  static_assert(sizeof(T) * L <= ANYPOOL_VECTOR_BYTES, "one vector at most");
  char* to = reinterpret_cast<char*>(p);
  const i64 lo = part.in.lo * i64(sizeof(T)), hi = part.in.hi * i64(sizeof(T));
  if constexpr (sizeof(T) * L <= 16) {
    store_piece(to, in_register(v), lo, hi);
#if defined(__AVX2__)
  } else {
    store_piece(to, _mm256_castsi256_si128((__m256i)v), lower(lo, 16), lower(hi, 16));
    store_piece(to + 16, _mm256_extracti128_si256((__m256i)v, 1), higher(lo, 16) - 16, higher(hi, 16) - 16);
#endif
  }
}
#else
template <class Flags, int Bytes>
ANYPOOL_INLINE Flags flags_inside(const Part& part) {
  Flags flags{};
  for (i64 i = part.in.lo; i < part.in.hi; ++i) flags[i] = -1;
  return flags;
}
template <class T, int L>
ANYPOOL_INLINE Vec<T, L> load_bits(const T* p, const Part& part) {
  Vec<T, L> v{};
  for (i64 i = part.in.lo; i < part.in.hi; ++i) v[i] = p[i];
  return v;
}
template <class T, int L>
ANYPOOL_INLINE void store_bits(T* p, Vec<T, L> v, const Part& part) {
  for (i64 i = part.in.lo; i < part.in.hi; ++i) p[i] = v[i];
}
#endif

template <class A, int L>
struct LaneMask {
  using V = Vec<A, L>;
  using Flags = decltype(V{} != V{});
  Flags flags;
  static ANYPOOL_INLINE LaneMask all() { return {V{} == V{}}; }
  static ANYPOOL_INLINE LaneMask of(const Part& part) { return {flags_inside<Flags, sizeof(A)>(part)}; }
  static ANYPOOL_INLINE LaneMask where_set(Vec<uint8_t, L> bytes) { return {convert<Flags>(bytes) != Flags{}}; }
  static ANYPOOL_INLINE LaneMask where_equal(Vec<uint8_t, L> bytes, uint8_t value) {
    return {convert<Flags>(bytes) == Flags{} + value};
  }
  ANYPOOL_INLINE void clear(i64 lane) { flags[lane] = 0; }
  ANYPOOL_INLINE V choose(V v, V none) const {
#if defined(__AVX2__)
    // The compiler does not know that flags are all or nothing, and would compare them with zero first.
    if constexpr (sizeof(V) == 32) {
      V chosen;
      if constexpr (sizeof(A) >= 4)
        asm("vblendvps %1, %2, %3, %0" : "=x"(chosen) : "x"(flags), "xm"(v), "x"(none));
      else
        asm("vpblendvb %1, %2, %3, %0" : "=x"(chosen) : "x"(flags), "xm"(v), "x"(none));
      return chosen;
    }
#endif
    return flags ? v : none;
  }
  // To a sum of floats that is not -0.0, what counts.
  ANYPOOL_INLINE V add(V sum, V v) const { return sum + (V)((Flags)v & flags); }
};
#endif

// A vector of which the lanes outside are `none`.
template <class A, int L>
ANYPOOL_INLINE Vec<A, L> only(const Part& part, Vec<A, L> v, Vec<A, L> none) {
  return LaneMask<A, L>::of(part).choose(v, none);
}

}  // namespace
}  // namespace anypool
