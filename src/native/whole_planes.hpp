// Windows as large as a plane, and planes that are not: global pooling. Each plane is read once, row by row in the order
// in which it lies, into as many registers as a row fills; the columns of as many planes as a vector has lanes are then
// merged together, by halving: n columns padded to a power of two with absent ones are the engine's own tree.
#pragma once
#include "fused.hpp"

namespace anypool {
namespace {

template <class T, class A, class Fast, class Careful, int C>
class WholePlanes {
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  const Plan& p_;
  const Buffers& buffers_;
  const i64 rows_, cols_;
  const Part last_;

 public:
  WholePlanes(const Plan& p, const Buffers& buffers)
      : p_(p), buffers_(buffers), rows_(p.axis[1].n_in), cols_(p.axis[2].n_in), last_(inside<L>((C - 1) * L, cols_)) {}

  void run(i64 begin, i64 end) const {
    for (i64 plane = begin; plane < end; plane += L) {
      const i64 n = lower(L, end - plane);
      NaNs<A, L> nan;
      V v = group<Fast>(plane, n, nan);
      if (nan.any()) v = group<Careful>(plane, n, nan);
      store(plane, n, v);
    }
  }

 private:
  template <class Op>
  static ANYPOOL_INLINE V neighbours(V l, V r) {
    return Op::template merged<L>(Unzip<A, L>::even(l, r), Unzip<A, L>::odd(l, r));
  }

  template <class Op>
  V group(i64 plane, i64 n, NaNs<A, L>& nan) const {
    V v[L];
    for (i64 i = 0; i < L; ++i)
      v[i] = i < n ? columns<Op>(reinterpret_cast<const T*>(buffers_.x) + outer_offset(p_, p_.x_outer, plane + i), nan)
                   : v[0];
    for (int left = L; left > 1; left /= 2)
      for (int i = 0; i < left / 2; ++i) v[i] = neighbours<Op>(v[2 * i], v[2 * i + 1]);
    return v[0];
  }

  // A row, into vectors; lanes behind its end are absent.
  static ANYPOOL_INLINE void load(const T* x, const Part& last, V* v) {
    for (int c = 0; c + 1 < C; ++c) v[c] = Memory::load(x + c * L);
    v[C - 1] = Memory::load_part(x + (C - 1) * L, last, splat<V>(Fast::identity().a));
  }
  // The columns of a plane, merged over its rows, and all of a vector's lanes that far.
  template <class Op>
  ANYPOOL_INLINE V columns(const T* x, NaNs<A, L>& nan) const {
    const Part last = last_;
    V open[40][C], v[C], w[C];
    int depth = 0;
    i64 t = 0;
    for (i64 pair = 0; t + 2 <= rows_; t += 2, ++pair) {
      const T* row = x + t * cols_;
      load(row, last, v);
      load(row + cols_, last, w);
      for (int c = 0; c < C; ++c) {
        if constexpr (Op::kNumbersOnly) nan.see(v[c], w[c]);
        v[c] = Op::template merged<L>(v[c], w[c]);
      }
      for (i64 carry = pair; carry & 1; carry >>= 1) {
        --depth;
        for (int c = 0; c < C; ++c) v[c] = Op::template merged<L>(open[depth][c], v[c]);
      }
      for (int c = 0; c < C; ++c) open[depth][c] = v[c];
      ++depth;
    }
    if (t < rows_) {
      load(x + t * cols_, last, v);
      if constexpr (Op::kNumbersOnly)
        for (int c = 0; c < C; ++c) nan.see(v[c], v[c]);
    } else {
      --depth;
      for (int c = 0; c < C; ++c) v[c] = open[depth][c];
    }
    while (depth-- > 0)
      for (int c = 0; c < C; ++c) v[c] = Op::template merged<L>(open[depth][c], v[c]);
    if constexpr (C == 1) return v[0];
    if constexpr (C == 2) return neighbours<Op>(v[0], v[1]);
    const V end = C == 4 ? v[3] : splat<V>(Fast::identity().a);
    return neighbours<Op>(neighbours<Op>(v[0], v[1]), neighbours<Op>(v[2], end));
  }

  void store(i64 plane, i64 n, V v) const {
    if (p_.finish == Finish::divide)
      v = v / splat<V>(A(p_.divisor == Divisor::constant ? p_.divisor_value : double(rows_) * double(cols_)));
    T* y = static_cast<T*>(buffers_.y);
    const i64 at = outer_offset(p_, p_.y_outer, plane);
    if (n == L && outer_offset(p_, p_.y_outer, plane + n - 1) == at + n - 1) return Memory::store(y + at, v);
    T one[L];
    Memory::store(one, v);
    for (i64 i = 0; i < n; ++i) y[outer_offset(p_, p_.y_outer, plane + i)] = one[i];
  }
};

using WholeRun = void (*)(const Plan&, const Buffers&, i64 begin, i64 end);

template <class T, class A, class Fast, class Careful>
WholeRun whole_run(i64 vectors) {
  switch (vectors) {
#define ANYPOOL_WHOLE(C)                                             \
  case C:                                                            \
    return [](const Plan& p, const Buffers& b, i64 begin, i64 end) { \
      WholePlanes<T, A, Fast, Careful, C>(p, b).run(begin, end);     \
    };
    ANYPOOL_WHOLE(1)
    ANYPOOL_WHOLE(2)
    ANYPOOL_WHOLE(3)
    ANYPOOL_WHOLE(4)
#undef ANYPOOL_WHOLE
  }
  return nullptr;
}
template <class T, class A>
WholeRun whole_run(const Plan& p) {
  const i64 vectors = ceil_div(p.axis[2].n_in, kLanes<A>);
  switch (p.merge) {
    case Merge::max: return whole_run<T, A, SelectNumbers<A, true>, Select<A, true>>(vectors);
    case Merge::min: return whole_run<T, A, SelectNumbers<A, false>, Select<A, false>>(vectors);
    default: return whole_run<T, A, Sum<A>, Sum<A>>(vectors);
  }
}

// What runs a plan that pools whole dense planes, or null.
inline WholeRun whole_run_of(const Plan& p) {
  for (const Axis& a : p.axis) {
    if (a.kind == AxisKind::transposed || a.n_out != 1 || a.n_in == 0) return nullptr;
    const Window w = window_of(a, 0);
    if (w.start != 0 || w.taps != a.n_in || (w.step != 1 && w.taps > 1)) return nullptr;
  }
  if (p.inner != 1 || p.axis[0].n_in != 1 || (p.axis[2].n_in > 1 && p.x_stride[2] != 1) ||
      (p.axis[1].n_in > 1 && p.x_stride[1] != p.axis[2].n_in) || p.lift != Lift::none || p.code != Code::none ||
      p.out != p.in || p.merge == Merge::scaled_sum || (p.finish != Finish::none && p.finish != Finish::divide))
    return nullptr;
  return with_float_types<WholeRun>(
      p, [&](auto t, auto a) { return whole_run<typename decltype(t)::type, typename decltype(a)::type>(p); });
}

}  // namespace
}  // namespace anypool
