// Where windows lie, on one axis, and elements in memory. Plain integer arithmetic, used by the host side and by every
// kernel.
#pragma once
#include "plan.hpp"

namespace anypool {
namespace {

constexpr i64 kNarrow = 6;  // taps on an axis up to which a window shares no merges with its neighbours

struct Window {
  i64 start;  // position of tap 0, maybe outside the data
  i64 step;   // between taps
  i64 taps;   // taps of the whole window
  i64 lo;     // taps lo <= t < hi lie inside the data
  i64 hi;
  i64 at(i64 t) const { return start + t * step; }
};

inline i64 floor_div(i64 a, i64 b) { return a / b - (a % b < 0); }  // b > 0
inline i64 ceil_div(i64 a, i64 b) { return a / b + (a % b > 0); }
inline i64 floor_mod(i64 a, i64 b) { return a - floor_div(a, b) * b; }

inline Window clip(i64 start, i64 step, i64 taps, i64 n_in) {
  const bool dense = step == 1;  // spares the divisions: rows are short, and this runs for each
  i64 lo = start < 0 ? (dense ? -start : ceil_div(-start, step)) : 0;
  i64 hi = start >= n_in ? 0 : dense ? n_in - start : (n_in - 1 - start) / step + 1;
  if (hi > taps) hi = taps;
  if (lo > hi) lo = hi;
  return {start, step, taps, lo, hi};
}

// Of the outputs of a sliding axis that saw the same input, how far each is from the one before.
inline i64 outputs_apart(const Axis& a) {
  i64 divisor = a.dilation;  // the greatest of dilation and stride
  for (i64 r = a.stride; r;) {
    const i64 t = divisor % r;
    divisor = r, r = t;
  }
  return a.dilation / divisor;
}
// The outputs o of a sliding axis that saw input j: (j + pad - o * stride) = t * dilation for a tap t.
inline Window transposed_window(const Axis& a, i64 j) {
  i64 first = ceil_div(j + a.pad - (a.kernel - 1) * a.dilation, a.stride);
  i64 last = floor_div(j + a.pad, a.stride);
  if (a.dilation == 1) return clip(first, 1, last - first + 1, a.n_in);
  const i64 step = outputs_apart(a);
  for (i64 o = first; o < first + step; ++o)
    if (o <= last && floor_mod(j + a.pad - o * a.stride, a.dilation) == 0)
      return clip(o, step, (last - o) / step + 1, a.n_in);
  return {first, step, 0, 0, 0};
}

inline Window window_of(const Axis& a, i64 o) {
  switch (a.kind) {
    case AxisKind::sliding: return clip(o * a.stride - a.pad, a.dilation, a.kernel, a.n_in);
    case AxisKind::table: return {a.first[o], a.dilation, a.count[o], 0, a.count[o]};
    default: return transposed_window(a, o);
  }
}

// How many elements window o divides by on this axis.
inline i64 divisor_of(const Axis& a, i64 o, Divisor rule) {
  Window w = window_of(a, o);
  if (rule == Divisor::valid || a.kind != AxisKind::sliding) return w.hi - w.lo;
  i64 end = a.n_in + a.pad_hi;  // ceil_mode may let the last window hang over the padding, too: that part never counts
  i64 n = w.start >= end ? 0 : w.step == 1 ? end - w.start : (end - 1 - w.start) / w.step + 1;
  return n < w.taps ? n : w.taps;
}

inline DType type_of(Code c) {
  return c == Code::u8 ? DType::u8 : c == Code::u16 ? DType::u16 : c == Code::i32 ? DType::i32 : DType::i64;
}

inline i64 size_of(DType t) {
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
// How many elements the outer axes have; and an array whose d, h and w are of those sizes.
inline i64 outer_size(const Plan& p) {
  i64 n = 1;
  for (int a = 0; a < p.n_outer; ++a) n *= p.outer[a];
  return n;
}
inline i64 elements_of(const Plan& p, i64 Axis::* size) {
  i64 n = outer_size(p) * p.inner;
  for (const Axis& a : p.axis) n *= a.*size;
  return n;
}
// Where the elements of the input lie, counted from the first one of all axes.
struct Extent {
  i64 begin, end;
};
inline Extent extent_of(const Plan& p) {
  Extent e{0, 1};
  const auto reach = [&](i64 n, i64 stride) { (stride < 0 ? e.begin : e.end) += (n - 1) * stride; };
  for (int a = 0; a < p.n_outer; ++a) reach(p.outer[a], p.x_outer[a]);
  for (int a = 0; a < 3; ++a) reach(p.axis[a].n_in, p.x_stride[a]);
  reach(p.inner, p.x_stride[3]);
  return e;
}
// Where element number `outer` of the outer axes begins.
inline i64 outer_offset(const Plan& p, const i64* strides, i64 outer) {
  i64 offset = 0;
  for (int a = p.n_outer - 1; a > 0; --a) {
    offset += outer % p.outer[a] * strides[a];
    outer /= p.outer[a];
  }
  return p.n_outer ? offset + outer * strides[0] : 0;
}

inline i64 round_up(i64 n, i64 to) { return (n + to - 1) / to * to; }
inline i64 lower(i64 a, i64 b) { return a < b ? a : b; }
inline i64 higher(i64 a, i64 b) { return a > b ? a : b; }

}  // namespace
}  // namespace anypool
