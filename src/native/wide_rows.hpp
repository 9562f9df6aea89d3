// Maxima and minima over wide windows of stride 1, in a time that hardly grows with the window. Over h the rows are cut into
// blocks of as many as a window has: a window is the end of one block and the beginning of the next, so that three merges an
// element do for any height (van Herk, Pattern Recognition Letters 13, 1992; Gil and Werman, IEEE PAMI 15, 1993). Over w,
// columns are merged with those 1, 2, 4 and 8 behind them while they are in registers, and the few pieces of that width that
// a window has in a second pass. Merges may overlap, but never change sides: results are those of the engine to the bit.
#pragma once
#include "around.hpp"
#include "new_rows.hpp"
#include "planes_run.hpp"

namespace anypool {
namespace {

constexpr i64 kWideRow = 8 << 10;     // bytes of a tile's row, which is gone through several times
constexpr i64 kWideKept = 256 << 10;  // bytes of a block's rows, which should leave room in the L2 cache
constexpr i64 kWideMost = 16 << 20;   // the same for windows so wide and tall that they take more; beyond: the engine

// How planes are cut: columns into tiles, rows into blocks. Tasks that follow one another are blocks of one tile, which a
// thread takes in one piece, or whole planes.
struct WideCut {
  i64 tile, tiles, rows, blocks;
  i64 row_bytes;  // of the columns that a tile sees
  i64 many;       // planes at once, so that a row of all of them fills about 16 vectors
  bool in_order;  // such planes are read in order first, as they stay in the cache
  explicit WideCut(const Plan& p) {
    const Axis &h = p.axis[1], &w = p.axis[2];
    const i64 bytes = size_of(p.acc), fit = higher(kWideKept / bytes / h.kernel - w.kernel, 4 * w.kernel);
    tiles = ceil_div(w.n_out, lower(fit, higher(kWideRow / bytes, 4 * w.kernel)));
    tile = ceil_div(w.n_out, tiles);
    row_bytes = round_up((tile + w.kernel - 1) * bytes, ANYPOOL_VECTOR_BYTES);
    const i64 others = outer_size(p) * p.axis[0].n_out * tiles;
    blocks = higher(1, lower(ceil_div(16, others), h.n_out / (2 * h.kernel)));
    rows = ceil_div(h.n_out, blocks);
    blocks = ceil_div(h.n_out, rows);
    const i64 room = lower(16 * ANYPOOL_VECTOR_BYTES / row_bytes, kWideKept / row_bytes / h.kernel);
    many = tasks_of_plane() == 1 ? higher(1, lower(kMost, room)) : 1;
    in_order = many > 1 && h.n_in <= kWideKept / (many * w.n_in * size_of(p.in));
  }
  i64 tasks_of_plane() const { return tiles * blocks; }
  bool fits(const Plan& p) const { return p.axis[1].kernel <= kWideMost / row_bytes; }
  static constexpr int kMost = 8;
};

template <class T, class A, class Fast, class Careful>
class WideRows {
  static constexpr int L = kLanes<A>;
  static constexpr i64 kLinesBytes = 8 << 10;
  static constexpr int kMostLevels = L >= 16 ? 4 : L >= 8 ? 3 : L >= 4 ? 2 : 0;
  using V = Vec<A, L>;
  using Seen = NaNs<A, L>;
  const Plan& p_;
  const WideCut cut_;
  const i64 kh_, kw_;
  const i64 vectors_;        // of the columns that a tile sees
  const i64 pitch_, line_;   // elements of a row in scratch, and of a line, which has room for what lags behind
  const i64 lines_at_once_;  // that wait for the second pass
  const int levels_;         // columns are merged 2^levels_ at a time in registers
  A *kept_, *so_far_, *none_, *lines_;
  T *absent_, *edges_;
  Part* parts_;
  i64 ow0_ = 0, outputs_ = 0;        // of the tile
  i64 first_ = 0, lo_ = 0, hi_ = 0;  // its first column; vectors [lo_, hi_) lie wholly inside
  const T* x_[WideCut::kMost];       // the planes that are taken at once, side by side
  T* y_[WideCut::kMost];
  i64 planes_ = 0;
  AroundCaches around_[WideCut::kMost];  // of each of them

  // What a row of inputs is for: it only adds to its block; it completes a row of windows; windows are one row high.
  enum class Role { adds, completes, alone };

  // Columns merged with those behind them, 2^Levels in all: what leaves lags a vector for each level behind what enters.
  template <class Op, int Levels>
  struct Doubled {
    V last[Levels ? Levels : 1];
    Doubled() {
      for (V& v : last) v = splat<V>(Op::identity().a);
    }
    template <int N = 0>
    ANYPOOL_INLINE V push(V v) {
      if constexpr (N == Levels) {
        return v;
      } else {
        const V merged = Op::template merged<L>(last[N], Slide<V, 1 << N, L>::run(last[N], v));
        last[N] = v;
        return push<N + 1>(merged);
      }
    }
  };

 public:
  WideRows(const Plan& p, Arena& arena)
      : p_(p),
        cut_(p),
        kh_(p.axis[1].kernel),
        kw_(p.axis[2].kernel),
        vectors_(cut_.row_bytes / ANYPOOL_VECTOR_BYTES),
        pitch_(pitch_of(cut_.many * vectors_)),
        line_((cut_.many * vectors_ + kMostLevels + 1) * L),
        lines_at_once_(higher(1, kLinesBytes / (line_ * i64(sizeof(A))))),
        levels_(levels_of(kw_)),
        kept_(arena.take_array<A>(kh_ > 1 ? kh_ * pitch_ : 0)),
        so_far_(arena.take_array<A>(kh_ > 1 ? pitch_ : 0)),
        none_(arena.take_array<A>(kh_ > 1 ? pitch_ : 0)),
        lines_(arena.take_array<A>(lines_at_once_ * line_)),
        absent_(arena.take_array<T>(kh_ > 1 ? pitch_ : 0)),
        edges_(arena.take_array<T>(pitch_)),
        parts_(arena.take_array<Part>(vectors_)) {
    const bool around = AroundCaches::gain(p, &Axis::n_out);
    for (i64 i = 0; i < cut_.many; ++i) around_[i] = AroundCaches(around, cut_.tile * i64(sizeof(T)), arena);
    if (!arena.base || kh_ == 1) return;  // then no row is absent
    const V none = splat<V>(Fast::identity().a);
    for (i64 i = 0; i < pitch_; i += L) store(none_ + i, none), Lanes<T, A, L>::store(absent_ + i, none);
  }

  void run(const Buffers& b, i64 begin, i64 end) {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    for (i64 task = begin, n; task < end; task += n) {
      const i64 block = task % cut_.blocks, tile = task / cut_.blocks % cut_.tiles;
      planes_ = lower(end - task, cut_.many);
      n = cut_.many > 1 ? planes_ : lower(end - task, cut_.blocks - block);
      place(tile * cut_.tile, lower(cut_.tile, w.n_out - tile * cut_.tile));
      for (i64 i = 0; i < planes_; ++i) {
        const i64 plane = task / cut_.tasks_of_plane() + i, od = plane % d.n_out, outer = plane / d.n_out;
        x_[i] = static_cast<const T*>(b.x) + outer_offset(p_, p_.x_outer, outer) + od * d.stride * p_.x_stride[0];
        y_[i] = static_cast<T*>(b.y) + outer_offset(p_, p_.y_outer, outer) + od * p_.y_stride[0] + ow0_;
        for (i64 row = 0; cut_.in_order && row < h.n_in; ++row)
          read_in_order(x_[i] + row * p_.x_stride[1], w.n_in * i64(sizeof(T)));
      }
      const i64 oh0 = block * cut_.rows, oh1 = lower(oh0 + n * cut_.rows, h.n_out);
      if (pool<Fast>(oh0, oh1)) {
        finish();  // before they are written again
        pool<Careful>(oh0, oh1);
      }
    }
    finish();
  }

 private:
  void finish() {
    for (AroundCaches& plane : around_) plane.finish();
  }
  // Rows a multiple of 1 KB apart would share few sets of the cache.
  static i64 pitch_of(i64 vectors) { return (vectors + (vectors * L * i64(sizeof(A)) % 1024 == 0 ? 1 : 0)) * L; }
  static int levels_of(i64 kw) { return kw < 4 ? 0 : int(lower(kw < 8 ? 2 : kw < 16 ? 3 : 4, kMostLevels)); }
  void place(i64 ow0, i64 outputs) {
    const i64 cols = p_.axis[2].n_in;
    if (ow0 == ow0_ && outputs == outputs_) return;
    ow0_ = ow0, outputs_ = outputs;
    first_ = ow0 - p_.axis[2].pad;
    lo_ = lower(ceil_div(higher(-first_, 0), L), vectors_);
    hi_ = higher(lower((cols - first_) / L, vectors_), lo_);
    if (cut_.many > 1) lo_ = hi_ = 0;
    for (i64 i = 0; i < vectors_; ++i)
      if (i < lo_ || i >= hi_) parts_[i] = Part(inside<L>(first_ + i * L, cols));
  }

  // Output rows [oh0, oh1) of the tile of each plane. Returns whether a NaN was there.
  template <class Op>
  bool pool(i64 oh0, i64 oh1) {
    if constexpr (kMostLevels >= 2)
      if (levels_ == 2) return pool<Op, 2>(oh0, oh1);
    if constexpr (kMostLevels >= 3)
      if (levels_ == 3) return pool<Op, 3>(oh0, oh1);
    if constexpr (kMostLevels >= 4)
      if (levels_ == 4) return pool<Op, 4>(oh0, oh1);
    return pool<Op, 0>(oh0, oh1);
  }
  template <class Op, int Levels>
  bool pool(i64 oh0, i64 oh1) {
    const i64 start = oh0 - p_.axis[1].pad, rows = oh1 - oh0 + kh_ - 1;
    Seen nan;
    i64 waiting = 0;  // lines that have not become output
    for (i64 r = 0, at = 0; r < rows; ++r, at = at + 1 == kh_ ? 0 : at + 1) {
      A *line = lines_ + waiting * line_, *slot = kept_ + at * pitch_;
      if (kh_ == 1) {
        input_row<Op, Levels, Role::alone>(start + r, nullptr, nullptr, line, nan);
      } else {
        if (at == 0) __builtin_memcpy(so_far_, none_, size_t(pitch_) * sizeof(A));
        if (r < kh_ - 1)
          input_row<Op, Levels, Role::adds>(start + r, slot, nullptr, nullptr, nan);
        else
          input_row<Op, Levels, Role::completes>(start + r, slot, at == kh_ - 1 ? none_ : slot + pitch_, line, nan);
        if (at == kh_ - 1 && r + 1 < rows) merge_ends<Op>();
      }
      if (r < kh_ - 1) continue;
      if (++waiting < lines_at_once_ && r + 1 < rows) continue;
      output_rows<Op>(waiting, oh0 + r - kh_ + 2 - waiting);
      waiting = 0;
    }
    return nan.any();
  }

  // Row h of the inputs: kept, merged with those of its block before it, and with the end of the block before, `ends`.
  // What is merged over h goes to `line` merged over 2^Levels columns, Levels vectors late.
  template <class Op, int Levels, Role R>
  ANYPOOL_INLINE void input_row(i64 h, A* keep, const A* ends, A* line, Seen& nans) {
    using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
    Doubled<Op, Levels> doubled;
    const V none = splat<V>(Op::identity().a);
    const bool there = h >= 0 && h < p_.axis[1].n_in;
    if (R == Role::adds && !there) {
      __builtin_memcpy(keep, none_, size_t(pitch_) * sizeof(A));
      return;
    }
    const T* x = nullptr;
    for (i64 plane = 0; there && plane < planes_; ++plane) {
      x = x_[plane] + h * p_.x_stride[1] + first_;
      T* to = edges_ + plane * vectors_ * L;
      const auto edge = [&](i64 i) {
        Memory::store(to + i * L, parts_[i].empty() ? none : Memory::load_part(x + i * L, parts_[i], none));
      };
      for (i64 i = 0; i < lo_; ++i) edge(i);
      for (i64 i = hi_; i < vectors_; ++i) edge(i);
    }
    const struct {
      const T* from;
      i64 end;
    } pieces[] = {{edges_, there ? lo_ : 0}, {x, there ? hi_ : 0}, {there ? edges_ : absent_, planes_ * vectors_}};
    i64 i = 0;
    A* const so_far = so_far_;
    for (const auto& piece : pieces) {
      Seen seen;  // of the loop alone: it stays in a register
      const T* const from = piece.from;
      const i64 end = piece.end;
      for (; i < end; ++i) {
        V v = Memory::load(from + i * L);
        if constexpr (Op::kNumbersOnly) seen.see(v, v);
        if constexpr (R != Role::alone) {
          store(keep + i * L, v);
          v = Op::template merged<L>(load<V>(so_far + i * L), v);
          store(so_far + i * L, v);
        }
        if constexpr (R == Role::completes) v = Op::template merged<L>(load<V>(ends + i * L), v);
        if constexpr (R != Role::adds) store(line + i * L, doubled.push(v));
      }
      nans.add(seen);
    }
    if constexpr (R != Role::adds)
      for (int l = 0; l < Levels; ++l, ++i) store(line + i * L, doubled.push(none));
  }

  // Each kept row merged with those of its block behind it. (The first one is never asked for.)
  template <class Op>
  void merge_ends() {
    for (i64 i = 0, n = planes_ * vectors_; i < n;) {
      if (n - i >= 4)
        merge_ends<Op, 4>(kept_ + i * L), i += 4;
      else
        merge_ends<Op, 1>(kept_ + i * L), i += 1;
    }
  }
  template <class Op, int C>
  void merge_ends(A* column) {
    A* row = column + (kh_ - 1) * pitch_;
    V v[C];
    for (int c = 0; c < C; ++c) v[c] = load<V>(row + c * L);
    for (i64 t = kh_ - 2; t > 0; --t) {
      row -= pitch_;
      for (int c = 0; c < C; ++c) v[c] = Op::template merged<L>(load<V>(row + c * L), v[c]);
      for (int c = 0; c < C; ++c) store(row + c * L, v[c]);
    }
  }

  // The first n lines become output rows from oh on.
  template <class Op>
  void output_rows(i64 n, i64 oh) {
    i64 width = i64(1) << levels_;
    for (; kw_ > 4 * width; width *= 4)
      for (i64 i = 0; i < n; ++i)
        for (i64 plane = 0; plane < planes_; ++plane) {
          A* line = lines_ + i * line_ + (levels_ + plane * vectors_) * L;
          for (A* at = line; at <= line + outputs_ + kw_ - 4 * width; at += L)
            store(at, pieces<Op, 4>(at, width, 3 * width));
        }
    switch (ceil_div(kw_, width)) {
      case 1: return output_rows<Op, 1>(n, oh, width);
      case 2: return output_rows<Op, 2>(n, oh, width);
      case 3: return output_rows<Op, 3>(n, oh, width);
      default: return output_rows<Op, 4>(n, oh, width);
    }
  }
  template <class Op, int N>
  void output_rows(i64 n, i64 oh, i64 width) {
    using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
    const i64 whole = outputs_ / L * L, last = kw_ - width;
    const Part rest({0, outputs_ - whole});
    for (i64 plane = 0; plane < planes_; ++plane) {
      char* y = reinterpret_cast<char*>(y_[plane] + oh * p_.y_stride[1]);
      const A* line = lines_ + (levels_ + plane * vectors_) * L;
      for (i64 i = 0; i < n; ++i, y += p_.y_stride[1] * i64(sizeof(T)), line += line_) {
        T* const to = reinterpret_cast<T*>(around_[plane].room(y));
        for (i64 o = 0; o < whole; o += L) Memory::store(to + o, pieces<Op, N>(line + o, width, last));
        if (whole < outputs_) Memory::store_part(to + whole, pieces<Op, N>(line + whole, width, last), rest);
        around_[plane].wrote(outputs_ * i64(sizeof(T)));
      }
    }
  }
  // N pieces `width` apart, the last one at `last`.
  template <class Op, int N>
  static ANYPOOL_INLINE V pieces(const A* at, i64 width, i64 last) {
    V v = load<V>(N == 1 ? at + last : at);
    if constexpr (N > 2) v = Op::template merged<L>(v, load<V>(at + width));
    if constexpr (N > 3) v = Op::template merged<L>(v, load<V>(at + 2 * width));
    if constexpr (N > 1) v = Op::template merged<L>(v, load<V>(at + last));
    return v;
  }
};

// For a plan of such windows, else nothing.
inline PlanesRun wide_run_of(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding || a.n_in == 0 || a.n_out == 0) return {};
  const auto dense = [](const Axis& a) { return a.stride == 1 && (a.dilation == 1 || a.kernel == 1); };
  if (!dense(h) || !dense(w) || (h.kernel == 1 && h.n_out != h.n_in)) return {};
  const auto shares = [](const Axis& a) { return a.kernel > kNarrow && a.n_out > 1; };
  if (!shares(h) && !shares(w)) return {};
  if (d.kernel != 1 || d.pad != 0 || (d.n_out - 1) * d.stride >= d.n_in) return {};
  if ((p.x_stride[2] != 1 && w.n_in > 1) || (p.y_stride[2] != 1 && w.n_out > 1) || !selects_alone(p)) return {};
  const WideCut cut(p);
  if (!cut.fits(p)) return {};
  const auto run = [&](auto t, auto a) {
    using T = typename decltype(t)::type;
    using A = typename decltype(a)::type;
    return p.merge == Merge::max ? planes_run<WideRows<T, A, SelectNumbers<A, true>, Select<A, true>>>()
                                 : planes_run<WideRows<T, A, SelectNumbers<A, false>, Select<A, false>>>();
  };
  PlanesRun found;
  switch (p.in) {
    case DType::u8: found = run(Tag<uint8_t>{}, Tag<uint8_t>{}); break;
    case DType::u16: found = run(Tag<uint16_t>{}, Tag<uint16_t>{}); break;
    case DType::i16: found = run(Tag<int16_t>{}, Tag<int16_t>{}); break;
    case DType::i32: found = run(Tag<int32_t>{}, Tag<int32_t>{}); break;
    default: found = with_float_types<PlanesRun>(p, run);
  }
  found.way = "wide rows", found.tasks = d.n_out * cut.tasks_of_plane();
  return found;
}

}  // namespace
}  // namespace anypool
