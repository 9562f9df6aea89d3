// Vectors of the type A that is compared or added, from and to rows of the array's own type T: whole, or only the lanes
// that lie inside the row.
#pragma once
#include "elements.hpp"
#include "geometry.hpp"
#include "reductions.hpp"

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
// L elements of T, 64 or 32 bytes, of which those outside are not read, and are 0.
template <class T, int L>
ANYPOOL_INLINE Vec<T, L> load_masked(const T* p, uint64_t m) {
  if constexpr (sizeof(T) * L == 32) {
    if constexpr (sizeof(T) == 1) return (Vec<T, L>)_mm256_maskz_loadu_epi8(__mmask32(m), p);
    return (Vec<T, L>)_mm256_maskz_loadu_epi16(__mmask16(m), p);
  } else {
    if constexpr (sizeof(T) == 1) return (Vec<T, L>)_mm512_maskz_loadu_epi8(m, p);
    if constexpr (sizeof(T) == 2) return (Vec<T, L>)_mm512_maskz_loadu_epi16(__mmask32(m), p);
    if constexpr (sizeof(T) == 4) return (Vec<T, L>)_mm512_maskz_loadu_epi32(__mmask16(m), p);
    return (Vec<T, L>)_mm512_maskz_loadu_epi64(__mmask8(m), p);
  }
}
// Which of L bytes, of which those outside are not read, are not 0.
template <int L>
ANYPOOL_INLINE uint64_t which_count(const uint8_t* p, uint64_t inside) {
  if constexpr (L <= 16) {
    const __m128i v = _mm_maskz_loadu_epi8(__mmask16(inside), p);
    return _mm_test_epi8_mask(v, v);
  } else if constexpr (L == 32) {
    const __m256i v = _mm256_maskz_loadu_epi8(__mmask32(inside), p);
    return _mm256_test_epi8_mask(v, v);
  } else {
    const __m512i v = _mm512_maskz_loadu_epi8(inside, p);
    return _mm512_test_epi8_mask(v, v);
  }
}
// Which of L bytes are `value`, likewise.
template <int L>
ANYPOOL_INLINE uint64_t which_are(const uint8_t* p, uint8_t value, uint64_t inside) {
  static_assert(L <= 16, "as many as there are floats in a vector");
  const __mmask16 m = __mmask16(inside);
  return _mm_mask_cmpeq_epi8_mask(m, _mm_maskz_loadu_epi8(m, p), _mm_set1_epi8(char(value)));
}
template <class T, int L>
ANYPOOL_INLINE void store_masked(T* p, Vec<T, L> v, uint64_t m) {
  if constexpr (sizeof(T) * L == 16) {
    _mm_mask_storeu_epi8(p, __mmask16(m), (__m128i)v);
  } else if constexpr (sizeof(T) * L == 32) {
    if constexpr (sizeof(T) == 1) return _mm256_mask_storeu_epi8(p, __mmask32(m), (__m256i)v);
    return _mm256_mask_storeu_epi16(p, __mmask16(m), (__m256i)v);
  } else {
    if constexpr (sizeof(T) == 1) return _mm512_mask_storeu_epi8(p, m, (__m512i)v);
    if constexpr (sizeof(T) == 2) return _mm512_mask_storeu_epi16(p, __mmask32(m), (__m512i)v);
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_epi32(p, __mmask16(m), (__m512i)v);
    return _mm512_mask_storeu_epi64(p, __mmask8(m), (__m512i)v);
  }
}
template <class T, int L>
ANYPOOL_INLINE Vec<T, L> choose_masked(uint64_t m, Vec<T, L> v, Vec<T, L> none) {
  if constexpr (sizeof(T) == 1) return (Vec<T, L>)_mm512_mask_mov_epi8((__m512i)none, m, (__m512i)v);
  if constexpr (sizeof(T) == 2) return (Vec<T, L>)_mm512_mask_mov_epi16((__m512i)none, __mmask32(m), (__m512i)v);
  if constexpr (sizeof(T) == 4) return (Vec<T, L>)_mm512_mask_mov_epi32((__m512i)none, __mmask16(m), (__m512i)v);
  return (Vec<T, L>)_mm512_mask_mov_epi64((__m512i)none, __mmask8(m), (__m512i)v);
}
#else
struct Part {
  Inside in{0, 0};
  Part() = default;
  explicit Part(Inside inside) : in(inside) {}
  bool empty() const { return in.lo == in.hi; }
};
#endif

// A vector of which the lanes outside are `none`.
template <class A, int L>
ANYPOOL_INLINE Vec<A, L> only(const Part& part, Vec<A, L> v, Vec<A, L> none) {
#if defined(__AVX512F__)
  return choose_masked<A, L>(part.mask, v, none);
#else
  for (i64 i = part.in.lo; i < part.in.hi; ++i) none[i] = v[i];
  return none;
#endif
}

// Bits of a row, as vectors of A and back. `narrow_number` is for what was once of type T, and is no NaN: nothing is rounded.
template <class T, class A, int L>
struct Numbers {
  using Bits = T;
  using Raw = Vec<T, L>;
  static ANYPOOL_INLINE Vec<A, L> wide(Raw v) {
    if constexpr (kSame<T, A>)
      return v;
    else
      return __builtin_convertvector(v, Vec<A, L>);
  }
  static ANYPOOL_INLINE Raw narrow(Vec<A, L> v) {
    if constexpr (kSame<T, A>)
      return v;
    else
      return __builtin_convertvector(v, Raw);
  }
  static ANYPOOL_INLINE Raw narrow_number(Vec<A, L> v) { return narrow(v); }
};
template <int L>
struct Numbers<bf16, float, L> {
  using Bits = uint16_t;
  using Raw = Vec<uint16_t, L>;
  static ANYPOOL_INLINE Vec<float, L> wide(Raw v) {
    const auto bits = __builtin_convertvector(v, Vec<uint32_t, L>) << 16;
    Vec<float, L> f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
  }
  static ANYPOOL_INLINE Raw narrow(Vec<float, L> v) {
    Vec<uint32_t, L> u;
    __builtin_memcpy(&u, &v, sizeof u);
    const Vec<uint32_t, L> rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
    return __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Raw);
  }
  static ANYPOOL_INLINE Raw narrow_number(Vec<float, L> v) {
    Vec<uint32_t, L> u;
    __builtin_memcpy(&u, &v, sizeof u);
    return __builtin_convertvector(u >> 16, Raw);
  }
};
#if defined(__F16C__)
template <int L>
struct Numbers<f16, float, L> {
  using Bits = uint16_t;
  using Raw = Vec<uint16_t, L>;
#if defined(__AVX512F__)
  static_assert(L == 16, "as many lanes as a vector has");
  static ANYPOOL_INLINE Vec<float, L> wide(Raw v) { return (Vec<float, L>)_mm512_maskz_cvtph_ps(-1, (__m256i)v); }
  static ANYPOOL_INLINE Raw narrow(Vec<float, L> f) {
    return (Raw)_mm512_maskz_cvtps_ph(-1, (__m512)f, _MM_FROUND_TO_NEAREST_INT);
  }
#else
  static_assert(L == 8, "as many lanes as a vector has");
  static ANYPOOL_INLINE Vec<float, L> wide(Raw v) { return (Vec<float, L>)_mm256_cvtph_ps((__m128i)v); }
  static ANYPOOL_INLINE Raw narrow(Vec<float, L> f) {
    return (Raw)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
  }
#endif
  static ANYPOOL_INLINE Raw narrow_number(Vec<float, L> f) { return narrow(f); }
};
#endif

// f(tag of the elements' type, tag of the type they are merged in) for the floats that have vectors here; else nothing.
template <class R, class F>
ANYPOOL_INLINE R with_float_types(const Plan& p, F&& f) {
  switch (p.in) {
    case DType::f32: return p.acc == DType::f32 ? f(Tag<float>{}, Tag<float>{}) : R{};
    case DType::f64: return f(Tag<double>{}, Tag<double>{});
    case DType::bf16: return p.acc == DType::f32 ? f(Tag<bf16>{}, Tag<float>{}) : R{};
#if defined(__F16C__)
    case DType::f16: return p.acc == DType::f32 ? f(Tag<f16>{}, Tag<float>{}) : R{};
#endif
    default: return R{};
  }
}

// As they are stored: `Exact` if they are numbers of T.
template <class T, class A, int L, bool Exact = false>
struct Lanes {
  using V = Vec<A, L>;
  using Raw = typename Numbers<T, A, L>::Raw;
  static ANYPOOL_INLINE V load(const T* p) { return Numbers<T, A, L>::wide(anypool::load<Raw>(p)); }
  static ANYPOOL_INLINE Raw narrowed(V v) {
    if constexpr (Exact) return Numbers<T, A, L>::narrow_number(v);
    return Numbers<T, A, L>::narrow(v);
  }
  static ANYPOOL_INLINE void store(T* p, V v) { anypool::store(p, narrowed(v)); }
#if defined(__AVX512F__)
  using Bits = typename Numbers<T, A, L>::Bits;
  static ANYPOOL_INLINE V load_part(const T* p, const Part& part, V none) {
    const Bits* bits = reinterpret_cast<const Bits*>(p);
    return choose_masked<A, L>(part.mask, Numbers<T, A, L>::wide(load_masked<Bits, L>(bits, part.mask)), none);
  }
  // With `none` where a byte of the mask is 0.
  static ANYPOOL_INLINE V load_where(const T* p, const uint8_t* mask, V none) {
    return choose_masked<A, L>(which_count<L>(mask, ~uint64_t(0) >> (64 - L)), load(p), none);
  }
  static ANYPOOL_INLINE V load_part_where(const T* p, const uint8_t* mask, Part part, V none) {
    part.mask = which_count<L>(mask, part.mask);
    return load_part(p, part, none);
  }
  static ANYPOOL_INLINE void store_part(T* p, V v, const Part& part) {
    store_masked<Bits, L>(reinterpret_cast<Bits*>(p), narrowed(v), part.mask);
  }
#else
  static V load_part(const T* p, const Part& part, V none) {
    for (i64 i = part.in.lo; i < part.in.hi; ++i) none[i] = A(widen(p[i]));
    return none;
  }
  static ANYPOOL_INLINE V load_where(const T* p, const uint8_t* mask, V none) {
    using Flags = decltype(none != none);
    const Flags counts = __builtin_convertvector(anypool::load<Vec<uint8_t, L> >(mask), Flags) != Flags{};
    return counts ? load(p) : none;
  }
  static V load_part_where(const T* p, const uint8_t* mask, const Part& part, V none) {
    for (i64 i = part.in.lo; i < part.in.hi; ++i)
      if (mask[i]) none[i] = A(widen(p[i]));
    return none;
  }
  static void store_part(T* p, V v, const Part& part) {
    for (i64 i = part.in.lo; i < part.in.hi; ++i) anypool::narrow(p[i], v[i]);
  }
#endif
};

// 2 L neighbours: the even or the odd ones, which are the lower or the upper halves of floats.
template <int Odd, int L>
ANYPOOL_INLINE Vec<float, L> every_second(Vec<uint32_t, L> pairs) {
  constexpr bool kUpper = Odd == (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  const Vec<uint32_t, L> bits = kUpper ? pairs & 0xffff0000u : pairs << 16;
  Vec<float, L> v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

// Lanes J, J + 1 ... of two adjacent vectors.
template <class V, int J, int L>
struct Slide {
  template <int... I>
  static ANYPOOL_INLINE V run(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I + J)...);
  }
  static ANYPOOL_INLINE V run(V a, V b) {
    if constexpr (J == 0) return a;
#if defined(__AVX512BW__)
    // Bytes and shorts by 128-bit pieces: the general shuffle of bytes is missing from this level.
    if constexpr (J > 0 && sizeof(V) / L <= 2) {
      constexpr int kBytes = J * int(sizeof(V)) / L;
      static_assert(kBytes <= 16, "windows that wide have no fused kernel");
      const __m512i next = _mm512_maskz_alignr_epi64(-1, (__m512i)b, (__m512i)a, 2);
      if constexpr (kBytes == 16) return (V)next;
      return (V)_mm512_alignr_epi8(next, (__m512i)a, kBytes);
    }
#elif defined(__AVX2__)
    if constexpr (J > 0 && sizeof(V) == 32 && sizeof(V) / L <= 2) {
      constexpr int kBytes = J * int(sizeof(V)) / L;
      const __m256i next = _mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x21);
      if constexpr (kBytes == 16) return (V)next;
      return (V)_mm256_alignr_epi8(next, (__m256i)a, kBytes);
    }
#endif
    return run(a, b, typename MakeIndices<L>::type{});
  }
};

}  // namespace
}  // namespace anypool
