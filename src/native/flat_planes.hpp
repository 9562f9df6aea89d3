// Windows that leave a plane its size (stride 1, as much padding as that takes) over planes with short rows. A plane is
// taken as one long row, so that no vector ends with a row. What belongs to a neighbouring row, or plane, is read and left
// out by masks. Results are those of the engine to the bit: the order is the same.
#pragma once
#include "around.hpp"
#include "lanes.hpp"
#include "new_rows.hpp"
#include "planes_run.hpp"
#include "tree.hpp"

namespace anypool {
namespace {

constexpr i64 kFlatPlane = 1 << 14, kFlatRow = 80;  // elements: longer rows gain nothing

// K x K windows, taps D apart.
template <class T, class A, class Fast, class Careful, int K, int D>
class FlatPlanes {
  static constexpr int L = kLanes<A>, kReach = K / 2 * D, kMasks = K - 1;  // one for each tap but that in the middle
  static constexpr i64 kTiny = 8 * L;
  static_assert(kReach <= L, "a window reaches into the next vector at most");
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  using Mask = LaneMask<A, L>;
  const Plan& p_;
  const i64 rows_, cols_, plane_;  // plane_: elements
  const i64 before_, behind_;      // elements beside planes that are read
  const bool results_in_a_row_;
  const i64 together_;      // so many planes without gaps are one row: of tiny ones a vector would be a large part
  Mask *over_w_, *over_h_;  // of each vector; of those that see what lies above or below a plane
  A* divisor_;              // of each element
  bool even_ = true;        // whether they are all the same
  A* lifted_;               // planes of an adjoint, divided
  T* copied_;               // planes beside which nothing can be read
  AroundCaches around_;

 public:
  FlatPlanes(const Plan& p, Arena& arena)
      : p_(p),
        rows_(p.axis[1].n_in),
        cols_(p.axis[2].n_in),
        plane_(rows_ * cols_),
        before_(kReach * cols_),
        behind_(before_ + L),
        results_in_a_row_(p.n_outer == 1 && p.y_outer[0] == plane_),
        together_(results_in_a_row_ && p.x_outer[0] == plane_ && plane_ <= kTiny ? higher(1, lower(16, p.outer[0]))
                                                                                 : 1),
        over_w_(arena.take_array<Mask>(blocks() * kMasks)),
        over_h_(arena.take_array<Mask>((together_ > 1 ? blocks() : 2 * before_ / L + 4) * kMasks)),
        divisor_(arena.take_array<A>(divides() || lifts() ? blocks() * L : 0)),
        lifted_(with_beside<A>(arena, lifts())),
        copied_(with_beside<T>(arena, !lifts())),
        around_(AroundCaches::gain(p, &Axis::n_out), together_ * plane_ * i64(sizeof(T)), arena) {
    if (!arena.base) return;
    fill_masks();
    if (divides() || lifts()) fill_divisors();
  }
  void run(const Buffers& b, i64 begin, i64 end) {
    const Extent array = extent_of(p_);
    for (i64 plane = begin; plane < end;) {
      const i64 planes = lower(together_, end - plane), n = planes * plane_, at = outer_offset(p_, p_.x_outer, plane);
      T* y = static_cast<T*>(b.y) + outer_offset(p_, p_.y_outer, plane);
      T* to = reinterpret_cast<T*>(around_.room(reinterpret_cast<char*>(y)));
      plane += planes;
      // Results are stored as whole vectors where what lies behind them will be written later.
      const bool between = at - before_ >= array.begin && at + n + behind_ <= array.end,
                 whole = around_ || (results_in_a_row_ && (end - plane) * plane_ >= L);
      some(static_cast<const T*>(b.x) + at, to, n, between, whole);
      around_.wrote(n * i64(sizeof(T)));
    }
    around_.finish();
  }

 private:
  bool divides() const { return p_.finish == Finish::divide; }
  bool lifts() const { return p_.lift == Lift::over_divisor; }
  i64 blocks() const { return ceil_div(together_ * plane_, L); }
  void some(const T* x, T* y, i64 n, bool between, bool whole) const {
    if constexpr (kSame<Fast, Careful>) {  // sums
      if (lifts()) {
        lift(x, n);
        pool<Fast>(lifted_, y, n, whole);
        return;
      }
    }
    if (!between) {
      __builtin_memcpy(copied_, x, size_t(n) * sizeof(T));
      x = copied_;
    }
    if (pool<Fast>(x, y, n, whole)) pool<Careful>(x, y, n, whole);
  }
  // Room for planes, and as much beside them as is read: zeros, among which no NaN is seen.
  template <class E>
  E* with_beside(Arena& arena, bool wanted) const {
    if (!wanted) return nullptr;
    const i64 all = before_ + together_ * plane_ + behind_;
    E* const from = arena.take_array<E>(all);
    for (i64 i = 0; arena.base && i < all; ++i) from[i] = E{};
    return from + before_;
  }
  void fill_masks() {
    for (i64 i = 0; i < blocks() * kMasks; ++i) over_w_[i] = Mask::all();
    if (together_ == 1) {
      Mask* over_h = over_h_;
      for (i64 i = 0; i < plane_; i += L)
        for (int m = 0; m < kMasks && !sees_rows_alone(i); ++m)
          *over_h++ = Mask::of(Part(inside<L>(i + shift(m) * cols_, plane_)));
    } else {
      for (i64 i = 0; i < blocks() * kMasks; ++i) over_h_[i] = Mask::all();
    }
    for (int m = 0; m < kMasks; ++m) {
      const i64 by = shift(m), from = by < 0 ? 0 : higher(0, cols_ - by), to = by < 0 ? lower(-by, cols_) : cols_;
      for (i64 r = 0; r < together_ * rows_; ++r) {
        for (i64 c = from; c < to; ++c) clear(over_w_, r * cols_ + c, m);
        const i64 seen = r % rows_ + by;
        if (together_ > 1 && (seen < 0 || seen >= rows_))
          for (i64 c = 0; c < cols_; ++c) clear(over_h_, r * cols_ + c, m);
      }
    }
  }
  static void clear(Mask* masks, i64 at, int mask) { masks[at / L * kMasks + mask].clear(at % L); }
  // How far off the tap is that has this mask.
  static i64 shift(int mask) { return (mask + (mask >= K / 2) - K / 2) * D; }
  // Whether all that the windows of the vector at i see over h are rows of the one plane.
  bool sees_rows_alone(i64 i) const { return i >= before_ && i + behind_ <= plane_; }
  // One axis at a time: to ask for each element would take longer than to pool it.
  void fill_divisors() {
    const bool constant = p_.divisor == Divisor::constant;
    const auto on = [&](int axis, i64 o) { return constant ? 1 : double(divisor_of(p_.forward[axis], o, p_.divisor)); };
    const double depth = constant ? p_.divisor_value : on(0, 0), first_row = depth * on(1, 0);
    double of_column[kFlatRow];
    for (i64 c = 0; c < cols_; ++c) {
      of_column[c] = on(2, c);
      even_ &= of_column[c] == of_column[0];
    }
    A* to = divisor_;
    for (i64 r = 0; r < rows_; ++r, to += cols_) {
      const double of_row = depth * on(1, r);
      even_ &= of_row == first_row;
      for (i64 c = 0; c < cols_; ++c) to[c] = A(of_row * of_column[c]);
    }
    for (; to < divisor_ + blocks() * L; ++to) *to = to[-plane_];  // planes are alike
  }

  void lift(const T* x, i64 n) const {
    const i64 each = even_ ? 0 : 1;
    const auto over_divisor = [&](V v, i64 i) { anypool::store(lifted_ + i, v / load<V>(divisor_ + each * i)); };
    i64 i = 0;
    for (; i + L < n; i += L) over_divisor(Memory::load(x + i), i);
    over_divisor(Memory::load_part(x + i, Part({0, n - i}), V{}), i);
  }

  template <class Op>
  static ANYPOOL_INLINE V none() {
    return splat<V>(Op::identity().a);
  }
  // The vector at i, merged over the rows of the window, of which masks leave out some if there are any.
  template <class Op, bool Masks, class From>
  static ANYPOOL_INLINE V column(const From* const* rows, i64 i, const Mask* masks, NaNs<A, L>& nan) {
    return merged_taps<Op, 0, K>([&](auto tap) {
      constexpr int t = decltype(tap)::value;
      const V v = Lanes<From, A, L>::load(rows[t] + i);
      if constexpr (t == K / 2) {
        if constexpr (Op::kNumbersOnly) nan.see(v, v);
      } else if constexpr (Masks) {
        return masks[t - (t > K / 2)].choose(v, none<Op>());
      }
      return v;
    });
  }
  template <class Op>
  ANYPOOL_INLINE V over_w(V before, V here, V next, const Mask* masks) const {
    return merged_taps<Op, 0, K>([&](auto tap) {
      constexpr int t = decltype(tap)::value, shift = (t - K / 2) * D;
      if constexpr (shift == 0)
        return here;
      else if constexpr (shift < 0)
        return masks[t].choose(Slide<V, L + shift, L>::run(before, here), none<Op>());
      else
        return masks[t - 1].choose(Slide<V, shift, L>::run(here, next), none<Op>());
    });
  }
  // Returns whether a NaN was there.
  template <class Op, class From>
  bool pool(const From* x, T* y, i64 n, bool whole) const {
    using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
    NaNs<A, L> nan;
    const Mask *masks = over_w_, *over_h = over_h_;
    const A* divisor = divides() ? divisor_ : nullptr;
    const i64 each = even_ ? 0 : 1, reach = together_ > 1 ? n : before_;
    const From* rows[K];
    for (int t = 0; t < K; ++t) rows[t] = x + (t - K / 2) * D * cols_;
    const auto at_rim = [&](i64 i) {
      const Mask* const masks = over_h;
      over_h += kMasks;
      return column<Op, true>(rows, i, masks, nan);
    };
    const auto inner = [&](i64 i) { return column<Op, false>(rows, i, nullptr, nan); };
    V before = none<Op>(), here = at_rim(0);
    i64 i = 0;
    const auto step = [&](V next) {
      const V v = over_w<Op>(before, here, next, masks);
      before = here, here = next, masks += kMasks;
      return divisor ? v / load<V>(divisor + each * i) : v;
    };
    for (; i + L < reach && i + L < n; i += L) Memory::store(y + i, step(at_rim(i + L)));
    for (; i + 2 * L + reach <= n; i += L) Memory::store(y + i, step(inner(i + L)));
    for (; i + L < n; i += L) Memory::store(y + i, step(at_rim(i + L)));
    if (whole)
      Memory::store(y + i, step(none<Op>()));
    else
      Memory::store_part(y + i, step(none<Op>()), Part({0, n - i}));
    return nan.any();
  }
};

template <class T, class A, class Fast, class Careful, int K, int D>
PlanesRun flat_run() {
  if constexpr (K / 2 * D <= kLanes<A>) return planes_run<FlatPlanes<T, A, Fast, Careful, K, D>>();
  return {};
}
template <class T, class A, class Fast, class Careful>
PlanesRun flat_run(i64 kernel, i64 dilation) {
  if (dilation == 2) return kernel == 3 ? flat_run<T, A, Fast, Careful, 3, 2>() : PlanesRun{};
  return kernel == 3   ? flat_run<T, A, Fast, Careful, 3, 1>()
         : kernel == 5 ? flat_run<T, A, Fast, Careful, 5, 1>()
                       : PlanesRun{};
}

// For a plan of such windows, else nothing.
inline PlanesRun flat_run_of(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const auto keeps_size = [&](const Axis& a) {
    return a.kind == AxisKind::sliding && a.stride == 1 && a.n_out == a.n_in && a.n_in > 0 && a.kernel == w.kernel &&
           a.dilation == w.dilation && a.pad == a.kernel / 2 * a.dilation;
  };
  if (!keeps_size(h) || !keeps_size(w) || d.kind != AxisKind::sliding || d.n_in != 1 || d.n_out != 1 || d.kernel != 1 ||
      w.kernel % 2 == 0 || (w.dilation != 1 && w.dilation != 2) || w.n_in > kFlatRow || h.n_in > kFlatPlane / w.n_in)
    return {};
  if (p.inner != 1 || p.x_stride[2] != 1 || p.y_stride[2] != 1 || p.x_stride[1] != w.n_in || p.y_stride[1] != w.n_in ||
      p.adjoint || (p.lift != Lift::none && p.lift != Lift::over_divisor) || p.code != Code::none || p.out != p.in ||
      p.merge == Merge::scaled_sum || (p.finish != Finish::none && p.finish != Finish::divide))
    return {};
  return with_float_types<PlanesRun>(p, [&](auto t, auto a) {
    using T = typename decltype(t)::type;
    using A = typename decltype(a)::type;
    if (p.merge == Merge::max) return flat_run<T, A, SelectNumbers<A, true>, Select<A, true>>(w.kernel, w.dilation);
    if (p.merge == Merge::min) return flat_run<T, A, SelectNumbers<A, false>, Select<A, false>>(w.kernel, w.dilation);
    return flat_run<T, A, Sum<A>, Sum<A>>(w.kernel, w.dilation);
  });
}

}  // namespace
}  // namespace anypool
