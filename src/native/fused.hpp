// The windows that most poolings have, small and with stride 1, 2 or 4, without a line in between: rows are merged over
// d and h in registers and, still there, over w. Results are those of the engine to the bit: the order is the same.
#pragma once
#include "elements.hpp"
#include "tree.hpp"

namespace anypool {
namespace {

// ---- vectors of the type that is compared or added, from and to rows of the array's own type -------------------------

// Which lanes of a vector at column c lie inside a row of `cols`, and vectors of which only those are read or written.
#if defined(__AVX512F__)
template <class T, int L>
struct Parts {
  using Inside = uint32_t;
  static ANYPOOL_INLINE Inside first(i64 n) { return n >= L ? (1ull << L) - 1 : (1u << n) - 1; }
  static ANYPOOL_INLINE Inside inside(i64 c, i64 cols) {
    if constexpr (L == 16)
      return _mm512_cmplt_epu32_mask(
          _mm512_add_epi32(_mm512_set1_epi32(int(c)),
                           _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
          _mm512_set1_epi32(int(cols)));
    else
      return _mm512_cmplt_epu64_mask(_mm512_add_epi64(_mm512_set1_epi64(c), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)),
                                     _mm512_set1_epi64(cols));
  }
};
#else
template <class T, int L>
struct Parts {
  struct Inside {
    i64 lo, hi;
  };
  static ANYPOOL_INLINE Inside inside(i64 c, i64 cols) { return {c < 0 ? -c : 0, cols - c < L ? cols - c : L}; }
};
#endif

template <class T, int L>
struct Lanes : Parts<T, L> {
  using V = Vec<T, L>;
  using Inside = typename Parts<T, L>::Inside;
  static ANYPOOL_INLINE V load(const T* p) { return anypool::load<V>(p); }
  static ANYPOOL_INLINE void store(T* p, V v) { anypool::store(p, v); }
#if defined(__AVX512F__)
  static ANYPOOL_INLINE V load_part(const T* p, Inside inside, V none) {
    if constexpr (L == 16)
      return (V)_mm512_mask_loadu_ps((__m512)none, __mmask16(inside), p);
    else
      return (V)_mm512_mask_loadu_pd((__m512d)none, __mmask8(inside), p);
  }
  static ANYPOOL_INLINE void store_part(T* p, V v, i64 n) {
    if constexpr (L == 16)
      _mm512_mask_storeu_ps(p, __mmask16(Parts<T, L>::first(n)), (__m512)v);
    else
      _mm512_mask_storeu_pd(p, __mmask8(Parts<T, L>::first(n)), (__m512d)v);
  }
#else
  static V load_part(const T* p, Inside inside, V none) {
    for (i64 i = inside.lo; i < inside.hi; ++i) none[i] = p[i];
    return none;
  }
  static void store_part(T* p, V v, i64 n) {
    for (i64 i = 0; i < n; ++i) p[i] = v[i];
  }
#endif
};

// The halves: floats in the registers.
template <class H, int L>
struct HalfLanes : Parts<float, L> {
  using V = Vec<float, L>;
  using Inside = typename Parts<float, L>::Inside;
#if defined(__AVX512F__)
  static ANYPOOL_INLINE V load_part(const H* p, Inside inside, V none) {
    const __m256i bits = _mm256_maskz_loadu_epi16(__mmask16(inside), p);
    return (V)_mm512_mask_mov_ps((__m512)none, __mmask16(inside), (__m512)Lanes<H, L>::wide(&bits));
  }
  static ANYPOOL_INLINE void store_part(H* p, V v, i64 n) {
    __m256i bits;
    Lanes<H, L>::store(reinterpret_cast<H*>(&bits), v);
    _mm256_mask_storeu_epi16(p, __mmask16(Parts<float, L>::first(n)), bits);
  }
#else
  static V load_part(const H* p, Inside inside, V none) {
    for (i64 i = inside.lo; i < inside.hi; ++i) none[i] = widen(p[i]);
    return none;
  }
  static void store_part(H* p, V v, i64 n) {
    for (i64 i = 0; i < n; ++i) narrow(p[i], v[i]);
  }
#endif
};
template <int L>
struct Lanes<bf16, L> : HalfLanes<bf16, L> {
  static ANYPOOL_INLINE Vec<float, L> wide(const void* p) {
    const auto bits = __builtin_convertvector(anypool::load<Vec<uint16_t, L>>(p), Vec<uint32_t, L>) << 16;
    Vec<float, L> v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }
  static ANYPOOL_INLINE Vec<float, L> load(const bf16* p) { return wide(p); }
  static ANYPOOL_INLINE void store(bf16* p, Vec<float, L> v) {
    Vec<uint32_t, L> u;
    __builtin_memcpy(&u, &v, sizeof u);
    const Vec<uint32_t, L> rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
    anypool::store(p, __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Vec<uint16_t, L>));
  }
};
#if defined(__F16C__)
template <int L>
struct Lanes<f16, L> : HalfLanes<f16, L> {
  static ANYPOOL_INLINE Vec<float, L> wide(const void* p) {
    Vec<float, L> v;
    for (int i = 0; i < L / 8; ++i) {
      const __m256 part = _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p) + i));
      __builtin_memcpy(reinterpret_cast<float*>(&v) + 8 * i, &part, sizeof part);
    }
    return v;
  }
  static ANYPOOL_INLINE Vec<float, L> load(const f16* p) { return wide(p); }
  static ANYPOOL_INLINE void store(f16* p, Vec<float, L> v) {
    for (int i = 0; i < L / 8; ++i) {
      __m256 part;
      __builtin_memcpy(&part, reinterpret_cast<const float*>(&v) + 8 * i, sizeof part);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT));
    }
  }
};
#endif

template <class V, int J, int L>
struct Slide {  // lanes J, J + 1 … of two adjacent vectors
  template <int... I>
  static ANYPOOL_INLINE V run(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I + J)...);
  }
  static ANYPOOL_INLINE V run(V a, V b) { return run(a, b, typename MakeIndices<L>::type{}); }
};

// ---- one output row ----------------------------------------------------------------------------------------------------

// rows[d * KH + h]: the input rows of the window, `cols` columns each. The first window starts at column `start`, which
// may be negative. n outputs; output o is divided by divisor[o], or multiplied by it if it is a reciprocal, if there is one.
using FusedRow = void (*)(const void* const* rows, i64 cols, i64 start, void* y, i64 n, const void* divisor,
                          bool reciprocal);

template <class T, class Op, int KD, int KH, int KW, int S>
class Fused {
  static constexpr int L = kLanes<typename Op::A>;
  using A = typename Op::A;
  using V = Vec<A, L>;
  using State = typename Op::template State<L>;
  using Inside = typename Lanes<T, L>::Inside;
  const T* rows_[KD * KH];
  const i64 cols_;

  static ANYPOOL_INLINE V merge(V l, V r) { return Op::template merge<L>(State{l}, State{r}).a; }

  // L columns of one row from column c on; what lies outside the row is absent.
  template <bool Whole>
  ANYPOOL_INLINE V load(const T* row, i64 c, Inside inside) const {
    if constexpr (Whole)
      return Lanes<T, L>::load(row + c);
    else
      return Lanes<T, L>::load_part(row + c, inside, splat<V>(Op::identity().a));
  }
  // L columns merged over the window's rows: d within h, as the engine does.
  template <bool Whole, int H, int D, int N>
  ANYPOOL_INLINE V over_d(i64 c, Inside inside) const {
    if constexpr (N == 1) {
      return load<Whole>(rows_[D * KH + H], c, inside);
    } else {
      constexpr int half = N > 4 ? 4 : N > 2 ? 2 : 1;
      return merge(over_d<Whole, H, D, half>(c, inside), over_d<Whole, H, D + half, N - half>(c, inside));
    }
  }
  template <bool Whole, int H, int N>
  ANYPOOL_INLINE V over_h(i64 c, Inside inside) const {
    if constexpr (N == 1) {
      return over_d<Whole, H, 0, KD>(c, inside);
    } else {
      constexpr int half = N > 4 ? 4 : N > 2 ? 2 : 1;
      return merge(over_h<Whole, H, half>(c, inside), over_h<Whole, H + half, N - half>(c, inside));
    }
  }
  ANYPOOL_INLINE V column(i64 c) const {
#if defined(__AVX512F__)
    return over_h<false, 0, KH>(c, Lanes<T, L>::inside(c, cols_));  // masks cost less than a branch
#else
    return c >= 0 && c + L <= cols_ ? over_h<true, 0, KH>(c, {}) : edge(c);
#endif
  }
  __attribute__((noinline)) V edge(i64 c) const { return over_h<false, 0, KH>(c, Lanes<T, L>::inside(c, cols_)); }

  struct Phases {  // columns c, c + S … of L outputs, and c + 1, c + 1 + S …
    V v[S];
  };
  ANYPOOL_INLINE void phases(i64 c, Phases& p) const {
    if constexpr (S == 1) {
      p.v[0] = column(c);
    } else {
      const V a = column(c), b = column(c + L);
      p.v[0] = Unzip<A, L>::even(a, b);
      p.v[1] = Unzip<A, L>::odd(a, b);
    }
  }
  template <int From, int N>
  static ANYPOOL_INLINE V over_w(const Phases& here, const Phases& next) {
    if constexpr (N == 1) {
      constexpr int shift = From / S;
      if constexpr (shift == 0)
        return here.v[From % S];
      else
        return Slide<V, shift, L>::run(here.v[From % S], next.v[From % S]);
    } else {
      constexpr int half = N > 4 ? 4 : N > 2 ? 2 : 1;
      return merge(over_w<From, half>(here, next), over_w<From + half, N - half>(here, next));
    }
  }

  static ANYPOOL_INLINE void put(T* y, V v, i64 left, const A* divisor, bool reciprocal) {
    if (divisor) v = reciprocal ? v * anypool::load<V>(divisor) : v / anypool::load<V>(divisor);
    if (left >= L) return Lanes<T, L>::store(y, v);
    Lanes<T, L>::store_part(y, v, left);
  }

 public:
  Fused(const void* const* rows, i64 cols) : cols_(cols) {
    for (int i = 0; i < KD * KH; ++i) rows_[i] = static_cast<const T*>(rows[i]);
  }
  void run(i64 start, T* y, i64 n, const A* divisor, bool reciprocal) const {
    if constexpr (S == 4) {  // four neighbours each
      for (i64 o = 0; o < n; o += L) {
        const i64 c = start + 4 * o;
        const V p = pair(column(c), column(c + L)), q = pair(column(c + 2 * L), column(c + 3 * L));
        put(y + o, pair(p, q), n - o, divisor ? divisor + o : nullptr, reciprocal);
      }
    } else {
      constexpr bool ahead = (KW - 1) / S > 0;
      Phases here, next;
      phases(start, here);
      for (i64 o = 0; o < n; o += L) {
        const i64 c = start + (o + L) * S;
        if (o + L < n || (ahead && c < cols_))
          phases(c, next);
        else
          for (V& v : next.v) v = splat<V>(Op::identity().a);
        put(y + o, over_w<0, KW>(here, next), n - o, divisor ? divisor + o : nullptr, reciprocal);
        here = next;
      }
    }
  }
  static ANYPOOL_INLINE V pair(V a, V b) { return merge(Unzip<A, L>::even(a, b), Unzip<A, L>::odd(a, b)); }

  static void row(const void* const* rows, i64 cols, i64 start, void* y, i64 n, const void* divisor, bool reciprocal) {
    Fused(rows, cols).run(start, static_cast<T*>(y), n, static_cast<const A*>(divisor), reciprocal);
  }
};

// ---- which there are -----------------------------------------------------------------------------------------------------

template <class T, class Op>
FusedRow fused_row(i64 kd, i64 kh, i64 kw, i64 s) {
  if (s == 4) return kd == 1 && kh == 1 && kw == 4 ? Fused<T, Op, 1, 1, 4, 4>::row : nullptr;
#define ANYPOOL_FUSED(KD, KH, KW)                                                        \
  if (kd == KD && kh == KH && kw == KW) {                                                \
    if (s == 2) return Fused<T, Op, KD, KH, KW, 2>::row;                                 \
    if constexpr (KW <= kLanes<typename Op::A>) return Fused<T, Op, KD, KH, KW, 1>::row; \
  }
  ANYPOOL_FUSED(1, 1, 2)
  ANYPOOL_FUSED(1, 1, 3)
  ANYPOOL_FUSED(1, 2, 2)
  ANYPOOL_FUSED(1, 3, 3)
  ANYPOOL_FUSED(1, 5, 5)
  ANYPOOL_FUSED(2, 2, 2)
  ANYPOOL_FUSED(3, 3, 3)
#undef ANYPOOL_FUSED
  return nullptr;
}
template <class T, class A>
FusedRow fused_row(const Plan& p) {
  const i64 kd = p.axis[0].kernel, kh = p.axis[1].kernel, kw = p.axis[2].kernel, s = p.axis[2].stride;
  switch (p.merge) {
    case Merge::max: return fused_row<T, Select<A, true>>(kd, kh, kw, s);
    case Merge::min: return fused_row<T, Select<A, false>>(kd, kh, kw, s);
    default: return fused_row<T, Sum<A>>(kd, kh, kw, s);
  }
}

// The fused kernel for a plan, or null: the engine then takes its general way.
inline FusedRow fused_row_of(const Plan& p) {
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding) return nullptr;
  const i64 s = p.axis[2].stride;
  if (p.inner != 1 || p.x_stride[2] != 1 || p.y_stride[2] != 1 || p.lift != Lift::none || p.code != Code::none ||
      p.out != p.in || p.axis[2].dilation != 1 || p.axis[2].n_in + p.axis[2].pad + p.axis[2].pad_hi >= i64(1) << 30 ||
      (s != 1 && s != 2 && s != 4) || p.merge == Merge::scaled_sum ||
      (p.finish != Finish::none && p.finish != Finish::divide))
    return nullptr;
  switch (p.in) {
    case DType::f32: return p.acc == DType::f32 ? fused_row<float, float>(p) : nullptr;
    case DType::f64: return fused_row<double, double>(p);
    case DType::bf16: return p.acc == DType::f32 ? fused_row<bf16, float>(p) : nullptr;
#if defined(__F16C__)
    case DType::f16: return p.acc == DType::f32 ? fused_row<f16, float>(p) : nullptr;
#endif
    default: return nullptr;
  }
}

// Output rows of a tile by a fused kernel.
class FusedRows {
  const Plan& p_;
  const Tile& t_;
  const FusedRow row_;
  char *none_, *divisor_;  // a row that is absent; what each column divides by
  double rows_ = 0;        // the divisor's other factor, for which divisor_ holds
  const char* x_ = nullptr;
  Window wd_{};

 public:
  FusedRows(const Plan& plan, const Tile& tile, Arena& arena) : p_(plan), t_(tile), row_(fused_row_of(plan)) {
    if (!row_) return;
    const i64 n = p_.axis[2].n_in;
    none_ = arena.take(n * 8 + 64);
    divisor_ = arena.take(p_.axis[2].n_out * 8 + ANYPOOL_VECTOR_BYTES);
    if (!arena.base) return;
    with_type(p_.in, [&](auto tag) {
      using T = typename decltype(tag)::type;
      if constexpr (kIsFloat<T> || kIsHalf<T>) {
        T none;
        const float inf = __builtin_inff();
        narrow(none, p_.merge == Merge::sum ? -0.0f : p_.merge == Merge::max ? -inf : inf);
        fill(none_, n, none);
      }
    });
  }
  explicit operator bool() const { return row_ != nullptr; }

  void place(const Buffers& buffers) {
    wd_ = window_of(p_.axis[0], t_.od);
    x_ = static_cast<const char*>(buffers.x) + outer_offset(p_, p_.x_outer, t_.outer) * size_of(p_.in);
  }

  void merge(void* y, i64 oh) {
    const void* rows[9];
    const Window wh = window_of(p_.axis[1], oh);
    const i64 bytes = size_of(p_.in), step = wh.step * p_.x_stride[1] * bytes;
    int i = 0;
    for (i64 d = 0; d < wd_.taps; ++d) {
      const bool plane = d >= wd_.lo && d < wd_.hi;
      const char* row = x_ + (wd_.at(d) * p_.x_stride[0] + wh.start * p_.x_stride[1]) * bytes;
      for (i64 h = 0; h < wh.taps; ++h, row += step) rows[i++] = plane && h >= wh.lo && h < wh.hi ? row : none_;
    }
    const i64 start = t_.ow0 * p_.axis[2].stride - p_.axis[2].pad;
    const void* divisor = p_.finish == Finish::divide ? divisor_row(oh) : nullptr;  // which also says what it holds
    row_(rows, p_.axis[2].n_in, start, y, t_.outputs(), divisor, reciprocal_);
  }

 private:
  const void* divisor_row(i64 oh) {
    const bool constant = p_.divisor == Divisor::constant;
    const double rows = constant ? p_.divisor_value
                                 : double(divisor_of(p_.forward[0], t_.od, p_.divisor)) *
                                       double(divisor_of(p_.forward[1], oh, p_.divisor));
    const i64 first = t_.ow0;
    if (rows != rows_ || first != first_) {
      rows_ = rows, first_ = first;
      // Halving is exact: where all divisors are powers of two, their reciprocals give the same bits for less.
      reciprocal_ = true;
      const auto put = [&](auto* out) {
        const i64 n = t_.outputs();
        for (i64 o = 0; o < n; ++o) {
          const double by = constant ? rows : rows * double(divisor_of(p_.forward[2], first + o, p_.divisor));
          const i64 whole = i64(by);
          reciprocal_ &= double(whole) == by && whole > 0 && (whole & (whole - 1)) == 0;
          narrow(out[o], by);
        }
        for (i64 o = 0; reciprocal_ && o < n; ++o) out[o] = 1 / out[o];
        for (i64 o = n; o < n + i64(ANYPOOL_VECTOR_BYTES / sizeof *out); ++o) out[o] = 1;  // lanes that are not stored
      };
      p_.acc == DType::f32 ? put(reinterpret_cast<float*>(divisor_)) : put(reinterpret_cast<double*>(divisor_));
    }
    return divisor_;
  }
  i64 first_ = -1;
  bool reciprocal_ = false;
};

}  // namespace
}  // namespace anypool
