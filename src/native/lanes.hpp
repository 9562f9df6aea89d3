// Vectors of the type A that is compared or added, from and to rows of the array's own type T: whole, or only the lanes
// that lie inside the row.
#pragma once
#include "parts.hpp"

namespace anypool {
namespace {

// Bits of a row, as vectors of A and back. `narrow_number` is for what was once of type T, and is no NaN: nothing is rounded.
template <class T, class A, int L>
struct Numbers {
  using Bits = T;
  using Raw = Vec<T, L>;
  static ANYPOOL_INLINE Vec<A, L> wide(Raw v) {
    if constexpr (kSame<T, A>)
      return v;
    else
      return convert<Vec<A, L>>(v);
  }
  static ANYPOOL_INLINE Raw narrow(Vec<A, L> v) {
    if constexpr (kSame<T, A>)
      return v;
    else
      return convert<Raw>(v);
  }
  static ANYPOOL_INLINE Raw narrow_number(Vec<A, L> v) { return narrow(v); }
};
// Quotients of sums of ints: to nearest, ties to even, modulo 2^32 as ints are. They are the lowest bits of a double's
// mantissa once 1.5 * 2^52 has been added.
template <int L>
struct Numbers<int32_t, double, L> {
  using Bits = int32_t;
  using Raw = Vec<int32_t, L>;
  static ANYPOOL_INLINE Vec<double, L> wide(Raw v) { return __builtin_convertvector(v, Vec<double, L>); }
  static ANYPOOL_INLINE Raw narrow(Vec<double, L> v) {
    v = v + 0x1.8p52;
    Vec<int64_t, L> bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return __builtin_convertvector(bits, Raw);
  }
  static ANYPOOL_INLINE Raw narrow_number(Vec<double, L> v) { return narrow(v); }
};
template <int L>
struct Numbers<bf16, float, L> {
  using Bits = uint16_t;
  using Raw = Vec<uint16_t, L>;
  static ANYPOOL_INLINE Vec<float, L> wide(Raw v) {
    const auto bits = convert<Vec<uint32_t, L>>(v) << 16;
    Vec<float, L> f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
  }
  // A word whose upper half is the float, rounded; or as it is, of what was once of this type.
  template <bool Exact = false>
  static ANYPOOL_INLINE Vec<uint32_t, L> word(Vec<float, L> v) {
    Vec<uint32_t, L> u;
    __builtin_memcpy(&u, &v, sizeof u);
    return v != v ? u | 0x400000u : Exact ? u : u + 0x7fffu + ((u >> 16) & 1);
  }
  static ANYPOOL_INLINE Raw narrow(Vec<float, L> v) { return convert<Raw>(word(v) >> 16); }
  static ANYPOOL_INLINE Raw narrow_number(Vec<float, L> v) {
    Vec<uint32_t, L> u;
    __builtin_memcpy(&u, &v, sizeof u);
    return convert<Raw>(u >> 16);
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
  using Bits = typename Numbers<T, A, L>::Bits;
  static ANYPOOL_INLINE V load_part(const T* p, const Part& part, V none) {
    return only<A, L>(part, part_of(p, part), none);
  }
  // With `none` where a byte of the mask is 0.
  static ANYPOOL_INLINE V load_where(const T* p, const uint8_t* mask, V none) {
    return LaneMask<A, L>::where_set(anypool::load<Vec<uint8_t, L>>(mask)).choose(load(p), none);
  }
  static ANYPOOL_INLINE V load_part_where(const T* p, const uint8_t* mask, const Part& part, V none) {
    return LaneMask<A, L>::where_set(load_bits<uint8_t, L>(mask, part)).choose(part_of(p, part), none);
  }
  static ANYPOOL_INLINE void store_part(T* p, V v, const Part& part) {
    store_bits<Bits, L>(reinterpret_cast<Bits*>(p), narrowed(v), part);
  }

 private:
  static ANYPOOL_INLINE V part_of(const T* p, const Part& part) {  // zeros outside
    return Numbers<T, A, L>::wide(load_bits<Bits, L>(reinterpret_cast<const Bits*>(p), part));
  }
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

// And back: neighbours from words whose upper halves they are.
template <int L>
ANYPOOL_INLINE Vec<uint32_t, L> joined(Vec<uint32_t, L> even, Vec<uint32_t, L> odd) {
  constexpr bool kLittle = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  return ((kLittle ? even : odd) >> 16) | ((kLittle ? odd : even) & 0xffff0000u);
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
    if constexpr (J == L) return b;
#if defined(__AVX2__)
    // Bytes and shorts by 128-bit pieces: the general shuffle of bytes is missing from these levels.
    if constexpr (sizeof(V) == ANYPOOL_VECTOR_BYTES && sizeof(V) / L <= 2) {
      constexpr int kBytes = J * int(sizeof(V)) / L, kPieces = kBytes / 16;
      const V low = pieces<kPieces>(a, b), high = pieces<kPieces + 1>(a, b);
      if constexpr (kBytes % 16 == 0) return low;
#if defined(__AVX512BW__)
      return (V)_mm512_alignr_epi8((__m512i)high, (__m512i)low, kBytes % 16);
#else
      return (V)_mm256_alignr_epi8((__m256i)high, (__m256i)low, kBytes % 16);
#endif
    }
#endif
    return run(a, b, typename MakeIndices<L>::type{});
  }

#if defined(__AVX2__)
 private:
  // From the N-th 128 bits of the two on.
  template <int N>
  static ANYPOOL_INLINE V pieces(V a, V b) {
    constexpr int kAll = ANYPOOL_VECTOR_BYTES / 16;
    if constexpr (N == 0) return a;
    if constexpr (N == kAll) return b;
#if defined(__AVX512BW__)
    return (V)_mm512_maskz_alignr_epi64(-1, (__m512i)b, (__m512i)a, 2 * (N % kAll));
#else
    return (V)_mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x21);
#endif
  }
#endif
};

}  // namespace
}  // namespace anypool
