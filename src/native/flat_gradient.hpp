// The gradient of a max or min over windows that leave every axis its size (stride 1, as much padding as that takes), of
// arrays without gaps. What an element was seen through by tap t lies the same distance away for all elements, so the
// whole array is one long row: what lies there beyond the end of a row or of a plane has its winner elsewhere, and no code
// in common. The order of the sums is that of `SelectBackward`.
#pragma once
#include "around.hpp"
#include "planes_run.hpp"
#include "won.hpp"

namespace anypool {
namespace {

template <class T, class A>
class FlatGradient {
  static constexpr int L = kLanes<A>, kMany = 4;
  static constexpr i64 kPiece = 2048 / i64(sizeof(T));  // elements written at once
  const Plan& p_;
  const i64 plane_, n_;  // elements
  const int taps_;
  SeenAt* seen_;   // through the last tap first: outputs in ascending order
  i64 reach_ = 0;  // elements from the ends of the array within which an output may be missing
  AroundCaches around_;

 public:
  // More of them are dearer to look for than to put where they belong.
  static constexpr i64 kMostTaps = 4 * L;
  FlatGradient(const Plan& p, Arena& arena)
      : p_(p),
        plane_(p.axis[0].n_in * p.axis[1].n_in * p.axis[2].n_in * p.inner),
        n_(plane_ * outer_size(p)),
        taps_(int(p.axis[0].kernel * p.axis[1].kernel * p.axis[2].kernel)),
        seen_(arena.take_array<SeenAt>(taps_)),
        around_(AroundCaches::gain(p, &Axis::n_in), kPiece * i64(sizeof(T)), arena) {
    if (!arena.base) return;
    for (int code = 0; code < taps_; ++code) {
      i64 rest = code, back = 0, step = p.inner;
      for (int a = 2; a >= 0; --a) {
        const Axis& axis = p.axis[a];
        back += (rest % axis.kernel * axis.dilation - axis.pad) * step;
        rest /= axis.kernel, step *= axis.n_in;
      }
      seen_[taps_ - 1 - code] = {-back, uint8_t(code)};
      reach_ = higher(reach_, back);  // taps lie as far to one side as to the other
    }
  }

  // Of each plane so many tasks.
  static i64 tasks(const Plan& p) { return ceil_div(16, outer_size(p)); }
  void run(const Buffers& b, i64 begin, i64 end) {
    const T* grad = static_cast<const T*>(b.x);
    const uint8_t* code = static_cast<const uint8_t*>(b.code);
    T* y = static_cast<T*>(b.y);
    const i64 last = start_of(end);
    for (i64 i = start_of(begin); i < last; i += kPiece) {
      const i64 n = lower(kPiece, last - i);
      T* to = reinterpret_cast<T*>(around_.room(reinterpret_cast<char*>(y + i)));
      piece(grad, code, to, i, n);
      around_.wrote(n * i64(sizeof(T)));
    }
    around_.finish();
  }

 private:
  i64 start_of(i64 task) const {
    const i64 each = tasks(p_);
    return task / each * plane_ + task % each * plane_ / each;
  }
  // Elements [i, i + n), to `to`.
  void piece(const T* grad, const uint8_t* code, T* to, i64 i, i64 n) const {
    const i64 end = i + n;
    while (i < end) {
      const bool inner = i >= reach_;
      if (inner && i + kMany * L <= end && i + kMany * L + reach_ <= n_) {
        Won<T, A>::template vectors<kMany>(grad + i, code + i, seen_, taps_, to);
        i += kMany * L, to += kMany * L;
        continue;
      }
      const i64 inputs = lower(L, end - i);
      if (inner && inputs == L && i + L + reach_ <= n_)
        Won<T, A>::template vectors<1>(grad + i, code + i, seen_, taps_, to);
      else
        Won<T, A>::part(grad + i, code + i, seen_, taps_, to, inputs, [&](i64 at) { return inside<L>(i + at, n_); });
      i += inputs, to += inputs;
    }
  }
};

// For the plan of a backward pass, in which the axes are those of the forward one; none if its windows are others.
inline PlanesRun flat_gradient_of(const Plan& p) {
  const i64* const strides[] = {p.x_stride, p.y_stride, p.code_stride};
  const i64* const outer[] = {p.x_outer, p.y_outer, p.code_outer};
  i64 step = p.inner;
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = p.axis[a];
    if (axis.kind != AxisKind::sliding || axis.stride != 1 || axis.n_out != axis.n_in || axis.kernel % 2 == 0 ||
        axis.pad != axis.kernel / 2 * axis.dilation)
      return {};
    for (const i64* s : strides)
      if (axis.n_in > 1 && s[a] != step) return {};
    step *= axis.n_in;
  }
  for (const i64* s : strides)
    if (p.inner > 1 && s[3] != 1) return {};
  for (const i64* s : outer)
    if (p.n_outer > 1 || (p.n_outer == 1 && p.outer[0] > 1 && s[0] != step)) return {};
  if (p.code != Code::u8 || p.out != p.in) return {};
  const i64 taps = p.axis[0].kernel * p.axis[1].kernel * p.axis[2].kernel;
  return with_float_types<PlanesRun>(p, [&](auto t, auto a) {
    using Gradient = FlatGradient<typename decltype(t)::type, typename decltype(a)::type>;
    if (taps > Gradient::kMostTaps) return PlanesRun{};
    PlanesRun found = planes_run<Gradient>();
    found.tasks = Gradient::tasks(p);
    return found;
  });
}

}  // namespace
}  // namespace anypool
