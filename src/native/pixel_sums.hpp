// Sums over few rows and columns where channels lie innermost, and what is summed must be looked for or lifted first: the
// adjoints of sums and means, and lp. Each row is loaded and lifted once; each pixel of the result adds up vectors of
// channels in registers.
#pragma once
#include "around.hpp"
#include "output_row.hpp"

namespace anypool {
namespace {

class PixelSums {
  static constexpr i64 kMost = 3;  // taps of a row or column: the tree, too, adds so few one after the other
  struct Columns {                 // that a pixel of the result is the sum of
    i64 first, n;
  };
  const Plan& p_;
  const Tile& t_;
  InputRows& rows_;
  const bool used_;
  char* line_[kMost];  // loaded rows, by their number
  i64 loaded_[kMost];
  Columns* columns_ = nullptr;  // of the tile that begins here
  i64 columns_from_ = -1;
  AroundCaches around_;

 public:
  // n: elements of what a tile sees of a row.
  PixelSums(const Plan& plan, const Tile& tile, InputRows& rows, Arena& arena, i64 n, bool wanted)
      : p_(plan),
        t_(tile),
        rows_(rows),
        used_(wanted && applies(plan)),
        around_(used_ && in_place() && plan.tile_w >= plan.axis[2].n_out && in_one_piece(plan, plan.y_stride) &&
                    AroundCaches::gain(plan, &Axis::n_out),
                plan.axis[2].n_out * plan.inner * size_of(plan.out), arena) {
    if (!used_) return;
    for (char*& line : line_) line = arena.take(n * size_of(p_.acc));
    columns_ = arena.take_array<Columns>(lower(p_.tile_w, p_.axis[2].n_out));
  }
  static bool applies(const Plan& p) {
    const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
    return d.n_in == 1 && d.n_out == 1 && d.kernel == 1 && p.inner > 1 && p.merge == Merge::sum &&
           (p.acc == DType::f32 || p.acc == DType::f64) && h.dilation == 1 && w.dilation == 1 &&
           most_taps(h) <= kMost && most_taps(w) <= kMost;
  }
  explicit operator bool() const { return used_; }
  // Whether sums are the result, where it belongs; else they have to be finished.
  bool in_place() const { return p_.out == p_.acc && p_.finish == Finish::none && p_.y_stride[3] == 1; }

  // Output rows [oh0, oh1) of the tile that has been placed.
  void run(OutputRow& output, i64 oh0, i64 oh1) {
    for (i64& row : loaded_) row = -1;
    place_columns();
    p_.acc == DType::f32 ? rows<float>(output, oh0, oh1) : rows<double>(output, oh0, oh1);
    around_.finish();
  }

 private:
  void place_columns() {
    if (t_.ow0 == columns_from_) return;
    columns_from_ = t_.ow0;
    for (i64 o = t_.ow0; o < t_.ow1; ++o) {
      const Window window = window_of(p_.axis[2], o);
      columns_[o - t_.ow0] = {window.at(window.lo), window.hi - window.lo};
    }
  }
  static i64 most_taps(const Axis& a) {
    return a.kind == AxisKind::transposed ? ceil_div(a.kernel, a.stride) : a.kernel;
  }
  template <class T>
  void rows(OutputRow& output, i64 oh0, i64 oh1) {
    for (i64 oh = oh0; oh < oh1; ++oh) {
      const Window window = window_of(p_.axis[1], oh);
      const T* rows[kMost];
      i64 n = 0, step = 0, pitch;
      for (i64 t = window.lo; t < window.hi; ++t) rows[n++] = row<T>(window.at(t), step);
      T* const to = reinterpret_cast<T*>(around_.room(output.target(oh, pitch).a));
      switch (n) {
        case 0: pixels<T, 0>(to, pitch, rows, step); break;
        case 1: pixels<T, 1>(to, pitch, rows, step); break;
        case 2: pixels<T, 2>(to, pitch, rows, step); break;
        default: pixels<T, 3>(to, pitch, rows, step);
      }
      around_.wrote(t_.outputs() * t_.cb * i64(sizeof(T)));
      if (!in_place()) output.finish(oh);
    }
  }
  // Row `at`, from the column on that would be the first, and how far apart its columns lie.
  template <class T>
  const T* row(i64 at, i64& step) {
    const int slot = int(at % kMost);
    const Row into{line_[slot], nullptr};
    Source source{into.a, nullptr, 0, t_.cb};
    if (rows_.direct() || loaded_[slot] != at) rows_.row(0, at, 0, source, &into);
    loaded_[slot] = at;
    step = source.pitch;
    return reinterpret_cast<const T*>(source.a) - t_.w_lo * step;
  }
  // A row of pixels, each the sum of R rows and of its columns.
  template <class T, int R>
  void pixels(T* y, i64 pitch, const T* const* rows, i64 step) const {
    for (i64 o = t_.ow0; o < t_.ow1; ++o, y += pitch) {
      const Columns c = columns_[o - t_.ow0];
      const T* from[R + 1];
      for (int r = 0; r < R; ++r) from[r] = rows[r] + c.first * step;
      channels<T, R, kLanes<T>>(y, from, R ? c.n : 0, step);
    }
  }
  // Channels fewer than a vector holds take a shorter vector; the last one overlaps the one before.
  template <class T, int R, int L>
  ANYPOOL_INLINE void channels(T* y, const T* const* from, i64 n, i64 step) const {
    constexpr int kMany = 4;
    const i64 cb = t_.cb;
    if (cb >= L) {
      i64 c = 0;
      for (; c + kMany * L <= cb; c += kMany * L) sum<T, R, L, kMany>(y, c, from, n, step);
      for (; c + L <= cb; c += L) sum<T, R, L, 1>(y, c, from, n, step);
      if (c < cb) sum<T, R, L, 1>(y, cb - L, from, n, step);
    } else if constexpr (L > 1) {
      channels<T, R, L / 2>(y, from, n, step);
    }
  }
  template <class T, int R, int L, int Many>
  ANYPOOL_INLINE void sum(T* y, i64 c, const T* const* from, i64 n, i64 step) const {
    using V = Vec<T, L>;
    const V zero = splat<V>(T(p_.adjoint ? 0.0 : -0.0));  // an input that no window saw: 0.0, not -0.0
    const auto column = [&](i64 at, int m) {
      V v = splat<V>(T(-0.0));  // which changes no sum
      for (int r = 0; r < R; ++r) v = r ? v + load<V>(from[r] + at + m * L) : load<V>(from[r] + at + m * L);
      return v;
    };
    V all[Many];
    for (int m = 0; m < Many; ++m) all[m] = n ? column(c, m) : splat<V>(T(-0.0));
    for (i64 i = 1; i < n; ++i)
      for (int m = 0; m < Many; ++m) all[m] = all[m] + column(c + i * step, m);
    for (int m = 0; m < Many; ++m) store(y + c + m * L, all[m] + zero);
  }
};

}  // namespace
}  // namespace anypool
