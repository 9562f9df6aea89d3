// The engine: windows of any kind over the canonical view (outer, d, h, w, inner), for any reduction.
//
// For every output row, input rows are merged over d and h into one padded line that stays in the L1 cache, and the line
// is merged over w. Each step is a merge of rows; the steps differ only in where their rows lie. Adjoints run here too:
// the gradient of a sum is a sum over the transposed windows.
#pragma once
#include "fused_rows.hpp"
#include "horizontal.hpp"
#include "kernel_table.hpp"
#include "pixel_sums.hpp"
#include "spread_rows.hpp"
#include "turned_rows.hpp"

namespace anypool {
namespace {

class Engine {
  const Plan& p_;
  const Kernel& k_;
  Arena arena_;
  Tile tile_;
  const i64 cols_, elements_;
  VerticalMerge vertical_;
  HorizontalMerge horizontal_;
  FusedRows fused_;
  TurnedRows turned_;
  SpreadRows spread_;
  PixelSums pixel_sums_;
  OutputRow output_;
  const i64 planes_at_once_;  // by a fused kernel
  bool placed_ = false;       // whether the parts know the tile; a fused kernel seldom needs them
  // Output rows in scratch, which lie as columns in the output.
  static constexpr i64 kAcrossBytes = 16 << 10;
  char* across_ = nullptr;
  i64 across_pitch_ = 0, across_rows_ = 0;

 public:
  static void* operator new(size_t, char* at) { return at; }  // <new> would bring a symbol that all levels share
  Engine(const Plan& plan, const Kernel& kernel, char* scratch)
      : p_(plan),
        k_(kernel),
        arena_{uintptr_t(scratch)},
        cols_(HorizontalMerge::columns_of(plan)),
        elements_(lower(plan.tile_c, plan.inner)),
        vertical_(plan, kernel, tile_, arena_, cols_ * elements_),
        horizontal_(plan, kernel, tile_, arena_, cols_, elements_),
        fused_(plan, tile_, vertical_.rows(), arena_),
        turned_(plan, kernel, tile_, arena_, cols_),
        spread_(plan, tile_, vertical_.rows(), arena_),
        pixel_sums_(plan, tile_, vertical_.rows(), arena_, cols_ * elements_, !fused_),
        output_(plan, kernel, tile_, arena_, lower(plan.tile_w, plan.axis[2].n_out) * elements_,
                !fused_ && !fused_.loads() && !turned_ && !(spread_ && spread_.in_place()) &&
                    !(pixel_sums_ && pixel_sums_.in_place())),
        planes_at_once_(fused_.planes_at_once()) {
    if (!fused_.loads() || !output_.across()) return;
    across_pitch_ = round_up(lower(p_.tile_w, p_.axis[2].n_out) * size_of(p_.acc) + 64, 64);
    across_rows_ = higher(1, kAcrossBytes / across_pitch_);
    across_ = arena_.take(across_rows_ * across_pitch_);
  }
  i64 scratch_bytes() const { return arena_.used; }
  i64 tasks_of_plane() const {
    return p_.axis[0].n_out * ceil_div(p_.axis[1].n_out, p_.rows_block) * ceil_div(p_.axis[2].n_out, p_.tile_w);
  }

  // A task is one (outer, inner block, d, block of rows, tile of columns).
  void run(const Buffers& buffers, i64 begin, i64 end) {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const i64 tiles = ceil_div(w.n_out, p_.tile_w), blocks = ceil_div(h.n_out, p_.rows_block),
              chunks = ceil_div(p_.inner, p_.tile_c);
    // Divided once, then counted: a task may be a plane of few rows.
    const i64 sizes[] = {tiles, blocks, d.n_out, chunks};
    i64 at[5] = {};
    at[4] = begin;
    for (int i = 0; i < 4; ++i) at[i] = at[4] % sizes[i], at[4] /= sizes[i];
    const auto next = [&] {
      int i = 0;
      while (i < 4 && at[i] + 1 == sizes[i]) at[i++] = 0;
      ++at[i];
    };
    const i64 last_axis = p_.n_outer ? p_.outer[p_.n_outer - 1] : 1;
    i64 one_by_one = begin;  // the planes before this one, of which one has a NaN
    for (i64 task = begin; task < end; ++task, next()) {
      tile_.ow0 = at[0] * p_.tile_w;
      const i64 oh0 = at[1] * p_.rows_block;
      tile_.od = at[2];
      tile_.c0 = at[3] * p_.tile_c;
      tile_.outer = at[4];
      tile_.ow1 = lower(tile_.ow0 + p_.tile_w, w.n_out);
      tile_.cb = lower(p_.tile_c, p_.inner - tile_.c0);
      const i64 oh1 = lower(oh0 + p_.rows_block, h.n_out);
      output_.place(buffers);
      placed_ = false;
      if (fused_.loads()) {
        loaded_rows(buffers, oh0, oh1);
        continue;
      }
      if (planes_at_once_ > 1 && task >= one_by_one) {
        const i64 left = lower(end - task, last_axis - tile_.outer % last_axis), n = lower(planes_at_once_, left);
        if (n > 1 && fused_.run_planes(buffers, n, output_.row(0), output_.row_step())) {
          for (i64 i = 1; i < n; ++i) ++task, next();
          continue;
        }
        one_by_one = task + n;
      }
      if (fused_) {
        fused_.run(buffers, output_.row(oh0), output_.row_step(), oh0, oh1, [&](i64 oh) { row(buffers, oh); });
        continue;
      }
      if (spread_ || pixel_sums_) {
        place(buffers);
        spread_ ? spread_.run(output_, oh0, oh1) : pixel_sums_.run(output_, oh0, oh1);
        continue;
      }
      if (turned_) {
        place(buffers);
        for (i64 oh = oh0; oh < oh1; ++oh) {
          vertical_.merge({turned_.next(oh), 1}, oh);
          if (turned_.full()) turned_rows(buffers);
        }
        continue;
      }
      for (i64 oh = oh0, rows; oh < oh1; oh += rows) {
        row(buffers, oh);
        rows = lower(rows_alike(oh), oh1 - oh);
        output_.repeat(oh, rows - 1);
      }
    }
    if (turned_.any()) turned_rows(buffers);
    output_.end();
    fused_.finish();
  }

 private:
  // In the adjoint of windows side by side, rows that the same outputs saw have the same gradient: how many from oh on.
  i64 rows_alike(i64 oh) const {
    const Axis& h = p_.axis[1];
    if (h.kind != AxisKind::transposed || h.dilation != 1 || p_.finish != Finish::none || !output_.plain()) return 1;
    const i64 next_enters = h.stride - floor_mod(oh + h.pad, h.stride),
              first_leaves = floor_mod(h.kernel - 1 - oh - h.pad, h.stride) + 1;
    return lower(next_enters, first_leaves);
  }
  void place(const Buffers& buffers) {
    if (placed_) return;
    horizontal_.place(tile_);
    vertical_.place(buffers);
    output_.place_divisors();
    placed_ = true;
  }
  void merge(const Buffers& buffers, i64 oh) {
    i64 pitch;
    const Row dst = output_.target(oh, pitch);
    horizontal_.merge(dst, pitch, oh, vertical_, tile_, buffers);
  }
  void row(const Buffers& buffers, i64 oh) {
    place(buffers);
    merge(buffers, oh);
    output_.finish(oh);
  }
  // Rows of several planes, of which the tile is at the last one, before and after.
  void turned_rows(const Buffers& buffers) {
    turned_.merge([&](const TurnedRows::Place& at, const Row& states) {
      if (tile_.outer != at.outer || tile_.od != at.od) {
        tile_.outer = at.outer, tile_.od = at.od;
        output_.place(buffers);
      }
      i64 pitch;
      const Row dst = output_.target(at.oh, pitch);
      __builtin_memcpy(dst.a, states.a, size_t(tile_.outputs() * k_.a_bytes));
      if (k_.b_bytes) __builtin_memcpy(dst.b, states.b, size_t(tile_.outputs() * k_.b_bytes));
      output_.finish(at.oh);
    });
  }
  // The engine's rows, in and out, around a fused kernel: it sees them where they have been loaded.
  void loaded_rows(const Buffers& buffers, i64 oh0, i64 oh1) {
    place(buffers);
    for (i64 oh = oh0, end; oh < oh1; oh = end) {
      end = fused_.load(oh, oh1);
      if (across_) {
        end = lower(end, oh + across_rows_);
        fused_.run(buffers, across_, across_pitch_, oh, end, [&](i64 o) {
          merge(buffers, o);
          i64 pitch;
          __builtin_memcpy(across_ + (o - oh) * across_pitch_, output_.target(o, pitch).a,
                           size_t(tile_.outputs() * size_of(p_.acc)));
        });
        output_.finish_across(oh, end, across_, across_pitch_);
        continue;
      }
      const i64 at_once = output_.merged_in_place() ? end - oh : 1;
      for (i64 first = oh, pitch; first < end; first += at_once) {
        fused_.run(buffers, output_.target(first, pitch).a, output_.row_step(), first, first + at_once,
                   [&](i64 o) { merge(buffers, o); });
        for (i64 o = first; o < first + at_once; ++o) output_.finish(o);
      }
    }
  }
};

}  // namespace
}  // namespace anypool
