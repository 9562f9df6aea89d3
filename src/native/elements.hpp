// Element types, and rows from one to another.
#pragma once
#include "geometry.hpp"
#include "reductions.hpp"

namespace anypool {
namespace {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

ANYPOOL_INLINE float widen(bf16 h) {
  uint32_t u = uint32_t(h.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
ANYPOOL_INLINE float widen(f16 h) {  // exact; subnormals by the multiplication, infinities and NaN by the selection
  uint32_t sign = uint32_t(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
  uint32_t u = rest << 13;
  float magnitude;
  __builtin_memcpy(&magnitude, &u, 4);
  magnitude *= 0x1p112f;
  uint32_t finite, special = 0x7f800000u | ((rest & 0x3ff) << 13) | ((rest & 0x3ff) ? 0x400000u : 0u);
  __builtin_memcpy(&finite, &magnitude, 4);
  u = sign | (rest >= 0x7c00 ? special : finite);
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
template <class T>
ANYPOOL_INLINE T widen(T x) {
  return x;
}

ANYPOOL_INLINE void narrow(bf16& out, float f) {  // round to nearest, ties to even; NaN stays NaN
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  out.bits = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40 : rounded);
}
ANYPOOL_INLINE void narrow(f16& out, float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  uint32_t sign = (u >> 16) & 0x8000, rest = u & 0x7fffffffu;
  // Normal results: round the mantissa in place. Subnormal ones: let the adder of the FPU round at 2^-24.
  uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1)) >> 13;
  float magnitude;
  __builtin_memcpy(&magnitude, &rest, 4);
  magnitude += 0.5f;
  uint32_t small;
  __builtin_memcpy(&small, &magnitude, 4);
  small -= 0x3f000000u;
  uint32_t h = rest < 0x38800000u ? small : rest >= 0x477ff000u ? 0x7c00u : normal;
  if (rest > 0x7f800000u) h = 0x7e00u | ((rest >> 13) & 0x3ff);
  out.bits = uint16_t(sign | h);
}
ANYPOOL_INLINE void narrow(f16& out, double d) {
  float f = float(d);  // round to odd first, so that rounding twice equals rounding once
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  if (double(f) != d && d == d && !(u & 1)) u += (double(f) < d) == (d > 0) ? 1 : -1;
  __builtin_memcpy(&f, &u, 4);
  narrow(out, f);
}
ANYPOOL_INLINE void narrow(bf16& out, double d) {
  float f = float(d);
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  if (double(f) != d && d == d && !(u & 1)) u += (double(f) < d) == (d > 0) ? 1 : -1;
  __builtin_memcpy(&f, &u, 4);
  narrow(out, f);
}
template <class T, class U>
ANYPOOL_INLINE void narrow(T& out, U x) {
  out = T(x);
}

// dst[i * dst_stride] = src[i * src_stride], from one element type to another.
using Convert = void (*)(void* dst, i64 dst_stride, const void* src, i64 src_stride, i64 n);

template <class Src, class Dst>
void convert_row(void* dst, i64 dst_stride, const void* src, i64 src_stride, i64 n) {
  const Src* in = static_cast<const Src*>(src);
  Dst* out = static_cast<Dst*>(dst);
  if (dst_stride == 1 && src_stride == 1) {
    if constexpr (kSame<Src, Dst>)
      __builtin_memcpy(out, in, size_t(n) * sizeof(Dst));
    else
      for (i64 i = 0; i < n; ++i) narrow(out[i], widen(in[i]));
  } else {
    for (i64 i = 0; i < n; ++i) narrow(out[i * dst_stride], widen(in[i * src_stride]));
  }
}

template <class T>
struct Tag {
  using type = T;
};
// f(tag of the C++ type) for an element type that is known at run time.
template <class F>
ANYPOOL_INLINE auto with_type(DType t, F&& f) {
  switch (t) {
    case DType::u8: return f(Tag<uint8_t>{});
    case DType::i8: return f(Tag<int8_t>{});
    case DType::u16: return f(Tag<uint16_t>{});
    case DType::i16: return f(Tag<int16_t>{});
    case DType::u32: return f(Tag<uint32_t>{});
    case DType::i32: return f(Tag<int32_t>{});
    case DType::u64: return f(Tag<uint64_t>{});
    case DType::i64: return f(Tag<int64_t>{});
    case DType::f16: return f(Tag<f16>{});
    case DType::bf16: return f(Tag<bf16>{});
    case DType::f32: return f(Tag<float>{});
    default: return f(Tag<double>{});
  }
}

template <class T>
constexpr bool kIsHalf = kSame<T, f16> || kSame<T, bf16>;
// From every element type to every other; but integers turn into halves, and halves into integers, by way of a float.
inline Convert converter(DType from, DType to) {
  return with_type(from, [to](auto from_tag) {
    return with_type(to, [](auto to_tag) -> Convert {
      using Src = typename decltype(from_tag)::type;
      using Dst = typename decltype(to_tag)::type;
      if constexpr (kSame<Src, Dst>)
        return convert_row<Src, Dst>;
      else if constexpr (kIsHalf<Dst> && !kIsFloat<Src>)
        return nullptr;
      else if constexpr (kIsHalf<Src> && !kIsFloat<Dst>)
        return nullptr;
      else
        return convert_row<Src, Dst>;
    });
  });
}

}  // namespace
}  // namespace anypool
