// The gradient of sums and means over whole planes: every element of a plane gets what its only output got.
#pragma once
#include "around.hpp"
#include "lanes.hpp"
#include "planes_run.hpp"

namespace anypool {
namespace {

template <class T, class A>
class FilledPlanes {
  static constexpr int L = ANYPOOL_VECTOR_BYTES / int(sizeof(T));
  static constexpr i64 kPiece = 2048 / i64(sizeof(T));  // elements written at once
  const Plan& p_;
  const i64 elements_;  // of a plane
  A divisor_ = 1;
  AroundCaches around_;

 public:
  FilledPlanes(const Plan& p, Arena& arena)
      : p_(p),
        elements_(p.axis[0].n_out * p.axis[1].n_out * p.axis[2].n_out),
        around_(AroundCaches::gain(p, &Axis::n_out), lower(elements_, kPiece) * i64(sizeof(T)), arena) {
    if (p.lift == Lift::none) return;
    double by = p.divisor_value;
    if (p.divisor != Divisor::constant) {
      by = 1;
      for (const Axis& a : p.forward) by *= double(divisor_of(a, 0, p.divisor));
    }
    divisor_ = A(by);
  }

  void run(const Buffers& buffers, i64 begin, i64 end) {
    for (i64 plane = begin; plane < end; ++plane) {
      const T* x = static_cast<const T*>(buffers.x) + outer_offset(p_, p_.x_outer, plane);
      T* y = static_cast<T*>(buffers.y) + outer_offset(p_, p_.y_outer, plane);
      T value;
      narrow(value, A(widen(*x)) / divisor_ + A(0));  // 0.0, not -0.0, as other gradients
      for (i64 i = 0; i < elements_; i += kPiece) {
        const i64 n = lower(kPiece, elements_ - i);
        fill(reinterpret_cast<T*>(around_.room(reinterpret_cast<char*>(y + i))), value, n);
        around_.wrote(n * i64(sizeof(T)));
      }
    }
    around_.finish();
  }

 private:
  static ANYPOOL_INLINE void fill(T* y, T value, i64 n) {
    if (n < L) {
      for (i64 i = 0; i < n; ++i) y[i] = value;
      return;
    }
    T some[L];
    for (T& one : some) one = value;
    const auto all = load<Vec<uint8_t, ANYPOOL_VECTOR_BYTES>>(some);
    for (i64 i = 0; i + L <= n; i += L) store(y + i, all);
    store(y + n - L, all);
  }
};

// For a plan whose planes have one output each, and are dense; or nothing.
inline PlanesRun filled_run_of(const Plan& p) {
  if (!p.adjoint || p.merge != Merge::sum || p.inner != 1 || p.out != p.in || p.code != Code::none ||
      p.finish != Finish::none || (p.lift != Lift::none && p.lift != Lift::over_divisor))
    return {};
  i64 step = 1;
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = p.axis[a];
    if (axis.n_in != 1 || (axis.n_out > 1 && p.y_stride[a] != step)) return {};
    for (i64 o = 0; o < axis.n_out; ++o) {
      const Window w = window_of(axis, o);
      if (w.hi - w.lo != 1) return {};
    }
    step *= axis.n_out;
  }
  return with_float_types<PlanesRun>(p, [](auto t, auto a) {
    return planes_run<FilledPlanes<typename decltype(t)::type, typename decltype(a)::type>>();
  });
}

}  // namespace
}  // namespace anypool
