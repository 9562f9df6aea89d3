// The windows that most poolings have, small and with stride 1, 2 or 4, without a line in between: rows are merged over
// d and h in registers and, still there, over w. Results are those of the engine to the bit: the order is the same.
#pragma once
#include "lanes.hpp"
#include "new_rows.hpp"
#include "tree.hpp"

namespace anypool {
namespace {

// ---- rows of outputs ---------------------------------------------------------------------------------------------------

constexpr int kFusedRows = 9;

// `count` rows of n outputs. rows[d * KH + h] are the input rows of the first window, `cols` columns each, and step[…] is
// how many bytes further those of the next output row lie. The first window starts at column `start`, which may be
// negative. Output o is divided by divisor[o], or multiplied by it if it is a reciprocal, if there is one.
struct FusedJob {
  const char* rows[kFusedRows];
  i64 step[kFusedRows];
  i64 cols, start;
  char* y;
  i64 y_step, n, count;
  const char* divisor;
  bool reciprocal;
  bool in_order;  // whether to read the new rows of a window one after the other first
};
// Returns whether it met a NaN in the rows that the output row before has not seen, the last ones of each plane, as many
// as the stride on w; the outputs are worth nothing then. Sums and integers never do.
using FusedKernel = bool (*)(const FusedJob&);

// L outputs from o on, divided as the job says. Sums of bytes: in floats, to nearest, ties to even (see divide_small).
template <int L, class V>
ANYPOOL_INLINE V finished(V v, const FusedJob& job, i64 o) {
  if (!job.divisor) return v;
  if constexpr (kSame<V, Vec<uint16_t, L>>) {
    using F = Vec<float, L>;
    const F f = __builtin_convertvector(v, F), by = load<F>(job.divisor + o * 4);
    return __builtin_convertvector((job.reciprocal ? f * by : f / by) + 0x1.8p23f - 0x1.8p23f, V);
  } else {
    const V by = load<V>(job.divisor + o * i64(sizeof(V) / L));
    return job.reciprocal ? v * by : v / by;
  }
}

template <class T, class Op, int KD, int KH, int KW, int S, int DW = 1>
class Fused {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  const FusedJob& job_;
  const T* rows_[KD * KH];
  Part first_[S], tail_[6][S], last_;  // of the first vectors, of those at the end, of the last result
  i64 whole_ = 0;                      // outputs before the last ones, whose columns all lie inside
  int tails_ = 0;
  bool starts_inside_;
  NaNs<A, L> nan_;

  static ANYPOOL_INLINE V merge(V l, V r) { return Op::template merged<L>(l, r); }
  static ANYPOOL_INLINE V none() { return splat<V>(Op::identity().a); }

  // Of the rows of the window, merged: d within h, as the engine does.
  template <int H, int D, int N>
  static ANYPOOL_INLINE V over_d(const V* v) {
    if constexpr (N == 1) {
      return v[D * KH + H];
    } else {
      constexpr int half = N > 4 ? 4 : N > 2 ? 2 : 1;
      return merge(over_d<H, D, half>(v), over_d<H, D + half, N - half>(v));
    }
  }
  template <int H, int N>
  static ANYPOOL_INLINE V over_h(const V* v) {
    if constexpr (N == 1) {
      return over_d<H, 0, KD>(v);
    } else {
      constexpr int half = N > 4 ? 4 : N > 2 ? 2 : 1;
      return merge(over_h<H, half>(v), over_h<H + half, N - half>(v));
    }
  }
  // L columns merged over the window's rows; what lies outside a row is absent.
  ANYPOOL_INLINE V column(i64 c) {
    V v[KD * KH];
    for (int i = 0; i < KD * KH; ++i) v[i] = Memory::load(rows_[i] + c);
    look_for_nan(v);
    return over_h<0, KH>(v);
  }
#if defined(__AVX512F__)
  ANYPOOL_INLINE
#else
  __attribute__((noinline))
#endif
  V edge(i64 c, const Part& part) {
    V v[KD * KH];
    for (int i = 0; i < KD * KH; ++i) v[i] = Memory::load_part(rows_[i] + c, part, none());
    look_for_nan(v);
    return over_h<0, KH>(v);
  }
  ANYPOOL_INLINE V column(i64 c, const Part& part) { return part.empty() ? none() : edge(c, part); }
  ANYPOOL_INLINE void look_for_nan(const V* v) {
    if constexpr (Op::kNumbersOnly) {
      constexpr int kFresh = S < KH ? S : KH, kAll = KD * kFresh;
      const auto fresh = [&](int i) { return v[i / kFresh * KH + KH - kFresh + i % kFresh]; };
      for (int i = 0; i + 1 < kAll; i += 2) nan_.see(fresh(i), fresh(i + 1));
      if (kAll % 2) nan_.see(fresh(kAll - 1), fresh(kAll - 1));
    }
  }

  struct Phases {  // columns c, c + S … of L outputs, and c + 1, c + 1 + S …
    V v[S];
    ANYPOOL_INLINE void set(const V* columns) {
      if constexpr (S == 1) {
        v[0] = columns[0];
      } else {
        v[0] = Unzip<A, L>::even(columns[0], columns[1]);
        v[1] = Unzip<A, L>::odd(columns[0], columns[1]);
      }
    }
  };
  ANYPOOL_INLINE void phases(i64 c, Phases& p) {
    V v[S];
    for (int s = 0; s < S; ++s) v[s] = column(c + s * L);
    p.set(v);
  }
  ANYPOOL_INLINE void phases(i64 c, const Part* parts, Phases& p) {
    V v[S];
    for (int s = 0; s < S; ++s) v[s] = column(c + s * L, parts[s]);
    p.set(v);
  }
  template <int From, int N>
  static ANYPOOL_INLINE V over_w(const Phases& here, const Phases& next) {
    if constexpr (N == 1) {
      constexpr int at = From * DW;
      return Slide<V, at / S, L>::run(here.v[at % S], next.v[at % S]);
    } else {
      constexpr int half = N > 4 ? 4 : N > 2 ? 2 : 1;
      return merge(over_w<From, half>(here, next), over_w<From + half, N - half>(here, next));
    }
  }

  ANYPOOL_INLINE V finished(V v, i64 o) const { return anypool::finished<L>(v, job_, o); }

  ANYPOOL_INLINE void row(T* y) {
    Phases here, next;
    if (starts_inside_)
      phases(job_.start, here);
    else
      phases(job_.start, first_, here);
    i64 o = 0, c = job_.start + L * S;
    for (; o < whole_; o += L, c += L * S) {
      phases(c, next);
      Memory::store(y + o, finished(over_w<0, KW>(here, next), o));
      here = next;
    }
    for (int t = 0; t < tails_; ++t, o += L, c += L * S) {
      phases(c, tail_[t], next);
      const V v = finished(over_w<0, KW>(here, next), o);
      if (t + 1 < tails_)
        Memory::store(y + o, v);
      else
        Memory::store_part(y + o, v, last_);
      here = next;
    }
  }

 public:
  explicit Fused(const FusedJob& job) : job_(job) {
    for (int i = 0; i < KD * KH; ++i) rows_[i] = reinterpret_cast<const T*>(job.rows[i]);
    const i64 step = L * S;
    i64 c = job.start;
    for (int s = 0; s < S; ++s) first_[s] = Part(inside<L>(c + s * L, job.cols));
    starts_inside_ = c >= 0 && c + step <= job.cols;
    for (c += step; whole_ + L < job.n && c + step <= job.cols; c += step) whole_ += L;
    for (i64 o = whole_; o < job.n; o += L, c += step, ++tails_)
      for (int s = 0; s < S; ++s) tail_[tails_][s] = Part(inside<L>(c + s * L, job.cols));
    last_ = Part({0, (job.n - 1) % L + 1});
  }
  static bool run(const FusedJob& job) {
    Fused f(job);
    char* y = job.y;
    for (i64 r = 0; r < job.count; ++r, y += job.y_step) {
      for (int i = 0; S > 1 && job.in_order && i < KD * KH; ++i)
        if (i % KH >= KH - S) read_in_order(f.rows_[i], job.cols * i64(sizeof(T)));
      f.row(reinterpret_cast<T*>(y));
      for (int i = 0; i < KD * KH; ++i)
        f.rows_[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(f.rows_[i]) + job.step[i]);
    }
    return f.nan_.any();
  }
};

// A row of windows of four neighbours that do not overlap.
template <class T, class Op>
class Fours {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;

  static ANYPOOL_INLINE V pair(V a, V b) {
    return Op::template merged<L>(Unzip<A, L>::even(a, b), Unzip<A, L>::odd(a, b));
  }

 public:
  static bool run(const FusedJob& job) {
    NaNs<A, L> nan;
    const T* x = reinterpret_cast<const T*>(job.rows[0]);
    T* y = reinterpret_cast<T*>(job.y);
    for (i64 r = 0; r < job.count; ++r) {
      i64 c = job.start;
      for (i64 o = 0; o < job.n; o += L, c += 4 * L) {
        V v[4];
        if (c >= 0 && c + 4 * L <= job.cols)
          for (int s = 0; s < 4; ++s) v[s] = Memory::load(x + c + s * L);
        else
          for (int s = 0; s < 4; ++s)
            v[s] = Memory::load_part(x + c + s * L, Part(inside<L>(c + s * L, job.cols)), splat<V>(Op::identity().a));
        if constexpr (Op::kNumbersOnly) nan.see(v[0], v[1]), nan.see(v[2], v[3]);
        V merged = pair(pair(v[0], v[1]), pair(v[2], v[3]));
        if (job.divisor) merged = finished<L>(merged, job, o);
        if (o + L <= job.n)
          Memory::store(y + o, merged);
        else
          Memory::store_part(y + o, merged, Part({0, job.n - o}));
      }
      x = reinterpret_cast<const T*>(reinterpret_cast<const char*>(x) + job.step[0]);
      y = reinterpret_cast<T*>(reinterpret_cast<char*>(y) + job.y_step);
    }
    return nan.any();
  }
};

// ---- which there are -----------------------------------------------------------------------------------------------------

template <class T, class Op>
FusedKernel fused_kernel(i64 kd, i64 kh, i64 kw, i64 s, i64 dilation) {
  if constexpr (kLanes<typename Op::A> >= 4)
    if (dilation == 2 && kd == 1 && kh == 3 && kw == 3 && s == 1) return Fused<T, Op, 1, 3, 3, 1, 2>::run;
  if (dilation != 1) return nullptr;
  if (s == 4) return kd == 1 && kh == 1 && kw == 4 ? Fours<T, Op>::run : nullptr;
#define ANYPOOL_FUSED(KD, KH, KW)                                                        \
  if (kd == KD && kh == KH && kw == KW) {                                                \
    if (s == 2) return Fused<T, Op, KD, KH, KW, 2>::run;                                 \
    if constexpr (KW <= kLanes<typename Op::A>) return Fused<T, Op, KD, KH, KW, 1>::run; \
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
FusedKernel fused_kernel(const Plan& p) {
  const i64 kd = p.axis[0].kernel, kh = p.axis[1].kernel, kw = p.axis[2].kernel, s = p.axis[2].stride,
            dilation = p.axis[2].dilation;
  if constexpr (!kSame<A, uint16_t>) {
    if (p.merge == Merge::max) return fused_kernel<T, SelectNumbers<A, true>>(kd, kh, kw, s, dilation);
    if (p.merge == Merge::min) return fused_kernel<T, SelectNumbers<A, false>>(kd, kh, kw, s, dilation);
  }
  if constexpr (kIsFloat<A> || kSame<A, uint16_t>) return fused_kernel<T, Sum<A>>(kd, kh, kw, s, dilation);
  return nullptr;
}

// The fused kernel for a plan, or null: the engine then takes its general way.
inline FusedKernel fused_kernel_of(const Plan& p) {
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding) return nullptr;
  const Axis& w = p.axis[2];
  if (p.inner != 1 || p.x_stride[2] != 1 || p.y_stride[2] != 1 || p.lift != Lift::none || p.code != Code::none ||
      p.out != p.in || (w.stride != 1 && w.stride != 2 && w.stride != 4) || w.pad > w.kernel * w.dilation ||
      w.pad_hi > w.kernel * w.dilation || p.merge == Merge::scaled_sum ||
      (p.finish != Finish::none && p.finish != Finish::divide))
    return nullptr;
  switch (p.in) {
    case DType::u8:
      if (p.merge == Merge::sum) return p.finish == Finish::divide ? fused_kernel<uint8_t, uint16_t>(p) : nullptr;
      return fused_kernel<uint8_t, uint8_t>(p);
    case DType::i32: return p.merge == Merge::sum ? nullptr : fused_kernel<int32_t, int32_t>(p);
    default:
      return with_float_types<FusedKernel>(
          p, [&](auto t, auto a) { return fused_kernel<typename decltype(t)::type, typename decltype(a)::type>(p); });
  }
}

// Output rows of a tile by a fused kernel.
class FusedRows {
  const Plan& p_;
  const Tile& t_;
  const FusedKernel kernel_;
  const HasNaN has_nan_;
  char *none_ = nullptr, *divisor_ = nullptr;  // a row that is absent; what each column divides by
  double rows_ = 0;                            // the divisor's other factor, for which divisor_ holds
  i64 first_ = -1;
  bool reciprocal_ = false;

 public:
  FusedRows(const Plan& plan, const Tile& tile, Arena& arena)
      : p_(plan),
        t_(tile),
        kernel_(fused_kernel_of(plan)),
        has_nan_(plan.merge == Merge::sum ? nullptr : has_nan_of(plan.in)) {
    if (!kernel_) return;
    const i64 row = p_.axis[2].n_in * size_of(p_.in);
    if (may_miss(p_.axis[0]) || may_miss(p_.axis[1])) none_ = arena.take(row);
    if (p_.finish == Finish::divide) divisor_ = arena.take(lower(p_.tile_w, p_.axis[2].n_out) * 8 + 256);
    if (!arena.base || !none_) return;
    with_type(p_.in, [&](auto tag) {
      using T = typename decltype(tag)::type;
      T none{};
      if constexpr (kIsFloat<T> || kIsHalf<T>) {
        const float inf = __builtin_inff();
        narrow(none, p_.merge == Merge::sum ? -0.0f : p_.merge == Merge::max ? -inf : inf);
      } else if (p_.merge != Merge::sum) {
        none = p_.merge == Merge::max ? Limits<T>::bottom : Limits<T>::top;
      }
      fill(none_, p_.axis[2].n_in, none);
    });
  }
  explicit operator bool() const { return kernel_ != nullptr; }

  // Output rows [oh0, oh1), which lie y_step bytes apart from y on; other(oh) makes one that has met a NaN.
  template <class F>
  void run(const Buffers& buffers, char* y, i64 oh0, i64 oh1, F&& other) {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const i64 bytes = size_of(p_.in), row = p_.x_stride[1] * bytes;
    const char* x = static_cast<const char*>(buffers.x) + outer_offset(p_, p_.x_outer, t_.outer) * bytes;
    const Window wd = window_of(p_.axis[0], t_.od);
    FusedJob job;
    job.cols = w.n_in, job.start = t_.ow0 * w.stride - w.pad, job.n = t_.outputs(), job.y_step = p_.y_stride[1] * bytes;
    job.in_order = row < kPage;
    i64 looked = 0, clean_from = INT64_MIN;  // rows in which NaNs were looked for, and behind the last one found
    for (i64 oh = oh0; oh < oh1; oh += job.count) {
      const Window wh = window_of(h, oh);
      const i64 end = wh.lo < wh.hi ? wh.at(wh.hi - 1) + 1 : 0;
      const bool known = wh.step == 1 || h.stride == 1;  // that the kernel looks through every row sooner or later
      if (has_nan_) {
        const i64 own = !known ? end : lower(end, wh.at(wh.taps - (wh.step == 1 ? w.stride : 1)));
        for (i64 r = higher(higher(0, wh.start), looked); r < own; ++r)
          if (any_nan(x, wd, r)) clean_from = r + 1;
        looked = higher(looked, own);
      }
      job.count = 1;
      if (wh.start < clean_from) {
        other(oh);
        continue;
      }
      // The next rows with it, as long as they miss nothing and see no more new rows each than the kernel looks through.
      if (wh.lo == 0 && wh.hi == wh.taps && h.stride <= w.stride && known)
        job.count = lower(oh1 - oh, (h.n_in - end) / h.stride + 1);
      const i64 step = wh.step * row;
      int i = 0;
      for (i64 d = 0; d < wd.taps; ++d) {
        const bool plane = d >= wd.lo && d < wd.hi;
        const char* from = x + wd.at(d) * p_.x_stride[0] * bytes + wh.start * row;
        for (i64 t = 0; t < wh.taps; ++t, from += step, ++i) {
          const bool there = plane && t >= wh.lo && t < wh.hi;
          job.rows[i] = there ? from : none_;
          job.step[i] = there ? h.stride * row : 0;
        }
      }
      job.y = y + (oh - oh0) * job.y_step;
      job.divisor = p_.finish == Finish::divide ? divisor_row(oh) : nullptr;  // which also says what it holds
      job.reciprocal = reciprocal_;
      looked = higher(looked, end + (job.count - 1) * h.stride);
      if (!kernel_(job)) continue;
      for (i64 r = 0; r < job.count; ++r) other(oh + r);
      clean_from = looked;
    }
  }

 private:
  // Row h of the window's planes.
  bool any_nan(const char* x, const Window& d, i64 h) const {
    bool any = false;
    for (i64 t = d.lo; t < d.hi; ++t)
      any |= has_nan_(x + (d.at(t) * p_.x_stride[0] + h * p_.x_stride[1]) * size_of(p_.in), p_.axis[2].n_in);
    return any;
  }
  static bool may_miss(const Axis& a) {  // whether some window has a tap outside the data
    return a.pad > 0 || (a.n_out - 1) * a.stride - a.pad + (a.kernel - 1) * a.dilation >= a.n_in;
  }

  // Multiplying by the reciprocal is less work, and as exact for powers of two; for sums of bytes also for odd numbers,
  // whose quotients are never ties and at least 1 / (2 by) away from one.
  bool exact_reciprocal(double by) const {
    const i64 whole = i64(by);
    if (double(whole) != by || whole <= 0) return false;
    return (whole & (whole - 1)) == 0 || (p_.in == DType::u8 && whole % 2 == 1 && whole < 1024);
  }
  const char* divisor_row(i64 oh) {
    const bool constant = p_.divisor == Divisor::constant;
    const double rows = constant ? p_.divisor_value
                                 : double(divisor_of(p_.forward[0], t_.od, p_.divisor)) *
                                       double(divisor_of(p_.forward[1], oh, p_.divisor));
    // Where no column misses a tap, they are all alike, in every tile.
    const bool alike = constant || !may_miss(p_.forward[2]);
    const i64 first = alike ? 0 : t_.ow0;
    if (rows != rows_ || first != first_) {
      rows_ = rows, first_ = first;
      reciprocal_ = true;
      const auto put = [&](auto* out) {
        const i64 n = alike ? lower(p_.tile_w, p_.axis[2].n_out) : t_.outputs();
        for (i64 o = 0; o < n; ++o) {
          const double by = constant ? rows : rows * double(divisor_of(p_.forward[2], first + o, p_.divisor));
          reciprocal_ &= exact_reciprocal(by);
          narrow(out[o], by);
        }
        for (i64 o = 0; reciprocal_ && o < n; ++o) out[o] = 1 / out[o];
        for (i64 o = n; o < n + 256 / i64(sizeof *out); ++o) out[o] = 1;  // lanes that are not stored
      };
      p_.acc == DType::f64 ? put(reinterpret_cast<double*>(divisor_)) : put(reinterpret_cast<float*>(divisor_));
    }
    return divisor_;
  }
};

}  // namespace
}  // namespace anypool
