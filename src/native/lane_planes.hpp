// Maxima and minima over windows of stride 1 on small planes, as many planes at a time as a vector has lanes: the elements
// that have the same place in each of them are put side by side, so that columns are merged as rows are, and no lane moves
// but there and back. On each axis the inputs are cut into blocks of as many as a window has: a window is the end of one
// block and the beginning of the next, so that three merges do for any window (van Herk, Pattern Recognition Letters 13,
// 1992; Gil and Werman, IEEE PAMI 15, 1993). Merges never change sides: results are those of the engine to the bit.
#pragma once
#include "around.hpp"
#include "new_rows.hpp"
#include "planes_run.hpp"
#include "transpose.hpp"

namespace anypool {
namespace {

constexpr i64 kLanePlanes = 192 << 10;  // bytes of the planes and of what is half done, which the L2 cache should hold

template <class T, class A, class Fast, class Careful>
class LanePlanes {
  static constexpr int L = kLanes<A>, kLines = 4;
  using V = Vec<A, L>;
  const Plan& p_;
  const Axis &h_, &w_;
  const i64 n_in_, n_out_;
  const bool dense_;  // results of planes follow one another
  A *planes_, *merged_, *ends_;
  AroundCaches around_;

 public:
  LanePlanes(const Plan& p, Arena& arena)
      : p_(p),
        h_(p.axis[1]),
        w_(p.axis[2]),
        n_in_(h_.n_in * w_.n_in),
        n_out_(h_.n_out * w_.n_out),
        dense_(p.n_outer == 1 && p.y_outer[0] == n_out_),
        planes_(arena.take_array<A>(most_of(p) * L)),
        merged_(arena.take_array<A>(most_of(p) * L)),
        ends_(arena.take_array<A>(higher(lower(h_.kernel, h_.n_in), lower(w_.kernel, w_.n_in)) * kLines * L)),
        around_(dense_ && AroundCaches::gain(p, &Axis::n_out), L * n_out_ * i64(sizeof(T)), arena) {}
  // Elements of a plane, before or after it is merged, over one axis or both.
  static i64 most_of(const Plan& p) {
    const Axis &h = p.axis[1], &w = p.axis[2];
    return higher(h.n_in, h.n_out) * higher(w.n_in, w.n_out);
  }

  void run(const Buffers& b, i64 begin, i64 end) {
    const T* x[L];
    T* y[L];
    for (i64 first = begin; first < end; first += L) {
      const i64 n = lower(L, end - first);
      for (i64 i = 0; i < L; ++i) {  // lanes without a plane have the last one again
        const i64 plane = first + lower(i, n - 1);
        x[i] = static_cast<const T*>(b.x) + outer_offset(p_, p_.x_outer, plane);
        y[i] = static_cast<T*>(b.y) + outer_offset(p_, p_.y_outer, plane);
      }
      if (around_) {
        T* const to = reinterpret_cast<T*>(around_.room(reinterpret_cast<char*>(y[0])));
        for (i64 i = 0; i < n; ++i) y[i] = to + i * n_out_;
      }
      for (i64 i = 0; i < n; ++i) read_in_order(x[i], n_in_ * i64(sizeof(T)));
      side_by_side(x) ? pool<Careful>(y, n) : pool<Fast>(y, n);
      around_.wrote(n * n_out_ * i64(sizeof(T)));
    }
    around_.finish();
  }

 private:
  // Returns whether a NaN was there.
  bool side_by_side(const T* const* x) {
    using Memory = Lanes<T, A, L>;
    NaNs<A, L> nan;
    for (i64 e = 0; e < n_in_; e += L) {
      const i64 from = lower(e, n_in_ - L);
      V v[L];
      for (int i = 0; i < L; ++i) v[i] = Memory::load(x[i] + from);
      for (int i = 0; i < L; i += 2) nan.see(v[i], v[i + 1]);
      Swap<A, L, L / 2>::run(v);
      for (int i = 0; i < L; ++i) store(planes_ + (from + i) * L, v[i]);
    }
    return nan.any();
  }
  template <class Op>
  void pool(T* const* y, i64 n) {
    using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
    const i64 in = w_.n_in * L, out = w_.n_out * L;
    const auto as_it_is = [](const Axis& a) { return a.kernel == 1 && a.n_out == a.n_in; };
    A *from = planes_, *to = merged_;
    if (!as_it_is(h_)) {
      each_line<Op>(h_, w_.n_in, from, L, in, to, L, in);
      from = merged_, to = planes_;
    }
    if (!as_it_is(w_)) {
      each_line<Op>(w_, h_.n_out, from, in, L, to, out, L);
      from = to;
    }
    for (i64 e = 0; e < n_out_; e += L) {
      const i64 at = lower(e, n_out_ - L);
      V v[L];
      for (int i = 0; i < L; ++i) v[i] = load<V>(from + (at + i) * L);
      Swap<A, L, L / 2>::run(v);
      for (i64 i = 0; i < n; ++i) Memory::store(y[i] + at, v[i]);
    }
  }
  // Merges n lines, which begin x_line apart and whose elements are x_step apart.
  template <class Op>
  void each_line(const Axis& a, i64 n, const A* x, i64 x_line, i64 x_step, A* y, i64 y_line, i64 y_step) {
    i64 i = 0;
    for (; i + kLines <= n; i += kLines)
      lines<Op, kLines>(a, x + i * x_line, x_line, x_step, y + i * y_line, y_line, y_step);
    for (; i < n; ++i) lines<Op, 1>(a, x + i * x_line, x_line, x_step, y + i * y_line, y_line, y_step);
  }
  template <class Op, int N>
  void lines(const Axis& a, const A* x, i64 x_line, i64 x_step, A* y, i64 y_line, i64 y_step) {
    const V none = splat<V>(Op::identity().a);
    const i64 k = a.kernel;
    for (i64 b = 0; b - k < a.n_out - 1 - a.pad; b += k) {  // windows that begin in (b - k, b]
      const i64 first = higher(b - k + 1, -a.pad), last = lower(b, a.n_out - 1 - a.pad), lo = higher(first, 0);
      V end[N], v[N];
      for (int i = 0; i < N; ++i) v[i] = end[i] = none;
      for (i64 j = lower(b, a.n_in) - 1; j >= lo; --j)
        for (int i = 0; i < N; ++i) {
          end[i] = Op::template merged<L>(load<V>(x + i * x_line + j * x_step), end[i]);
          store(ends_ + ((j - lo) * N + i) * L, end[i]);
        }
      for (i64 j = b; j < lower(first + k - 1, a.n_in); ++j)
        for (int i = 0; i < N; ++i) v[i] = Op::template merged<L>(v[i], load<V>(x + i * x_line + j * x_step));
      A* to = y + (first + a.pad) * y_step;
      for (i64 s = first; s <= last; ++s, to += y_step) {
        if (s + k - 1 < a.n_in)
          for (int i = 0; i < N; ++i)
            v[i] = Op::template merged<L>(v[i], load<V>(x + i * x_line + (s + k - 1) * x_step));
        if (s == b || b == 0)
          for (int i = 0; i < N; ++i) store(to + i * y_line, v[i]);
        else
          for (int i = 0; i < N; ++i)
            store(to + i * y_line, Op::template merged<L>(load<V>(ends_ + ((s - lo) * N + i) * L), v[i]));
      }
    }
  }
};

// For a plan of such windows, else nothing.
inline PlanesRun lane_run_of(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const auto slides = [](const Axis& a) {
    return a.kind == AxisKind::sliding && a.stride == 1 && (a.dilation == 1 || a.kernel == 1) && a.pad < a.kernel &&
           a.n_in > 0 && a.n_out > 0 && (a.n_out - 1) - a.pad < a.n_in;
  };
  if (higher(h.kernel, w.kernel) <= kNarrow) return {};  // which other kernels merge in registers
  if (!slides(h) || !slides(w) || d.kind != AxisKind::sliding || d.n_in != 1 || d.n_out != 1 || d.kernel != 1)
    return {};
  const bool dense = p.x_stride[2] == 1 && p.y_stride[2] == 1 && (p.x_stride[1] == w.n_in || h.n_in == 1) &&
                     (p.y_stride[1] == w.n_out || h.n_out == 1);
  if (!dense || !selects_alone(p) ||
      higher(h.n_in, h.n_out) > kLanePlanes / (2 * ANYPOOL_VECTOR_BYTES) / higher(w.n_in, w.n_out))
    return {};
  return with_float_types<PlanesRun>(p, [&](auto t, auto a) -> PlanesRun {
    using T = typename decltype(t)::type;
    using A = typename decltype(a)::type;
    using Max = LanePlanes<T, A, SelectNumbers<A, true>, Select<A, true>>;
    using Min = LanePlanes<T, A, SelectNumbers<A, false>, Select<A, false>>;
    constexpr i64 L = kLanes<A>;
    if (h.n_in * w.n_in < L || h.n_out * w.n_out < L || outer_size(p) < L) return {};
    PlanesRun found = p.merge == Merge::max ? planes_run<Max>() : planes_run<Min>();
    found.way = "planes in lanes";
    return found;
  });
}

}  // namespace
}  // namespace anypool
