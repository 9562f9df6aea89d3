// Merging over w: a line becomes one output row.
#pragma once
#include "phases.hpp"
#include "vertical.hpp"

namespace anypool {
namespace {

constexpr i64 kBlock = 1024;  // taps merged at once in a window longer than a tile

// How windows on w are merged.
enum class Way {
  taps,        // all outputs at once, tap by tap: tap t of all of them is a row
  phases,      // the same with a stride: the line is de-interleaved first
  halving,     // windows side by side whose width is a power of two: neighbours are merged, again and again
  doubling,    // wide windows that overlap
  each,        // one output after the other: windows that differ, or lie far apart
  blocks,      // the same for windows longer than a tile
  transposed,  // adjoint of a stride: the outputs are de-interleaved
};

class HorizontalMerge {
  const Plan& p_;
  const Kernel& k_;
  const Tile& t_;
  const Axis& w_;
  const Way way_;
  const i64 cols_;
  TreeMerge tree_;
  Row line_, phases_, spare_[2], level_[48], block_[32];
  i64* place_of_tap_ = nullptr;  // phases: where tap t of the first output lies
  char* split_spare_;
  i64 phase_pitch_ = 0;
  int levels_ = 0;
  i64 place0_ = 0, places_ = 0, from_ = 0;  // transposed: places of the tile's outputs
  bool padded_ = false;
  Row halves_[2];
  Row even_{}, odd_{};  // phases of stride 2: where the tile's even and odd columns go

 public:
  static Way way_of(const Plan& p) {
    const Axis& w = p.axis[2];
    if (w.kind == AxisKind::transposed) return p.inner == 1 && w.dilation == 1 ? Way::transposed : Way::each;
    // A line that is mostly padding: only the columns that exist are worth their memory.
    if ((w.kernel - 1) * w.dilation > 2 * w.n_in + kBlock)
      return w.kernel > 4 * kBlock && w.dilation == 1 ? Way::blocks : Way::each;
    if (doubles(w)) return Way::doubling;
    const bool each = w.kind == AxisKind::table || (p.inner == 1 && (w.n_out < 4 || w.stride > 8));
    if (each) return w.kernel > 4 * kBlock ? Way::blocks : Way::each;
    if (p.inner != 1 || w.stride == 1) return Way::taps;
    const bool side_by_side = w.kernel == w.stride && w.dilation == 1 && (w.kernel & (w.kernel - 1)) == 0;
    return side_by_side && p.code == Code::none && p.merge != Merge::scaled_sum ? Way::halving : Way::phases;
  }
  // Columns of a line, padding included, for a tile of p.tile_w outputs.
  static i64 columns_of(const Plan& p) {
    const Axis& w = p.axis[2];
    const i64 reach = (w.kernel - 1) * w.dilation + 1, n = lower(p.tile_w, w.n_out);
    switch (way_of(p)) {
      case Way::blocks: return kBlock * w.dilation;
      case Way::transposed: return n / w.stride + w.kernel / w.stride + 4;
      default: break;
    }
    if (w.kind == AxisKind::sliding && way_of(p) == Way::each) return lower((n - 1) * w.stride + reach, w.n_in);
    if (w.kind == AxisKind::sliding) return (n - 1) * w.stride + reach;
    i64 most = 1;
    for (i64 o = 0; o < w.n_out; o += p.tile_w) {
      Tile t;
      t.ow0 = o, t.ow1 = lower(o + p.tile_w, w.n_out);
      seen_columns(w, t);
      most = higher(most, t.columns());
    }
    return most;
  }

  HorizontalMerge(const Plan& plan, const Kernel& kernel, const Tile& tile, Arena& arena, i64 cols, i64 cb)
      : p_(plan),
        k_(kernel),
        t_(tile),
        w_(plan.axis[2]),
        way_(way_of(plan)),
        cols_(cols),
        tree_(kernel, arena, plan.axis[2].kernel, lower(plan.tile_w, plan.axis[2].n_out) * cb) {
    const i64 n = cols_ * cb;
    line_ = take_row(arena, k_, n);
    phase_pitch_ = (way_ == Way::transposed ? lower(p_.tile_w, w_.n_out) / w_.stride : cols_ / w_.stride) + 80;
    if (way_ == Way::phases || way_ == Way::transposed) phases_ = take_row(arena, k_, phase_pitch_ * w_.stride);
    if (way_ == Way::phases) {  // worked out once: a division costs as much as a vector of the row
      place_of_tap_ = arena.take_array<i64>(w_.kernel);
      for (i64 t = 0; arena.base && t < w_.kernel; ++t) place_of_tap_[t] = place_of(t * w_.dilation);
    }
    for (Row& r : halves_) r = way_ == Way::halving ? take_row(arena, k_, cols_ / 2 + 3 * ANYPOOL_VECTOR_BYTES) : Row{};
    split_spare_ = way_ == Way::phases ? arena.take((2 * cols_ + 256) * 8) : nullptr;
    while ((i64(2) << levels_) <= w_.kernel) ++levels_;
    if (way_ != Way::doubling) levels_ = 0;
    level_[0] = line_;
    for (int l = 1; l <= levels_; ++l) level_[l] = take_row(arena, k_, n);
    for (Row& r : spare_) r = levels_ ? take_row(arena, k_, n) : Row{};
    for (i64 depth = 0, taps = kBlock; way_ == Way::blocks && taps < w_.kernel; ++depth, taps *= 2)
      block_[depth] = take_row(arena, k_, 2 * cb);
  }

  // Chooses the tile's input columns, and fills the padding of its lines once.
  void place(Tile& t) {
    if (way_ == Way::blocks) return;
    if (way_ == Way::transposed) return place_transposed(t);
    if (way_ == Way::each) {
      seen_columns(w_, t);
      padded_ = false;
      return;
    }
    t.base = t.ow0 * w_.stride - w_.pad;
    const i64 end = t.base + span();
    t.w_lo = lower(higher(t.base, 0), w_.n_in), t.w_hi = higher(lower(end, w_.n_in), t.w_lo);
    padded_ = t.w_lo > t.base || t.w_hi < end;
    if (split_at_once()) {
      even_ = advance(k_, phases_, place_of(t.w_lo - t.base));
      odd_ = advance(k_, phases_, place_of(t.w_lo - t.base + 1));
      for (i64 q = 0; q < t.w_lo - t.base; ++q) fill_phase(q);
      for (i64 q = t.w_hi - t.base; q < span(); ++q) fill_phase(q);
      return;
    }
    k_.identity(line_, 0, (t.w_lo - t.base) * t.cb);
    k_.identity(line_, (t.w_hi - t.base) * t.cb, (end - t.base) * t.cb);
  }

  // Output row oh into dst, whose columns are `pitch` elements apart.
  void merge(Row dst, i64 pitch, i64 oh, VerticalMerge& vertical, Tile& t, const Buffers& buffers) {
    switch (way_) {
      case Way::phases: return merge_phases(dst, oh, vertical);
      case Way::halving: return merge_halving(dst, oh, vertical);
      case Way::doubling: return merge_doubled(dst, pitch, oh, vertical);
      case Way::transposed: return merge_transposed(dst, oh, vertical);
      case Way::taps: return merge_taps(dst, pitch, oh, vertical);
      default: break;
    }
    if (way_ == Way::each) vertical.merge({at_column(t_.w_lo), t_.cb}, oh);
    for (i64 o = t.ow0; o < t.ow1; ++o) {
      const Window v = window_of(w_, o);
      const Row to = advance(k_, dst, (o - t.ow0) * pitch);
      if (v.lo == v.hi)
        k_.identity(to, 0, t.cb);
      else if (way_ == Way::blocks)
        merge_blocks(to, v, 0, v.taps, oh, vertical, t, buffers, 0);
      else
        merge_columns(to, v, 0, v.taps, v.lo, v.hi);
    }
  }

 private:
  i64 span() const { return (t_.outputs() - 1) * w_.stride + (w_.kernel - 1) * w_.dilation + 1; }
  bool split_at_once() const { return way_ == Way::phases && w_.stride == 2; }
  Row at_column(i64 w) const { return advance(k_, line_, (w - t_.base) * t_.cb); }
  i64 place_of(i64 q) const { return q % w_.stride * phase_pitch_ + q / w_.stride; }
  void fill_phase(i64 q) { k_.identity(phases_, place_of(q), place_of(q) + 1); }

  static void seen_columns(const Axis& w, Tile& t) {
    t.w_lo = w.n_in, t.w_hi = 0;
    for (i64 o = t.ow0; o < t.ow1; ++o) {
      const Window v = window_of(w, o);
      if (v.lo == v.hi) continue;
      t.w_lo = lower(t.w_lo, v.at(v.lo));
      t.w_hi = higher(t.w_hi, v.at(v.hi - 1) + 1);
    }
    t.w_lo = lower(t.w_lo, t.w_hi);
    t.base = t.w_lo;
  }

  // Tap t of the first output, in a line that starts at `from`.
  void shift(const Source& from, i64 t, i64 pitch, Source& s) const {
    const i64 i = t * w_.dilation * t_.cb;
    set(s, from.a + i * k_.a_bytes, from.b ? from.b + i * k_.b_bytes : nullptr, from.add + t, pitch);
  }

  void merge_taps(Row dst, i64 pitch, i64 oh, VerticalMerge& vertical) {
    Source line;  // merged, or where it lies if it needs neither merging nor padding
    if (padded_ || !vertical.in_place(oh, line)) {
      vertical.merge({at_column(t_.w_lo), t_.cb}, oh);
      set_at(line, k_, line_, 0, 0);
    }
    const bool whole = w_.stride == 1 && pitch == t_.cb;
    const Shape shape = whole ? Shape{1, t_.outputs() * t_.cb} : Shape{t_.outputs(), t_.cb};
    tree_.merge({dst, pitch}, 0, w_.kernel, 0, w_.kernel, shape,
                [&](i64 t, Source& s) { shift(line, t, w_.stride * t_.cb, s); });
  }

  void merge_phases(Row dst, i64 oh, VerticalMerge& vertical) {
    if (split_at_once()) {
      vertical.merge({even_, 0, odd_}, oh);
    } else {
      vertical.merge({at_column(t_.w_lo), 1}, oh);
      split_phases(k_.a_bytes, phases_.a, phase_pitch_, line_.a, span(), w_.stride, split_spare_);
      if (k_.b_bytes) split_phases(k_.b_bytes, phases_.b, phase_pitch_, line_.b, span(), w_.stride, split_spare_);
    }
    tree_.merge({dst, t_.outputs()}, 0, w_.kernel, 0, w_.kernel, {1, t_.outputs()},
                [&](i64 t, Source& s) { set_at(s, k_, phases_, place_of_tap_[t], t); });
  }

  void merge_halving(Row dst, i64 oh, VerticalMerge& vertical) {
    vertical.merge({at_column(t_.w_lo), 1}, oh);
    Row from = line_;
    int into = 0;
    for (i64 left = w_.kernel; left > 1; left /= 2, into ^= 1) {
      k_.halve(halves_[into], from, t_.outputs() * left / 2);
      from = halves_[into];
    }
    __builtin_memcpy(dst.a, from.a, size_t(t_.outputs() * k_.a_bytes));
  }

  void merge_doubled(Row dst, i64 pitch, i64 oh, VerticalMerge& vertical) {
    vertical.merge({at_column(t_.w_lo), t_.cb}, oh);
    Source s[2];
    for (int l = 1; l <= levels_; ++l) {
      const i64 half = i64(1) << (l - 1);
      set_at(s[0], k_, level_[l - 1], 0, 0);
      set_at(s[1], k_, level_[l - 1], half * w_.dilation * t_.cb, half);
      k_.merge(level_[l], 0, s, 2, 1, (span() - (2 * half - 1) * w_.dilation) * t_.cb);
    }
    const i64 n = t_.outputs(), step = w_.stride * t_.cb;
    if (k_.idempotent) {  // two pieces that overlap
      const i64 second = w_.kernel - (i64(1) << levels_);
      const bool whole = w_.stride == 1 && pitch == t_.cb;
      set_at(s[0], k_, level_[levels_], 0, 0, step);
      set_at(s[1], k_, level_[levels_], second * w_.dilation * t_.cb, second, step);
      return k_.merge(dst, pitch, s, second ? 2 : 1, whole ? 1 : n, whole ? n * t_.cb : t_.cb);
    }
    int pieces = 0, spare = 0;
    for (i64 taps = w_.kernel, level = 0; taps; ++level) {  // from the last, smallest piece to the first
      if (!(taps >> level & 1)) continue;
      taps -= i64(1) << level;
      ++pieces;
      Source* first = pieces == 1 ? &s[1] : &s[0];
      set_at(*first, k_, level_[level], taps * w_.dilation * t_.cb, taps, step);
      if (taps == 0) {  // the outputs proper; before, all the columns they are picked from
        const bool whole = w_.stride == 1 && pitch == t_.cb;
        k_.merge(dst, pitch, first, pieces == 1 ? 1 : 2, whole ? 1 : n, whole ? n * t_.cb : t_.cb);
      } else if (pieces > 1) {
        const Row& into = spare_[spare ^= 1];
        k_.merge(into, 0, s, 2, 1, ((n - 1) * w_.stride + 1) * t_.cb);
        set_at(s[1], k_, into, 0, 0, step);
      }
    }
  }

  void merge_columns(Row dst, const Window& v, i64 lo, i64 n, i64 first, i64 last) {
    Source from;
    set_at(from, k_, line_, (v.start - t_.base) * t_.cb, 0);
    if (t_.cb == 1) return k_.run(dst, from, v.step, lo, n, first, last);
    tree_.merge({dst, t_.cb}, lo, n, first, last, {1, t_.cb},
                [&](i64 t, Source& s) { set_at(s, k_, line_, (v.at(t) - t_.base) * t_.cb, t); });
  }

  void merge_blocks(Row dst, const Window& v, i64 lo, i64 n, i64 oh, VerticalMerge& vertical, Tile& t,
                    const Buffers& buffers, int depth) {
    if (lo + n <= v.lo || lo >= v.hi) return k_.identity(dst, 0, t.cb);
    if (n <= kBlock) {
      const i64 first = higher(lo, v.lo), last = lower(lo + n, v.hi);
      t.w_lo = t.base = v.at(first), t.w_hi = v.at(last - 1) + 1;
      vertical.place(buffers);
      vertical.merge({line_, t.cb}, oh);
      return merge_columns(dst, v, lo, n, first, last);
    }
    const i64 half = split_point(n);
    const Row l = block_[depth], r = advance(k_, l, t.cb);
    merge_blocks(l, v, lo, half, oh, vertical, t, buffers, depth + 1);
    merge_blocks(r, v, lo + half, n - half, oh, vertical, t, buffers, depth + 1);
    Source s[2];
    set_at(s[0], k_, l, 0, 0);
    set_at(s[1], k_, r, 0, 0);
    k_.merge(dst, 0, s, 2, 1, t.cb);
  }

  // Adjoint of stride s: input column j sees, as j + pad = i s + r, the outputs i - m .. i, m being that of its phase r.
  i64 taps_of_phase(i64 r) const { return r < w_.kernel ? (w_.kernel - 1 - r) / w_.stride + 1 : 0; }
  void place_transposed(Tile& t) {
    place0_ = (t.ow0 + w_.pad) / w_.stride;
    from_ = (t.ow0 + w_.pad) % w_.stride;
    places_ = (t.ow1 - 1 + w_.pad) / w_.stride - place0_ + 1;
    t.base = place0_ - taps_of_phase(0) + 1;
    const i64 end = place0_ + places_;
    t.w_lo = lower(higher(t.base, 0), w_.n_in), t.w_hi = higher(lower(end, w_.n_in), t.w_lo);
    k_.identity(line_, 0, t.w_lo - t.base);
    k_.identity(line_, t.w_hi - t.base, end - t.base);
  }
  void merge_transposed(Row dst, i64 oh, VerticalMerge& vertical) {
    vertical.merge({at_column(t_.w_lo), 1}, oh);
    if (w_.kernel == w_.stride && !k_.b_bytes) {  // windows side by side: each input was seen once
      const Row first = advance(k_, line_, place0_ - t_.base);
      return repeat_columns(k_.a_bytes, dst.a, first.a, from_, t_.outputs(), w_.stride);
    }
    for (i64 r = 0; r < w_.stride; ++r) {
      const Row phase = advance(k_, phases_, r * phase_pitch_);
      const i64 taps = taps_of_phase(r), first = place0_ - taps + 1 - t_.base;
      if (taps == 0)
        k_.identity(phase, 0, places_);
      else
        tree_.merge({phase, 0}, 0, taps, 0, taps, {1, places_},
                    [&](i64 t, Source& s) { set_at(s, k_, line_, first + t, t); });
    }
    join_phases(k_.a_bytes, dst.a, phases_.a, phase_pitch_, from_, t_.outputs(), w_.stride);
    if (k_.b_bytes) join_phases(k_.b_bytes, dst.b, phases_.b, phase_pitch_, from_, t_.outputs(), w_.stride);
  }
};

}  // namespace
}  // namespace anypool
