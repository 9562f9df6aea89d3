// Windows that leave a plane its size (stride 1, as much padding as that takes) over planes with short rows. A plane is
// taken as one long row, so that no vector ends with a row. Whatever lies a whole number of rows above or below is missing
// only before the plane's first element or behind its last one; to the left and right, masks leave out what belongs to a
// neighbouring row. Results are those of the engine to the bit: the order is the same.
#pragma once
#include "around.hpp"
#include "lanes.hpp"
#include "new_rows.hpp"
#include "planes_run.hpp"
#include "tree.hpp"

namespace anypool {
namespace {

constexpr i64 kFlatPlane = 1 << 14, kFlatRow = 80;  // elements: longer rows gain nothing

// K x K windows, taps D apart, over planes of which `Many` at a time lie without gaps, again as one long row: then masks
// leave out the rows of neighbouring planes, too.
template <class T, class A, class Fast, class Careful, int K, int D, int Many>
class FlatPlanes {
  static constexpr int L = kLanes<A>, kReach = K / 2 * D, kMasks = (Many > 1 ? 2 : 1) * (K - 1);
  static_assert(kReach <= L, "a window reaches into the next vector at most");
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  using Mask = LaneMask<A, L>;
  const Plan& p_;
  const i64 rows_, cols_, n_, blocks_;
  Mask* masks_;       // of each vector, for each tap but the one in the middle: those over w, then those over h
  A* divisor_;        // of each element
  bool even_ = true;  // whether they are all the same
  A* lifted_;         // the planes of an adjoint, divided
  const Part last_;

 public:
  FlatPlanes(const Plan& p, Arena& arena, bool needed = true)
      : p_(p),
        rows_(p.axis[1].n_in),
        cols_(p.axis[2].n_in),
        n_(needed ? Many * rows_ * cols_ : 0),
        blocks_(ceil_div(n_, L)),
        masks_(arena.take_array<Mask>(blocks_ * kMasks)),
        divisor_(arena.take_array<A>(divides() || lifts() ? blocks_ * L : 0)),
        lifted_(arena.take_array<A>(lifts() ? blocks_ * L : 0)),
        last_(inside<L>((blocks_ - 1) * L, n_)) {
    if (!arena.base || !n_) return;
    fill_masks();
    if (divides() || lifts()) fill_divisors();
  }
  void run(const T* x, T* y) const {
    if constexpr (kSame<Fast, Careful>) {  // sums
      if (lifts()) {
        lift(x);
        pool<Fast>(lifted_, y);
        return;
      }
    }
    if (pool<Fast>(x, y)) pool<Careful>(x, y);
  }

 private:
  bool divides() const { return p_.finish == Finish::divide; }
  bool lifts() const { return p_.lift == Lift::over_divisor; }
  void fill_masks() {
    for (i64 i = 0; i < blocks_ * kMasks; ++i) masks_[i] = Mask::all();
    for (int t = 0; t < K; ++t) {
      const i64 shift = (t - K / 2) * D;
      if (!shift) continue;
      const int mask = t - (t > K / 2);
      for (i64 r = 0; r < Many * rows_; ++r) {
        for (i64 c = shift < 0 ? 0 : higher(0, cols_ - shift); c < (shift < 0 ? lower(-shift, cols_) : cols_); ++c)
          clear(r * cols_ + c, mask);
        const i64 to = r % rows_ + shift;
        for (i64 c = 0; Many > 1 && (to < 0 || to >= rows_) && c < cols_; ++c) clear(r * cols_ + c, K - 1 + mask);
      }
    }
  }
  void clear(i64 at, int mask) { masks_[at / L * kMasks + mask].clear(at % L); }
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
    for (; to < divisor_ + blocks_ * L; ++to) *to = to[-rows_ * cols_];  // planes are alike
  }

  void lift(const T* x) const {
    const i64 each = even_ ? 0 : 1;
    const auto over_divisor = [&](V v, i64 i) { anypool::store(lifted_ + i, v / load<V>(divisor_ + each * i)); };
    const i64 last = (blocks_ - 1) * L;
    for (i64 i = 0; i < last; i += L) over_divisor(Memory::load(x + i), i);
    over_divisor(Memory::load_part(x + last, last_, V{}), last);
  }

  template <class Op>
  static ANYPOOL_INLINE V none() {
    return splat<V>(Op::identity().a);
  }
  // The vector at i, merged over the rows of the window.
  template <class Op, bool Edge, class From>
  ANYPOOL_INLINE V column(const From* x, i64 i, const Mask* masks, NaNs<A, L>& nan) const {
    using Memory = Lanes<From, A, L>;
    return merged_taps<Op, 0, K>([&](auto tap) {
      constexpr int t = decltype(tap)::value;
      const i64 at = i + (t - K / 2) * D * cols_;
      V v = Edge ? Memory::load_part(x + at, Part(inside<L>(at, n_)), none<Op>()) : Memory::load(x + at);
      if constexpr (t == K / 2) {
        if constexpr (Op::kNumbersOnly) nan.see(v, v);
      } else if constexpr (Many > 1) {
        v = masks[K - 1 + t - (t > K / 2)].choose(v, none<Op>());
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
  bool pool(const From* x, T* y) const {
    using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
    NaNs<A, L> nan;
    const i64 reach = kReach * cols_;
    const Mask* masks = masks_;
    const A* divisor = divides() ? divisor_ : nullptr;
    const i64 each = even_ ? 0 : 1;
    V before = none<Op>(), here = column<Op, true>(x, 0, masks, nan);
    i64 i = 0;
    const auto step = [&](V next) {
      const V v = over_w<Op>(before, here, next, masks);
      before = here, here = next, masks += kMasks;
      return divisor ? v / load<V>(divisor + each * i) : v;
    };
    const auto next = [&](auto edge) { return column<Op, decltype(edge)::value>(x, i + L, masks + kMasks, nan); };
    for (; i + L < reach && i + L < n_; i += L) Memory::store(y + i, step(next(Tap<true>{})));
    for (; i + 2 * L + reach <= n_; i += L) Memory::store(y + i, step(next(Tap<false>{})));
    for (; i + L < n_; i += L) Memory::store(y + i, step(next(Tap<true>{})));
    Memory::store_part(y + i, step(none<Op>()), last_);
    return nan.any();
  }
};

// All planes of a plan: tiny ones, whose first and last vectors would be most of them, many at a time.
template <class T, class A, class Fast, class Careful, int K, int D>
class AllFlatPlanes {
  static constexpr int kMany = 16;
  static constexpr i64 kTiny = 256;  // elements
  const Plan& p_;
  const i64 n_;
  const bool dense_;
  const FlatPlanes<T, A, Fast, Careful, K, D, 1> one_;
  const FlatPlanes<T, A, Fast, Careful, K, D, kMany> many_;
  AroundCaches around_;

 public:
  AllFlatPlanes(const Plan& p, Arena& arena)
      : p_(p),
        n_(p.axis[1].n_in * p.axis[2].n_in),
        dense_(n_ <= kTiny && p.n_outer == 1 && p.x_outer[0] == n_ && p.y_outer[0] == n_),
        one_(p, arena),
        many_(p, arena, dense_),
        around_(AroundCaches::gain(p, &Axis::n_out), (dense_ ? kMany : 1) * n_ * i64(sizeof(T)), arena) {}
  void run(const Buffers& b, i64 begin, i64 end) {
    for (i64 plane = begin; plane < end;) {
      const T* x = static_cast<const T*>(b.x) + outer_offset(p_, p_.x_outer, plane);
      T* y = static_cast<T*>(b.y) + outer_offset(p_, p_.y_outer, plane);
      const bool many = dense_ && plane + kMany <= end;
      const i64 planes = many ? kMany : 1;
      T* to = reinterpret_cast<T*>(around_.room(reinterpret_cast<char*>(y)));
      many ? many_.run(x, to) : one_.run(x, to);
      around_.wrote(planes * n_ * i64(sizeof(T)));
      plane += planes;
    }
    around_.finish();
  }
};

template <class T, class A, class Fast, class Careful, int K, int D>
PlanesRun flat_run() {
  if constexpr (K / 2 * D <= kLanes<A>) return planes_run<AllFlatPlanes<T, A, Fast, Careful, K, D>>();
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
