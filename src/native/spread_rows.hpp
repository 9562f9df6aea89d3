// The adjoint of sums and means over windows of 2 or 3 that lie 2 apart, on h and on w: what an output got is spread over
// the inputs that it saw. In registers, two columns at a time; each row of the outputs is loaded and divided once.
#pragma once
#include "around.hpp"
#include "output_row.hpp"

namespace anypool {
namespace {

class SpreadRows {
  const Plan& p_;
  const Tile& t_;
  InputRows& rows_;
  const bool used_;
  const i64 first_, from_,
      pairs_;      // the column of the line that comes first, and of that pair; how many pairs there are
  char* line_[2];  // loaded rows, by their last bit, with a column before the first and a vector behind
  i64 loaded_[2] = {-1, -1};
  AroundCaches around_;

 public:
  SpreadRows(const Plan& plan, const Tile& tile, InputRows& rows, Arena& arena)
      : p_(plan),
        t_(tile),
        rows_(rows),
        used_(applies(plan)),
        first_(plan.axis[2].pad / 2),
        from_(plan.axis[2].pad % 2),
        pairs_((plan.axis[2].n_out + from_ + 1) / 2),
        around_(used_ && in_place() && AroundCaches::gain(plan, &Axis::n_out), plan.axis[2].n_out * size_of(plan.out),
                arena) {
    if (!used_) return;
    const i64 n = pairs_ + 1 + ANYPOOL_VECTOR_BYTES / size_of(p_.acc);
    for (char*& line : line_) {
      line = arena.take(n * size_of(p_.acc));
      if (arena.base)
        p_.acc == DType::f32 ? clear(reinterpret_cast<float*>(line), n) : clear(reinterpret_cast<double*>(line), n);
    }
  }
  static bool applies(const Plan& p) {
    const Axis& d = p.axis[0];
    for (int a = 1; a < 3; ++a) {
      const Axis& axis = p.axis[a];
      if (axis.kind != AxisKind::transposed || axis.stride != 2 || (axis.kernel != 2 && axis.kernel != 3) ||
          axis.dilation != 1)
        return false;
    }
    return d.n_in == 1 && d.n_out == 1 && d.kernel == 1 && p.inner == 1 && p.merge == Merge::sum &&
           (p.acc == DType::f32 || p.acc == DType::f64) && p.tile_w >= p.axis[2].n_out;
  }
  explicit operator bool() const { return used_; }
  // Whether rows are spread to where they belong; else they have to be finished.
  bool in_place() const {
    const bool row = p_.y_stride[2] == 1 || p_.axis[2].n_out == 1;
    return row && p_.out == p_.acc && p_.finish == Finish::none;
  }

  // Output rows [oh0, oh1) of the tile that has been placed.
  void run(OutputRow& output, i64 oh0, i64 oh1) {
    loaded_[0] = loaded_[1] = -1;
    p_.acc == DType::f32 ? rows<float>(output, oh0, oh1) : rows<double>(output, oh0, oh1);
    around_.finish();
  }

 private:
  template <class T>
  static void clear(T* line, i64 n) {
    for (i64 i = 0; i < n; ++i) line[i] = T(-0.0);  // which changes no sum
  }
  template <class T>
  void rows(OutputRow& output, i64 oh0, i64 oh1) {
    i64 pitch;
    for (i64 oh = oh0; oh < oh1; ++oh) {
      const Axis& h = p_.axis[1];
      const i64 at = (oh + h.pad) / 2;
      const T* a = line<T>(at);
      const T* b = h.kernel == 3 && (oh + h.pad) % 2 == 0 ? line<T>(at - 1) : nullptr;
      T* to = reinterpret_cast<T*>(around_.room(output.target(oh, pitch).a));
      if (!a && !b)
        __builtin_memset(to, 0, size_t(p_.axis[2].n_out) * sizeof(T));
      else if (a && b)
        p_.axis[2].kernel == 3 ? spread<T, 3, true>(to, a, b) : spread<T, 2, true>(to, a, b);
      else
        p_.axis[2].kernel == 3 ? spread<T, 3, false>(to, a ? a : b, nullptr)
                               : spread<T, 2, false>(to, a ? a : b, nullptr);
      around_.wrote(p_.axis[2].n_out * i64(sizeof(T)));
      if (!in_place()) output.finish(oh);
    }
  }
  // Row `at` from the first pair's column on, or null if there is none.
  template <class T>
  const T* line(i64 at) {
    if (at < 0 || at >= p_.axis[1].n_in) return nullptr;
    T* const first = reinterpret_cast<T*>(line_[at % 2]) + 1;
    if (loaded_[at % 2] != at) {
      loaded_[at % 2] = at;
      T* const to = first + (t_.w_lo - first_);
      const Row into{reinterpret_cast<char*>(to), nullptr};
      Source source;
      rows_.row(0, at, 0, source, &into);
      if (rows_.direct()) __builtin_memcpy(to, source.a, size_t(t_.columns()) * sizeof(T));
    }
    return first;
  }
  // What L pairs of columns get, of one row or the sum of two: the first one of pair i from outputs i and, of three,
  // i - 1; the other one from output i.
  template <class T, int K, bool Two>
  struct Pairs {
    static constexpr int L = kLanes<T>;
    using V = Vec<T, L>;
    V low, high;
    ANYPOOL_INLINE Pairs(const T* a, const T* b, i64 i) {
      V here = load<V>(a + i);
      if constexpr (Two) here += load<V>(b + i);
      V both = here;
      if constexpr (K == 3) {
        V before = load<V>(a + i - 1);
        if constexpr (Two) before += load<V>(b + i - 1);
        both += before;
      }
      both += T(0), here += T(0);  // an input that no window saw: 0.0, not -0.0
      low = Zip<T, L>::low(both, here), high = Zip<T, L>::high(both, here);
    }
    ANYPOOL_INLINE void store_to(T* y) const { store(y, low), store(y + L, high); }
  };
  // The last vector overlaps the one before; the last column of all may be half a pair.
  template <class T, int K, bool Two>
  void spread(T* y, const T* a, const T* b) const {
    using P = Pairs<T, K, Two>;
    constexpr i64 L = P::L;
    const i64 n = p_.axis[2].n_out, from = from_, whole = (n + from) / 2;
    T line[2 * L + 1] = {};
    P(a, b, 0).store_to(line);
    if (n < 2 * L) return void(__builtin_memcpy(y, line + from, size_t(n) * sizeof(T)));
    __builtin_memcpy(y, line + from, 2 * L * sizeof(T));
    i64 i = L;
    for (; i + L <= whole; i += L) P(a, b, i).store_to(y + 2 * i - from);
    if (i < whole) P(a, b, whole - L).store_to(y + 2 * (whole - L) - from);
    if (2 * whole - from < n) y[n - 1] = P(a, b, whole).low[0];
  }
};

}  // namespace
}  // namespace anypool
