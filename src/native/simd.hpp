// Vectors of one instruction-set level. Only what is compiled for each level includes it, and all of it has no name
// outside its translation unit: of a symbol shared between two levels the linker might keep the copy that an older CPU
// cannot run.
#pragma once
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define ANYPOOL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ANYPOOL_VECTOR_BYTES 32
#else
#define ANYPOOL_VECTOR_BYTES 16
#endif

namespace anypool {
namespace {

#if defined(ANYPOOL_NOTHING_INLINE)  // to measure coverage
#define ANYPOOL_INLINE inline
#else
#define ANYPOOL_INLINE inline __attribute__((always_inline))
#endif

template <class T, int L>
struct VecOf {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
};
template <class T>
struct VecOf<T, 1> {
  using type = T;
};
template <class T, int L>
using Vec = typename VecOf<T, L>::type;

template <class T>
struct Plain {
  using type = T;
};
template <class T>
struct Plain<T&> {
  using type = T;
};
template <class V>
struct LaneOf {
  static V& some();
  using type = typename Plain<decltype((some()[0]))>::type;
};

template <class T>
constexpr int kLanes = ANYPOOL_VECTOR_BYTES / int(sizeof(T));

template <class V>
ANYPOOL_INLINE V load(const void* p) {
  typedef V U __attribute__((aligned(1), may_alias));
  return *static_cast<const U*>(p);
}
template <class V>
ANYPOOL_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// All lanes x. Taking zero away keeps the sign of a zero, adding it would not.
template <class V, class T>
ANYPOOL_INLINE V splat(T x) {
  return x - V{};
}

// Whether either of two is NaN, lane by lane.
template <class V>
ANYPOOL_INLINE auto either_nan(V a, V b) {
  return (a != a) | (b != b);
}
#if defined(__x86_64__)
#define ANYPOOL_EITHER_NAN(T, L, V, unord_)                  \
  template <>                                                \
  ANYPOOL_INLINE auto either_nan(Vec<T, L> a, Vec<T, L> b) { \
    return (decltype(a != b))unord_((V)a, (V)b);             \
  }
ANYPOOL_EITHER_NAN(float, 4, __m128, _mm_cmpunord_ps)
ANYPOOL_EITHER_NAN(double, 2, __m128d, _mm_cmpunord_pd)
#if defined(__AVX2__)
#define ANYPOOL_UNORD8(a, b) _mm256_cmp_ps(a, b, _CMP_UNORD_Q)
#define ANYPOOL_UNORD4(a, b) _mm256_cmp_pd(a, b, _CMP_UNORD_Q)
ANYPOOL_EITHER_NAN(float, 8, __m256, ANYPOOL_UNORD8)
ANYPOOL_EITHER_NAN(double, 4, __m256d, ANYPOOL_UNORD4)
#endif
#undef ANYPOOL_EITHER_NAN
#endif

// max and min as pooling wants them: the left one wins a tie, a NaN wins over every number, the last NaN over the others.
template <class V>
ANYPOOL_INLINE V max_of(V l, V r) {
  return r > l ? r : l;
}
template <class V>
ANYPOOL_INLINE V min_of(V l, V r) {
  return r < l ? r : l;
}
#define ANYPOOL_SCALAR_FLOAT(T)          \
  template <>                            \
  ANYPOOL_INLINE T max_of<T>(T l, T r) { \
    return (r > l) | (r != r) ? r : l;   \
  }                                      \
  template <>                            \
  ANYPOOL_INLINE T min_of<T>(T l, T r) { \
    return (r < l) | (r != r) ? r : l;   \
  }
ANYPOOL_SCALAR_FLOAT(float)
ANYPOOL_SCALAR_FLOAT(double)
#undef ANYPOOL_SCALAR_FLOAT

#define ANYPOOL_GENERIC_FLOAT(T, L)                                      \
  template <>                                                            \
  ANYPOOL_INLINE Vec<T, L> max_of<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) { \
    return (r > l) | (r != r) ? r : l;                                   \
  }                                                                      \
  template <>                                                            \
  ANYPOOL_INLINE Vec<T, L> min_of<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) { \
    return (r < l) | (r != r) ? r : l;                                   \
  }
ANYPOOL_GENERIC_FLOAT(float, 2)
#if defined(__x86_64__)
// x86's max returns its second operand on a tie and when either is NaN: with (r, l) only a NaN in r is left to mend.
#define ANYPOOL_X86_FLOAT(T, L, V, max_, min_, unord_, blend_)           \
  template <>                                                            \
  ANYPOOL_INLINE Vec<T, L> max_of<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) { \
    V a = (V)l, b = (V)r;                                                \
    return (Vec<T, L>)blend_(max_(b, a), b, unord_(b, b));               \
  }                                                                      \
  template <>                                                            \
  ANYPOOL_INLINE Vec<T, L> min_of<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) { \
    V a = (V)l, b = (V)r;                                                \
    return (Vec<T, L>)blend_(min_(b, a), b, unord_(b, b));               \
  }
ANYPOOL_X86_FLOAT(float, 4, __m128, _mm_max_ps, _mm_min_ps, _mm_cmpunord_ps, _mm_blendv_ps)
ANYPOOL_X86_FLOAT(double, 2, __m128d, _mm_max_pd, _mm_min_pd, _mm_cmpunord_pd, _mm_blendv_pd)
#if defined(__AVX2__)
ANYPOOL_X86_FLOAT(float, 8, __m256, _mm256_max_ps, _mm256_min_ps, ANYPOOL_UNORD8, _mm256_blendv_ps)
ANYPOOL_X86_FLOAT(double, 4, __m256d, _mm256_max_pd, _mm256_min_pd, ANYPOOL_UNORD4, _mm256_blendv_pd)
#endif
#if defined(__AVX512F__)
#define ANYPOOL_AVX512_FLOAT(T, L, V, S)                                                     \
  template <>                                                                                \
  ANYPOOL_INLINE Vec<T, L> max_of<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) {                     \
    V a = (V)l, b = (V)r;                                                                    \
    return (Vec<T, L>)_mm512_mask_max_##S(b, _mm512_cmp_##S##_mask(b, b, _CMP_ORD_Q), b, a); \
  }                                                                                          \
  template <>                                                                                \
  ANYPOOL_INLINE Vec<T, L> min_of<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) {                     \
    V a = (V)l, b = (V)r;                                                                    \
    return (Vec<T, L>)_mm512_mask_min_##S(b, _mm512_cmp_##S##_mask(b, b, _CMP_ORD_Q), b, a); \
  }
ANYPOOL_AVX512_FLOAT(float, 16, __m512, ps)
ANYPOOL_AVX512_FLOAT(double, 8, __m512d, pd)
#endif
#else
ANYPOOL_GENERIC_FLOAT(float, 4)
ANYPOOL_GENERIC_FLOAT(double, 2)
#endif

// The same for numbers that are not NaN.
template <class V>
ANYPOOL_INLINE V max_of_numbers(V l, V r) {
  return r > l ? r : l;
}
template <class V>
ANYPOOL_INLINE V min_of_numbers(V l, V r) {
  return r < l ? r : l;
}
#define ANYPOOL_X86_NUMBERS(T, L, V, max_, min_)                                 \
  template <>                                                                    \
  ANYPOOL_INLINE Vec<T, L> max_of_numbers<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) { \
    return (Vec<T, L>)max_((V)r, (V)l);                                          \
  }                                                                              \
  template <>                                                                    \
  ANYPOOL_INLINE Vec<T, L> min_of_numbers<Vec<T, L>>(Vec<T, L> l, Vec<T, L> r) { \
    return (Vec<T, L>)min_((V)r, (V)l);                                          \
  }
#if defined(__AVX512F__)
// With a mask of all lanes: GCC 12 warns of an uninitialised variable in its own header without it.
#define ANYPOOL_ALL_max_ps(a, b) _mm512_maskz_max_ps(-1, a, b)
#define ANYPOOL_ALL_min_ps(a, b) _mm512_maskz_min_ps(-1, a, b)
#define ANYPOOL_ALL_max_pd(a, b) _mm512_maskz_max_pd(-1, a, b)
#define ANYPOOL_ALL_min_pd(a, b) _mm512_maskz_min_pd(-1, a, b)
ANYPOOL_X86_NUMBERS(float, 16, __m512, ANYPOOL_ALL_max_ps, ANYPOOL_ALL_min_ps)
ANYPOOL_X86_NUMBERS(double, 8, __m512d, ANYPOOL_ALL_max_pd, ANYPOOL_ALL_min_pd)
#elif defined(__AVX2__)
ANYPOOL_X86_NUMBERS(float, 8, __m256, _mm256_max_ps, _mm256_min_ps)
ANYPOOL_X86_NUMBERS(double, 4, __m256d, _mm256_max_pd, _mm256_min_pd)
#elif defined(__x86_64__)
ANYPOOL_X86_NUMBERS(float, 4, __m128, _mm_max_ps, _mm_min_ps)
ANYPOOL_X86_NUMBERS(double, 2, __m128d, _mm_max_pd, _mm_min_pd)
#endif
#undef ANYPOOL_X86_NUMBERS

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

// Even and odd elements of two adjacent vectors: the data movement of a stride-2 window.
template <class T, int L>
struct Unzip {
  using V = Vec<T, L>;
  template <int... I>
  static ANYPOOL_INLINE V even(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
  }
  template <int... I>
  static ANYPOOL_INLINE V odd(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (2 * I + 1)...);
  }
  static ANYPOOL_INLINE V even(V a, V b) {
#if defined(__AVX512BW__)
    if constexpr (L == 64) return packed((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 32) {
      const V first = halves<0x20>(a, b), second = halves<0x31>(a, b);
      if constexpr (sizeof(T) == 8) return (V)_mm256_unpacklo_pd((__m256d)first, (__m256d)second);
      if constexpr (sizeof(T) == 4) return (V)_mm256_shuffle_ps((__m256)first, (__m256)second, 0x88);
      if constexpr (sizeof(T) == 2) return packed_shorts((__m256i)a, (__m256i)b);
      return packed((__m256i)a, (__m256i)b);
    }
#endif
    return even(a, b, typename MakeIndices<L>::type{});
  }
  static ANYPOOL_INLINE V odd(V a, V b) {
#if defined(__AVX512BW__)
    if constexpr (L == 64) return packed(_mm512_srli_epi16((__m512i)a, 8), _mm512_srli_epi16((__m512i)b, 8));
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 32) {
      const V first = halves<0x20>(a, b), second = halves<0x31>(a, b);
      if constexpr (sizeof(T) == 8) return (V)_mm256_unpackhi_pd((__m256d)first, (__m256d)second);
      if constexpr (sizeof(T) == 4) return (V)_mm256_shuffle_ps((__m256)first, (__m256)second, 0xdd);
      if constexpr (sizeof(T) == 2)
        return packed_shorts(_mm256_srli_epi32((__m256i)a, 16), _mm256_srli_epi32((__m256i)b, 16));
      return packed(_mm256_srli_epi16((__m256i)a, 8), _mm256_srli_epi16((__m256i)b, 8));
    }
#endif
    return odd(a, b, typename MakeIndices<L>::type{});
  }

 private:
  // What 128-bit pieces give is mixed, and put in order. Bytes are the low halves of shorts, packed; shorts those of ints.
#if defined(__AVX512BW__)
  static ANYPOOL_INLINE V packed(__m512i a, __m512i b) {
    const __m512i low = _mm512_set1_epi16(0xff);
    const auto mixed = (Vec<int64_t, 8>)_mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low));
    return (V)__builtin_shufflevector(mixed, mixed, 0, 2, 4, 6, 1, 3, 5, 7);
  }
#elif defined(__AVX2__)
  template <int Which>
  static ANYPOOL_INLINE V halves(V a, V b) {
    return (V)_mm256_permute2f128_ps((__m256)a, (__m256)b, Which);
  }
  static ANYPOOL_INLINE V packed(__m256i a, __m256i b) {
    const __m256i low = _mm256_set1_epi16(0xff);
    return in_order((V)_mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low)));
  }
  static ANYPOOL_INLINE V packed_shorts(__m256i a, __m256i b) {
    const __m256i zero = _mm256_setzero_si256();
    return in_order((V)_mm256_packus_epi32(_mm256_blend_epi16(a, zero, 0xaa), _mm256_blend_epi16(b, zero, 0xaa)));
  }
  static ANYPOOL_INLINE V in_order(V mixed) { return (V)_mm256_permute4x64_epi64((__m256i)mixed, 0xd8); }
#endif
};
// And back: a0 b0 a1 b1 ...
template <class T, int L>
struct Zip {
  using V = Vec<T, L>;
  template <int... I>
  static ANYPOOL_INLINE V low(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * L)...);
  }
  template <int... I>
  static ANYPOOL_INLINE V high(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + L / 2 + (I % 2) * L)...);
  }
  static ANYPOOL_INLINE V low(V a, V b) { return low(a, b, typename MakeIndices<L>::type{}); }
  static ANYPOOL_INLINE V high(V a, V b) { return high(a, b, typename MakeIndices<L>::type{}); }
};

}  // namespace
}  // namespace anypool
