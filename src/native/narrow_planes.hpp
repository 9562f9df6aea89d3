// Windows that differ, on planes whose rows fit a vector: adaptive pooling of the last layers of a network, 7x7 to 3x5. Two
// planes lie side by side where they fit. Their rows are read once and merged over h; the taps of all windows on w are
// then moved side by side, the first ones, the second ones …, and merged. Absent taps are worth nothing: n taps padded to a
// power of two are the engine's own tree.
#pragma once
#include "lanes.hpp"
#include "new_rows.hpp"
#include "planes_run.hpp"

namespace anypool {
namespace {

// Lane `at[i]` of a vector at i.
#if defined(__AVX512F__)
constexpr bool kMoves = true;
ANYPOOL_INLINE Vec<float, 16> moved_lanes(Vec<float, 16> v, Vec<int32_t, 16> at) {
  return (Vec<float, 16>)_mm512_maskz_permutexvar_ps(-1, (__m512i)at, (__m512)v);
}
#elif defined(__AVX2__)
constexpr bool kMoves = true;
ANYPOOL_INLINE Vec<float, 8> moved_lanes(Vec<float, 8> v, Vec<int32_t, 8> at) {
  return (Vec<float, 8>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)at);
}
#else
constexpr bool kMoves = false;
template <int L>
ANYPOOL_INLINE Vec<float, L> moved_lanes(Vec<float, L> v, Vec<int32_t, L>) {
  return v;
}
#endif

constexpr i64 kMostNarrowTaps = 8, kMostNarrowRows = 16;

// KW: a power of two, as many taps as a window has on w, or more.
template <class T, class Fast, class Careful, int KW>
class NarrowPlanes {
  static constexpr int L = kLanes<float>, kMostRows = int(kMostNarrowRows);
  static constexpr i64 kPlanes = 16;  // whose results are written at once: as few bytes cost as much as many
  using V = Vec<float, L>;
  using Memory = Lanes<T, float, L>;
  using Bits = typename Numbers<T, float, L>::Bits;
  const Plan& p_;
  const i64 rows_, outputs_;  // on h
  const i64 plane_;           // results of a plane
  const bool two_;            // planes in a vector
  const bool dense_;          // results of planes follow one another
  T* const results_;
  Part in_[2];                    // the lanes of each
  Vec<int32_t, L> at_[KW];        // where each window's taps are
  LaneMask<float, L> there_[KW];  // which there are
  V divisor_[kMostRows];          // of each row of results
  Window window_[kMostRows];      // on h

  static ANYPOOL_INLINE V none() { return splat<V>(Fast::identity().a); }

 public:
  static bool fits_twice(const Plan& p) { return higher(p.axis[2].n_in, p.axis[2].n_out) <= L / 2; }

  NarrowPlanes(const Plan& p, Arena& arena)
      : p_(p),
        rows_(p.axis[1].n_in),
        outputs_(p.axis[1].n_out),
        plane_(outputs_ * p.axis[2].n_out),
        two_(fits_twice(p)),
        dense_(p.n_outer == 1 && p.y_stride[1] == p.axis[2].n_out && p.y_outer[0] == plane_),
        results_(arena.take_array<T>((kPlanes + 1) * plane_ + L)) {
    const Axis &h = p.axis[1], &w = p.axis[2];
    for (i64 o = 0; o < outputs_; ++o) window_[o] = window_of(h, o);
    for (int half = 0; half <= two_; ++half) {
      const i64 lane = half * (L / 2);
      in_[half] = Part({lane, lane + w.n_in});
    }
    for (int k = 0; k < KW; ++k) at_[k] = Vec<int32_t, L>{};
    V by = splat<V>(1.0f);
    uint8_t counts[KW][L] = {};
    for (i64 o = 0; o < w.n_out; ++o) {
      const Window v = window_of(w, o);
      for (int half = 0; half <= two_; ++half) {
        const i64 lane = half * (L / 2) + o;
        by[lane] = float(divisor_of(p.forward[2], o, p.divisor));
        for (i64 k = 0; k < v.taps; ++k) at_[k][lane] = int32_t(half * (L / 2) + v.at(k)), counts[k][lane] = 1;
      }
    }
    for (i64 o = 0; o < outputs_; ++o)
      divisor_[o] = p.divisor == Divisor::constant ? splat<V>(float(p.divisor_value))
                                                   : splat<V>(float(divisor_of(p.forward[1], o, p.divisor))) * by;
    for (int k = 0; k < KW; ++k) there_[k] = LaneMask<float, L>::where_set(load<Vec<uint8_t, L>>(counts[k]));
  }

  void run(const Buffers& buffers, i64 begin, i64 end) {
    const T* x = static_cast<const T*>(buffers.x);
    T* y = static_cast<T*>(buffers.y);
    for (i64 first = begin; first < end; first += kPlanes) {
      const i64 n = lower(kPlanes, end - first);
      for (i64 i = 0; i < n; i += 1 + two_) {
        const i64 other = two_ && i + 1 < n ? i + 1 : i;
        const T* from[2] = {x + at(p_.x_outer, first + i), x + at(p_.x_outer, first + other)};
        two_ ? both<1>(from, results_ + i * plane_) : both<0>(from, results_ + i * plane_);
      }
      if (dense_) {
        __builtin_memcpy(y + at(p_.y_outer, first), results_, size_t(n * plane_) * sizeof(T));
        continue;
      }
      for (i64 i = 0; i < n; ++i)
        for (i64 o = 0; o < outputs_; ++o)
          __builtin_memcpy(y + at(p_.y_outer, first + i) + o * p_.y_stride[1],
                           results_ + i * plane_ + o * p_.axis[2].n_out, size_t(p_.axis[2].n_out) * sizeof(T));
    }
  }

 private:
  ANYPOOL_INLINE i64 at(const i64* strides, i64 plane) const {
    return p_.n_outer == 1 ? plane * strides[0] : outer_offset(p_, strides, plane);
  }
  template <int Two>
  ANYPOOL_INLINE void both(const T* const* from, T* to) const {
    V rows[kMostRows];
    NaNs<float, L> nan;
    ask_for(from[0], (1 + Two) * rows_ * p_.axis[2].n_in * i64(sizeof(T)));
    i64 r = 0;
    for (; r + 2 <= rows_; r += 2) {
      rows[r] = row<Two>(from, r * p_.x_stride[1]), rows[r + 1] = row<Two>(from, (r + 1) * p_.x_stride[1]);
      if constexpr (Fast::kNumbersOnly) nan.see(rows[r], rows[r + 1]);
    }
    if (r < rows_) {
      rows[r] = row<Two>(from, r * p_.x_stride[1]);
      if constexpr (Fast::kNumbersOnly) nan.see(rows[r], rows[r]);
    }
    if (nan.any())
      merge<Careful, Two>(rows, to);
    else
      merge<Fast, Two>(rows, to);
  }
  template <int Two>
  ANYPOOL_INLINE V row(const T* const* from, i64 at) const {
    const auto bits = [&](int half) {
      return load_bits<Bits, L>(reinterpret_cast<const Bits*>(from[half] + at) - half * (L / 2), in_[half]);
    };
    V v = Numbers<T, float, L>::wide(bits(0));
    if constexpr (Two) v = LaneMask<float, L>::of(in_[1]).choose(Numbers<T, float, L>::wide(bits(1)), v);
    return v;
  }
  template <class Op>
  static ANYPOOL_INLINE V over_rows(const V* v, i64 n) {
    const auto tap = [v](auto t) { return v[decltype(t)::value]; };
    return with_number<8>(n, [&](auto taps) { return merged_taps<Op, 0, decltype(taps)::value>(tap); });
  }
  template <class Op, int Two>
  ANYPOOL_INLINE void merge(const V* rows, T* to) const {
    typename Memory::Raw results[kMostRows];
    const i64 n = p_.axis[2].n_out;
    for (i64 o = 0; o < outputs_; ++o) {
      const V v = over_rows<Op>(rows + window_[o].start, window_[o].taps);
      V merged = merged_taps<Op, 0, KW>([&](auto tap) {
        constexpr int k = decltype(tap)::value;
        return there_[k].choose(moved_lanes(v, at_[k]), none());
      });
      if (p_.finish == Finish::divide) merged = merged / divisor_[o];
      results[o] = Memory::narrowed(merged);
    }
    // What lies behind the end of a row is written again by the next one.
    constexpr size_t kBytes = sizeof(results[0]) / (1 + Two);
    for (int half = 0; half <= Two; ++half, to += plane_)
      for (i64 o = 0; o < outputs_; ++o)
        __builtin_memcpy(to + o * n, reinterpret_cast<const char*>(results + o) + half * kBytes, kBytes);
  }
};

template <class T, class Fast, class Careful>
PlanesRun narrow_run(const Plan& p) {
  PlanesRun found;
#define ANYPOOL_NARROW(KW)                             \
  if (!found.run && p.axis[2].kernel <= KW) {          \
    using Planes = NarrowPlanes<T, Fast, Careful, KW>; \
    found = planes_run<Planes>();                      \
  }
  ANYPOOL_NARROW(2)
  ANYPOOL_NARROW(4)
  ANYPOOL_NARROW(8)
#undef ANYPOOL_NARROW
  found.way = "narrow planes";
  return found;
}

// Whether all taps of all windows lie inside, side by side.
inline bool inside_alone(const Axis& a) {
  for (i64 o = 0; o < a.n_out; ++o) {
    const Window w = window_of(a, o);
    if (w.lo > 0 || w.hi < w.taps || w.taps == 0 || w.taps > kMostNarrowTaps || (w.step != 1 && w.taps > 1))
      return false;
  }
  return a.n_out > 0;
}

// For a plan whose windows differ on h or w, on planes of few columns; else nothing.
inline PlanesRun narrow_run_of(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  if (higher(w.n_in, w.n_out) > kLanes<float> || higher(h.n_in, h.n_out) > kMostNarrowRows) return {};
  if (!kMoves || (h.kind != AxisKind::table && w.kind != AxisKind::table) || p.acc != DType::f32 || p.in != p.out ||
      d.n_in != 1 || d.n_out != 1 || p.inner != 1 || p.x_stride[2] != 1 || p.y_stride[2] != 1 || p.adjoint ||
      p.lift != Lift::none || p.code != Code::none || p.merge == Merge::scaled_sum ||
      (p.finish != Finish::none && p.finish != Finish::divide) || !inside_alone(h) || !inside_alone(w))
    return {};
  if constexpr (!kMoves) return {};
  return with_float_types<PlanesRun>(p, [&](auto t, auto a) -> PlanesRun {
    using T = typename decltype(t)::type;
    if constexpr (!kMoves || sizeof(typename decltype(a)::type) != 4)
      return {};
    else
      switch (p.merge) {
        case Merge::max: return narrow_run<T, SelectNumbers<float, true>, Select<float, true>>(p);
        case Merge::min: return narrow_run<T, SelectNumbers<float, false>, Select<float, false>>(p);
        default: return narrow_run<T, Sum<float>, Sum<float>>(p);
      }
  });
}

}  // namespace
}  // namespace anypool
