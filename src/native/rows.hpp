// Rows: every pooling, of any rank and layout, is `merge_rows` over rows that lie somewhere else.
#pragma once
#include <math.h>

#include "plan.hpp"
#include "reductions.hpp"

namespace anypool {
namespace {

// The order of summation is a function of the window alone: n taps are the merge of the first h and the other n - h,
// h the largest power of two below n. Both a sliding window (by doubling) and a stream (by carries) can follow it.
ANYPOOL_INLINE i64 split_point(i64 n) { return i64(1) << (63 - __builtin_clzll(uint64_t(n - 1))); }

template <class Op, int N, int L>
ANYPOOL_INLINE typename Op::template State<L> merge_tree(const Source* s, i64 i) {
  if constexpr (N == 1) {
    return Op::template get<L>(*s, i);
  } else {
    constexpr int h = N > 4 ? 4 : N > 2 ? 2 : 1;
    return Op::template merge<L>(merge_tree<Op, h, L>(s, i), merge_tree<Op, N - h, L>(s + h, i));
  }
}

// A row shorter than a vector takes a shorter vector; the last vector of a row overlaps the one before, so there is no
// scalar tail. dst must not overlap the sources.
template <class Op, int N, int L>
ANYPOOL_INLINE void merge_span(const Row& dst, i64 at, const Source* s, i64 width) {
  if (width >= L) {
    i64 i = 0;
    for (; i + L <= width; i += L) Op::template put<L>(dst, at + i, merge_tree<Op, N, L>(s, i));
    if (i < width) Op::template put<L>(dst, at + width - L, merge_tree<Op, N, L>(s, width - L));
  } else if constexpr (L > 1) {
    merge_span<Op, N, L / 2>(dst, at, s, width);
  }
}

template <class Op, int N>
__attribute__((noinline)) void merge_n(Row dst, i64 dst_pitch, const Source* sources, i64 rows, i64 width) {
  Source s[N];
  for (int n = 0; n < N; ++n) s[n] = sources[n];
  for (i64 r = 0; r < rows; ++r) {
    merge_span<Op, N, Op::kMaxLanes>(dst, r * dst_pitch, s, width);
    for (int n = 0; n < N; ++n) {
      s[n].a += s[n].pitch * i64(sizeof(typename Op::A));
      if (Op::kPair && s[n].b) s[n].b += s[n].pitch * i64(sizeof(typename Op::B));
    }
  }
}

constexpr int kLeaf = 5;  // rows merged in registers at once

template <class Op>
void merge_rows(Row dst, i64 dst_pitch, const Source* sources, int n, i64 rows, i64 width) {
  switch (n) {
    case 1: return merge_n<Op, 1>(dst, dst_pitch, sources, rows, width);
    case 2: return merge_n<Op, 2>(dst, dst_pitch, sources, rows, width);
    case 3: return merge_n<Op, 3>(dst, dst_pitch, sources, rows, width);
    case 4: return merge_n<Op, 4>(dst, dst_pitch, sources, rows, width);
    default: return merge_n<Op, 5>(dst, dst_pitch, sources, rows, width);
  }
}

template <class T>
void fill(char* p, i64 n, T value) {
  T* out = reinterpret_cast<T*>(p);
  for (i64 i = 0; i < n; ++i) out[i] = value;
}

// A reduction as the engine sees it.
struct Kernel {
  i64 a_bytes, b_bytes;  // size of the components of a state; b_bytes 0: there is one
  bool coded;            // b is the winner's offset in the window
  // dst[r][0..width) = merge of sources[0..n)[r][0..width), n <= kLeaf; dst_pitch and width in elements.
  void (*merge)(Row dst, i64 dst_pitch, const Source* sources, int n, i64 rows, i64 width);
  void (*identity)(Row dst, i64 from, i64 to);
  // One state: taps [lo, lo + n) of a window whose tap t lies at line[t * step], those outside [first, last) being absent.
  void (*run)(Row dst, Source line, i64 step, i64 lo, i64 n, i64 first, i64 last);
};

template <class Op>
void fill_identity(Row r, i64 from, i64 to) {
  if (to <= from) return;
  auto id = Op::identity();
  fill(r.a + from * i64(sizeof(typename Op::A)), to - from, id.a);
  if constexpr (Op::kPair) fill(r.b + from * i64(sizeof(typename Op::B)), to - from, id.b);
}

template <class Op>
typename Op::template State<1> merge_run(Source line, i64 step, i64 lo, i64 n, i64 first, i64 last) {
  if (lo + n <= first || lo >= last) return Op::identity();
  if (n == 1) {
    line.add += lo;
    return Op::template get<1>(line, lo * step);
  }
  const i64 half = split_point(n);
  return Op::template merge<1>(merge_run<Op>(line, step, lo, half, first, last),
                               merge_run<Op>(line, step, lo + half, n - half, first, last));
}
template <class Op>
void put_run(Row dst, Source line, i64 step, i64 lo, i64 n, i64 first, i64 last) {
  Op::template put<1>(dst, 0, merge_run<Op>(line, step, lo, n, first, last));
}

template <class Op, bool Coded = false>
constexpr Kernel kKernel = {sizeof(typename Op::A),
                            Op::kPair ? sizeof(typename Op::B) : 0,
                            Coded,
                            merge_rows<Op>,
                            fill_identity<Op>,
                            put_run<Op>};

// De-interleave: element i of src goes to phase i % s, place i / s; phases lie `phase_pitch` elements apart.
template <class T>
void split_phases(char* dst, i64 phase_pitch, const char* src, i64 n, i64 s) {
  constexpr int L = kLanes<T>;
  const T* in = reinterpret_cast<const T*>(src);
  T* out = reinterpret_cast<T*>(dst);
  i64 i = 0;
  if (s == 2) {
    T* odd = out + phase_pitch;
    for (; i + 2 * L <= n; i += 2 * L) {
      auto a = load<Vec<T, L>>(in + i), b = load<Vec<T, L>>(in + i + L);
      store(out + i / 2, Unzip<T, L>::even(a, b));
      store(odd + i / 2, Unzip<T, L>::odd(a, b));
    }
    for (; i < n; ++i) ((i & 1) ? odd : out)[i / 2] = in[i];
    return;
  }
  for (i64 phase = 0; phase < s; ++phase)
    for (i64 place = 0, j = phase; j < n; ++place, j += s) out[phase * phase_pitch + place] = in[j];
}
inline void split_phases(i64 bytes, char* dst, i64 phase_pitch, const char* src, i64 n, i64 s) {
  switch (bytes) {
    case 1: return split_phases<uint8_t>(dst, phase_pitch, src, n, s);
    case 2: return split_phases<uint16_t>(dst, phase_pitch, src, n, s);
    case 4: return split_phases<uint32_t>(dst, phase_pitch, src, n, s);
    default: return split_phases<uint64_t>(dst, phase_pitch, src, n, s);
  }
}

// ---- element types -------------------------------------------------------------------------------------------------

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
template <class T>  // the types in which kernels add and compare
constexpr bool kIsAccumulator = kIsFloat<T> || kSame<T, int32_t> || kSame<T, int64_t> || kSame<T, uint64_t>;

// Every element type to and from every accumulator type, and to itself; integers do not turn into halves directly.
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
      else if constexpr (kIsAccumulator<Src> || kIsAccumulator<Dst>)
        return convert_row<Src, Dst>;
      else
        return nullptr;
    });
  });
}
ANYPOOL_INLINE i64 size_of(DType t) {
  switch (t) {
    case DType::u8:
    case DType::i8: return 1;
    case DType::u16:
    case DType::i16:
    case DType::f16:
    case DType::bf16: return 2;
    case DType::u32:
    case DType::i32:
    case DType::f32: return 4;
    default: return 8;
  }
}

// ---- lifts and finishes: arithmetic on one row, in place -------------------------------------------------------------

template <class T>
ANYPOOL_INLINE T integer_power(T x, i64 n) {
  T y = 1;
  for (; n; n >>= 1, x *= x)
    if (n & 1) y *= x;
  return y;
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
    a = t != t ? t : t > 0 ? factor * t : factor * 0;
    b = t < 0 ? ScaledSum::kZeroExponent : 0;
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
ANYPOOL_INLINE int32_t divide_half_even(int32_t sum, i64 n) { return int32_t(divide_half_even(i64(sum), n)); }

}  // namespace
}  // namespace anypool
