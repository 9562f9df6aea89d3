// Merging over d and h: the rows of one output row become one line.
#pragma once
#include "input_rows.hpp"

namespace anypool {
namespace {

constexpr i64 kCacheBytes = 384 << 10;  // what kept rows may take of the L2 cache

// Wide windows that overlap: merges of 1, 2, 4 … taps are made once and shared, log2(kernel) merges a position.
inline bool doubles(const Axis& a) {
  const i64 levels = a.kernel > 1 ? 64 - __builtin_clzll(uint64_t(a.kernel)) : 1;
  return a.kind == AxisKind::sliding && a.kernel > kNarrow && a.n_out > 1 && a.stride * (levels + 1) < a.kernel;
}

class VerticalMerge {
  const Plan& p_;
  const Kernel& k_;
  const Tile& t_;
  InputRows rows_;
  TreeMerge over_d_, over_h_;
  Window wd_{};
  i64 row_bytes_, row_elements_;
  bool doubling_, cached_, plain_ = false, tall_ = false;
  i64 read_ = 0;  // rows of the plane before this one have been
  i64 ring_;      // rows kept, by position on h
  int levels_;    // and merges of 2, 4 … of them
  char* ring_base_;
  i64* tag_;
  Row merged_[16], spare_[2];
  int next_ = 0;

 public:
  VerticalMerge(const Plan& plan, const Kernel& kernel, const Tile& tile, Arena& arena, i64 n)
      : p_(plan),
        k_(kernel),
        t_(tile),
        rows_(plan, kernel, tile, arena, n),
        over_d_(kernel, arena, plan.axis[0].kernel, n),
        over_h_(kernel, arena, plan.axis[1].kernel, n),
        row_elements_(n) {
    const Axis& h = p_.axis[1];
    const i64 reach = (h.kernel - 1) * h.dilation + 1;
    row_bytes_ = round_up(n * k_.a_bytes + 64, 64) + round_up(n * k_.b_bytes + 64, 64);
    int levels = 0;
    while ((i64(2) << levels) <= h.kernel) ++levels;
    doubling_ = doubles(h) && (levels + 1) * reach * row_bytes_ <= 4 * kCacheBytes;
    levels_ = doubling_ ? levels : 0;
    const bool overlap = h.kind == AxisKind::transposed || h.stride < reach,
               work = !rows_.direct() || p_.axis[0].kernel > 1;
    cached_ = doubling_ || (overlap && work && reach * row_bytes_ <= kCacheBytes);
    ring_ = cached_ ? reach : 0;
    ring_base_ = arena.take((levels_ + 1) * ring_ * row_bytes_);
    tag_ = arena.take_array<i64>((levels_ + 1) * ring_);
    for (Row& r : merged_) r = p_.axis[0].kernel > 1 ? take_row(arena, k_, n) : Row{};
    for (Row& r : spare_) r = doubling_ ? take_row(arena, k_, n) : Row{};
  }

  InputRows& rows() { return rows_; }

  // After the tile's columns have changed.
  void place(const Buffers& buffers) {
    rows_.place(buffers);
    wd_ = window_of(p_.axis[0], t_.od);
    const bool direct = rows_.direct() && wd_.hi - wd_.lo == 1 && p_.axis[1].kind != AxisKind::transposed;
    plain_ = direct && p_.axis[1].kernel <= kLeaf;
    tall_ = direct && p_.axis[1].kernel > kLeaf;
    read_ = 0;
    for (i64 i = 0; i < (levels_ + 1) * ring_; ++i) tag_[i] = INT64_MIN;
  }

  // The tile's columns of output row oh.
  void merge(const Target& to, i64 oh) {
    const Window wh = window_of(p_.axis[1], oh);
    const Shape shape = rows_.shape();
    if (wh.lo == wh.hi || wd_.lo == wd_.hi) {
      return over_h_.put(to, &over_h_.identity(), 1, shape);
    }
    if (doubling_) return merge_doubled(to, wh.start);
    if ((plain_ || tall_) && wh.step == 1) {
      rows_.read(wd_.at(wd_.lo), higher(read_, wh.at(wh.lo)), wh.at(wh.hi - 1) + 1);
      read_ = wh.at(wh.hi - 1) + 1;
    }
    const i64 unit = p_.axis[2].kernel;
    if (plain_ && wh.lo == 0 && wh.hi == wh.taps) {  // most rows of most poolings: nothing to load, nothing is missing
      Source s[kLeaf];
      rows_.row(wd_.at(wd_.lo), wh.start, wd_.lo * unit * p_.axis[1].kernel, s[0]);
      const i64 step = wh.step * p_.x_stride[1] * k_.a_bytes;
      for (i64 t = 1; t < wh.taps; ++t) set(s[t], s[t - 1].a + step, nullptr, s[t - 1].add + unit, s[0].pitch);
      return over_h_.put(to, s, int(wh.taps), shape);
    }
    if (tall_ && !to.odd.a && wh.lo == 0 && wh.hi == wh.taps && shape.rows == 1) {
      Source first;
      rows_.row(wd_.at(wd_.lo), wh.start, wd_.lo * unit * p_.axis[1].kernel, first);
      return k_.merge_tall(to.row, first, wh.step * p_.x_stride[1] * k_.a_bytes, unit, wh.taps, shape.width);
    }
    over_h_.merge(to, 0, wh.taps, wh.lo, wh.hi, shape, [&](i64 t, Source& s) {
      plane_row(wh.at(t), s);
      s.add += t * unit;
    });
  }
  // The line where it lies, if there is nothing to merge.
  bool in_place(i64 oh, Source& line) {
    if (!rows_.direct() || p_.axis[0].kernel != 1 || p_.axis[1].kernel != 1 || rows_.shape().rows != 1) return false;
    const Window wh = window_of(p_.axis[1], oh);
    if (wh.lo == wh.hi || wd_.lo == wd_.hi) return false;  // an input that no window saw, in an adjoint
    rows_.row(wd_.start, wh.start, 0, line);
    return true;
  }

 private:
  Row ring_row(i64 slot) const {
    char* a = ring_base_ + slot * row_bytes_;
    return {a, k_.b_bytes ? a + round_up(row_elements_ * k_.a_bytes + 64, 64) : nullptr};
  }

  // Input row h, merged over the d window.
  void plane_row(i64 h, Source& s) {
    const i64 unit = p_.axis[1].kernel * p_.axis[2].kernel;
    const bool single = wd_.hi - wd_.lo == 1;
    if (single && (rows_.direct() || !cached_)) return rows_.row(wd_.at(wd_.lo), h, wd_.lo * unit, s);
    const i64 slot = cached_ ? h % ring_ : 0;
    const Row into = cached_ ? ring_row(slot) : merged_[next_++ % 16];
    const bool known = cached_ && tag_[slot] == h;
    if (cached_) tag_[slot] = h;
    if (single) {
      if (!known) return rows_.row(wd_.at(wd_.lo), h, wd_.lo * unit, s, &into);
      return set(s, into.a, k_.coded ? nullptr : into.b, wd_.lo * unit, t_.cb);
    }
    if (!known)
      over_d_.merge({into, rows_.shape().width}, 0, wd_.taps, wd_.lo, wd_.hi, rows_.shape(),
                    [&](i64 t, Source& row) { rows_.row(wd_.at(t), h, t * unit, row); });
    set(s, into.a, into.b, 0, t_.cb);
  }

  // The merge of 2^level rows from row h on; rows in the padding add nothing, and all of them give a null.
  void doubled_row(int level, i64 h, Source& out) {
    const Axis& a = p_.axis[1];
    if (level == 0) {
      set(out, nullptr, nullptr, 0, 0);
      if (h >= 0 && h < a.n_in) plane_row(h, out);
      return;
    }
    const i64 slot = level * ring_ + floor_mod(h, ring_);
    const Row into = ring_row(slot);
    if (tag_[slot] != h) {
      const i64 half = i64(1) << (level - 1);
      Source s[2];
      doubled_row(level - 1, h, s[0]);
      doubled_row(level - 1, h + half * a.dilation, s[1]);
      s[1].add += half * p_.axis[2].kernel;
      if (!s[0].a || !s[1].a) {
        const Source& only = s[0].a ? s[0] : s[1];
        return set(out, only.a, only.b, only.add, only.pitch);
      }
      tag_[slot] = h;
      const Shape shape = rows_.shape();
      k_.merge(into, shape.width, s, 2, shape.rows, shape.width);
    }
    set(out, into.a, into.b, 0, t_.cb);
  }

  void merge_doubled(const Target& to, i64 start) {
    const Axis& a = p_.axis[1];
    const Shape shape = rows_.shape();
    Source s[2];          // the next piece, and the sum of those behind it
    if (k_.idempotent) {  // two pieces that overlap
      const i64 second = a.kernel - (i64(1) << levels_);
      doubled_row(levels_, start, s[0]);
      if (second) doubled_row(levels_, start + second * a.dilation, s[1]);
      if (second && s[1].a) s[1].add += second * p_.axis[2].kernel;
      if (second && s[0].a && s[1].a) return over_h_.put(to, s, 2, shape);
      const Source& only = s[0].a || !second ? s[0] : s[1];
      return over_h_.put(to, only.a ? &only : &over_h_.identity(), 1, shape);
    }
    s[1].a = nullptr;
    int spare = 0;
    for (i64 taps = a.kernel, level = 0; taps; ++level) {  // from the last, smallest piece to the first
      if (!(taps >> level & 1)) continue;
      taps -= i64(1) << level;
      Source& piece = s[1].a ? s[0] : s[1];
      doubled_row(int(level), start + taps * a.dilation, piece);
      if (!piece.a) continue;
      piece.add += taps * p_.axis[2].kernel;
      if (&piece == &s[1]) continue;
      if (taps == 0) return over_h_.put(to, s, 2, shape);
      const Row& into = spare_[spare ^= 1];
      k_.merge(into, shape.width, s, 2, shape.rows, shape.width);
      set(s[1], into.a, into.b, 0, t_.cb);
    }
    over_h_.put(to, s[1].a ? &s[1] : &over_h_.identity(), 1, shape);
  }
};

}  // namespace
}  // namespace anypool
