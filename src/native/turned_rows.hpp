// Output rows whose windows over w are merged one after the other, because they differ or lie far apart. Several rows that
// have been merged over d and h are turned: column w of all of them becomes a row, and a window is merged for all at once.
#pragma once
#include "horizontal.hpp"
#include "transpose.hpp"

namespace anypool {
namespace {

class TurnedRows {
  static constexpr i64 kRows = 16, kBytes = 128 << 10;  // at once; of the rows that are turned
  const Plan& p_;
  const Kernel& k_;
  const Tile& t_;
  const i64 cols_, outputs_;
  const bool used_;
  TreeMerge tree_;
  Row lines_, columns_, results_, rows_;
  i64 n_ = 0;

 public:
  struct Place {
    i64 outer, od, oh;
  };

 private:
  Place place_[kRows];

 public:
  TurnedRows(const Plan& plan, const Kernel& kernel, const Tile& tile, Arena& arena, i64 cols)
      : p_(plan),
        k_(kernel),
        t_(tile),
        cols_(cols),
        outputs_(plan.axis[2].n_out),
        used_(gains(plan, kernel)),
        tree_(kernel, arena, used_ ? plan.axis[2].kernel : 1, kRows) {
    lines_ = take(arena, cols_), columns_ = take(arena, cols_);
    results_ = take(arena, outputs_), rows_ = take(arena, outputs_);
  }
  // Whether a plan has such windows, and rows enough. (A few columns far apart are sooner merged where they lie.)
  static bool gains(const Plan& p, const Kernel& k) {
    const Axis& w = p.axis[2];
    if (HorizontalMerge::way_of(p) != Way::each || p.inner != 1 || p.axis[1].kind == AxisKind::transposed ||
        p.tile_w < w.n_out)
      return false;
    const i64 rows = outer_size(p) * p.axis[0].n_out * p.axis[1].n_out;
    const i64 cols = HorizontalMerge::columns_of(p);
    return rows >= kRows && ceil_div(cols, 2 * w.n_out) <= w.kernel &&
           (cols + w.n_out) * kRows * (k.a_bytes + k.b_bytes) <= kBytes;
  }
  explicit operator bool() const { return used_; }
  bool any() const { return n_ > 0; }
  bool full() const { return n_ == kRows; }

  // Where the tile's columns of output row oh go, merged over d and h.
  Row next(i64 oh) {
    place_[n_] = {t_.outer, t_.od, oh};
    return advance(k_, lines_, n_++ * cols_);
  }
  // f(where the row belongs, its states) for each of those there are, in the order in which they came.
  template <class F>
  void merge(F&& f) {
    for (i64 i = n_; i < kRows; ++i) {  // lanes that nobody asks for: any numbers, but numbers
      __builtin_memcpy(lines_.a + i * cols_ * k_.a_bytes, lines_.a, size_t(cols_ * k_.a_bytes));
      if (k_.b_bytes) __builtin_memcpy(lines_.b + i * cols_ * k_.b_bytes, lines_.b, size_t(cols_ * k_.b_bytes));
    }
    turn(columns_, kRows, lines_, cols_, kRows, cols_);
    for (i64 o = 0; o < outputs_; ++o) window(advance(k_, results_, o * kRows), window_of(p_.axis[2], o));
    turn(rows_, outputs_, results_, kRows, outputs_, n_);
    for (i64 i = 0; i < n_; ++i) f(place_[i], advance(k_, rows_, i * outputs_));
    n_ = 0;
  }

 private:
  Row take(Arena& arena, i64 n) const { return used_ ? take_row(arena, k_, n * kRows) : Row{}; }
  void turn(const Row& to, i64 to_pitch, const Row& from, i64 from_pitch, i64 rows, i64 cols) const {
    transpose(k_.a_bytes, to.a, to_pitch, from.a, from_pitch, rows, cols);
    if (k_.b_bytes) transpose(k_.b_bytes, to.b, to_pitch, from.b, from_pitch, rows, cols);
  }
  void window(const Row& to, const Window& v) const {
    if (v.lo == v.hi) return k_.identity(to, 0, kRows);
    Source s;
    const auto tap = [&](i64 t, Source& at) { set_at(at, k_, columns_, (v.at(t) - t_.base) * kRows, t); };
    if (k_.b_bytes || v.taps <= kLeaf || v.lo > 0 || v.hi < v.taps)
      return tree_.merge({to, kRows}, 0, v.taps, v.lo, v.hi, {1, kRows}, tap);
    tap(0, s);
    k_.merge_tall(to, s, v.step * kRows * k_.a_bytes, 0, v.taps, kRows);
  }
};

}  // namespace
}  // namespace anypool
