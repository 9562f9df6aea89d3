// Which windows have a kernel of their own, and the rows that it is given.
#pragma once
#include "fused.hpp"
#include "fused_codes.hpp"
#include "input_rows.hpp"
#include "pixels.hpp"
#include "tree.hpp"

namespace anypool {
namespace {

constexpr i64 kMostReach = 8;  // rows from the first to the last of a window over loaded ones

// ---- which there are -----------------------------------------------------------------------------------------------------

// A kernel, and how it sees a row: columns of many channels, or (also those of few channels) as single elements.
struct FusedChoice {
  FusedKernel run = nullptr;
  bool pixels = false;
  bool numbers = false;  // it would lose a NaN, and says so when it meets one
  bool loaded = false;   // rows must be loaded for it: lifted, or gathered from far apart; and results finished
  bool planes = false;   // it takes several planes at once
};

template <class T, class Op>
FusedKernel kernel_over_rows(i64 kd, i64 kh, i64 kw, i64 s, i64 dilation) {
  if constexpr (kLanes<typename Op::A> >= 4)
    if (dilation == 2 && kd == 1 && kh == 3 && kw == 3 && s == 1) return Fused<T, Op, 1, 3, 3, 1, 2>::run;
  if (dilation != 1) return nullptr;
  if (s == 4) return kd == 1 && kh == 1 && kw == 4 ? Fours<T, Op>::run : nullptr;
  if (s > 2) return nullptr;
#define ANYPOOL_FUSED(KD, KH, KW)                                                        \
  if (kd == KD && kh == KH && kw == KW) {                                                \
    if (s == 2) return Fused<T, Op, KD, KH, KW, 2>::run;                                 \
    if constexpr (KW <= kLanes<typename Op::A>) return Fused<T, Op, KD, KH, KW, 1>::run; \
  }
  ANYPOOL_FUSED(1, 1, 2)
  ANYPOOL_FUSED(1, 1, 3)
  ANYPOOL_FUSED(1, 2, 2)
  ANYPOOL_FUSED(1, 3, 3)
  ANYPOOL_FUSED(1, 5, 5)
  ANYPOOL_FUSED(2, 2, 2)
  ANYPOOL_FUSED(3, 3, 3)
#undef ANYPOOL_FUSED
  return nullptr;
}
template <class T, class Op, bool Pairs = false>
FusedKernel kernel_over_pixels(i64 kd, i64 kh, i64 kw) {
#define ANYPOOL_PIXELS(KD, KH, KW) \
  if (kd == KD && kh == KH && kw == KW) return Pixels<T, Op, KD, KH, KW, Pairs>::run;
  ANYPOOL_PIXELS(1, 1, 2)
  ANYPOOL_PIXELS(1, 1, 3)
  ANYPOOL_PIXELS(1, 2, 2)
  ANYPOOL_PIXELS(1, 3, 3)
  ANYPOOL_PIXELS(1, 5, 5)
  ANYPOOL_PIXELS(2, 2, 2)
  ANYPOOL_PIXELS(3, 3, 3)
#undef ANYPOOL_PIXELS
  return nullptr;
}
template <class A>
struct WiderByte {
  using type = A;
};
template <>
struct WiderByte<uint8_t> {
  using type = uint16_t;
};
// Whether every window that begins before a row sees some of it, and those at its end begin less than a window behind it.
inline bool near(const Axis& w) { return w.pad <= (w.kernel - 1) * w.dilation && w.pad_hi <= w.kernel * w.dilation; }
// Fast may lose a NaN, Careful does not, Wide has room for pictures of bytes to be shuffled in.
template <class T, class Fast, class Careful, class Wide>
FusedChoice fused_choice(const Plan& p) {
  using A = typename Fast::A;
  const Axis& w = p.axis[2];
  const i64 kd = p.axis[0].kernel, kh = p.axis[1].kernel, kw = w.kernel;
  if (p.inner == 1) {
    if (!near(w) || p.x_stride[2] != 1 || p.y_stride[2] != 1) return {};
    const auto run = kernel_over_rows<T, Fast>(kd, kh, kw, w.stride, w.dilation);
    return run ? FusedChoice{run, false, Fast::kNumbersOnly, false, w.stride <= 2} : FusedChoice{};
  }
  if (p.x_stride[3] != 1 || p.y_stride[3] != 1) return {};
  if constexpr (kSame<T, bf16>)
    if (p.inner >= 2 * kLanes<A>) return {kernel_over_pixels<T, Careful, true>(kd, kh, kw), true, false};
  if (p.inner >= kLanes<A>) return {kernel_over_pixels<T, Careful>(kd, kh, kw), true, false};
  if (p.inner != 3 || w.dilation != 1 || kd != 1 || !near(w) || p.x_stride[2] != 3 || p.y_stride[2] != 3) return {};
  if constexpr (kLanes<A> > 6)
    if (kh == 3 && kw == 3 && w.stride == 1) return {Fused<T, Fast, 1, 3, 3, 1, 3>::run, false, Fast::kNumbersOnly};
  if constexpr (kLanes<typename Wide::A> > 3)
    if (kh == 2 && kw == 2 && w.stride == 2) return {PixelPairs<T, Wide, 3>::run, false, false};
  return {};
}
template <class T, class A>
FusedChoice fused_choice_of(const Plan& p) {
  using Wide = typename WiderByte<A>::type;
  if (p.merge == Merge::max) return fused_choice<T, SelectNumbers<A, true>, Select<A, true>, Select<Wide, true>>(p);
  if (p.merge == Merge::min) return fused_choice<T, SelectNumbers<A, false>, Select<A, false>, Select<Wide, false>>(p);
  if constexpr (kIsFloat<A>) return fused_choice<T, Sum<A>, Sum<A>, Sum<A>>(p);
  return {};
}

template <class T, bool IsMax, class Code>
FusedKernel kernel_with_codes(i64 kd, i64 kh, i64 kw, i64 s) {
#define ANYPOOL_CODES(KD, KH, KW)       \
  if (kd == KD && kh == KH && kw == KW) \
    return s == 1 ? FusedCodes<T, IsMax, KD, KH, KW, 1, Code>::run : FusedCodes<T, IsMax, KD, KH, KW, 2, Code>::run;
  ANYPOOL_CODES(1, 1, 2)
  ANYPOOL_CODES(1, 1, 3)
  ANYPOOL_CODES(1, 2, 2)
  ANYPOOL_CODES(1, 3, 3)
  ANYPOOL_CODES(2, 2, 2)
#undef ANYPOOL_CODES
  return nullptr;
}
// For maxima and minima with the winners' offsets or indices.
inline FusedChoice coded_choice_of(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  if (p.inner != 1 || p.x_stride[2] != 1 || p.y_stride[2] != 1 || p.code_stride[2] != 1 || w.stride > 2 ||
      w.dilation != 1 || h.dilation != 1 || d.dilation != 1 || w.pad > w.kernel || w.pad_hi > w.kernel ||
      p.acc != DType::f32 || (p.code != Code::u8 && p.code != Code::index) ||
      d.kernel * h.n_in >= (i64(1) << 30) / higher(w.n_in, 1))  // the taps' places fit 32 bits
    return {};
  const bool max = p.merge == Merge::max, index = p.code == Code::index;
  const FusedKernel run = with_float_types<FusedKernel>(p, [&](auto t, auto a) -> FusedKernel {
    using T = typename decltype(t)::type;
    if constexpr (sizeof(typename decltype(a)::type) == 4) {
      const auto kernel = [&](auto code) {
        using C = decltype(code);
        return max ? kernel_with_codes<T, true, C>(d.kernel, h.kernel, w.kernel, w.stride)
                   : kernel_with_codes<T, false, C>(d.kernel, h.kernel, w.kernel, w.stride);
      };
      return index ? kernel(i64{}) : kernel(uint8_t{});
    }
    return nullptr;
  });
  return run ? FusedChoice{run, false, true, false, true} : FusedChoice{};
}

template <class A, class Op>
FusedChoice choice_over_loaded(const Plan& p) {
  const Axis& w = p.axis[2];
  const auto run = kernel_over_rows<A, Op>(p.axis[0].kernel, p.axis[1].kernel, w.kernel, w.stride, w.dilation);
  return run ? FusedChoice{run, false, Op::kNumbersOnly, true} : FusedChoice{};
}
// For rows that lie in scratch, in the type in which they are merged.
inline FusedChoice loaded_choice_of(const Plan& p) {
  const Axis &h = p.axis[1], &w = p.axis[2];
  const i64 reach = (h.kernel - 1) * h.dilation + 1;
  if (reach > kMostReach || h.stride > reach || !near(w)) return {};
  const auto of = [&](auto zero) -> FusedChoice {
    using A = decltype(zero);
    if (p.merge == Merge::max) return choice_over_loaded<A, SelectNumbers<A, true>>(p);
    if (p.merge == Merge::min) return choice_over_loaded<A, SelectNumbers<A, false>>(p);
    if constexpr (kIsFloat<A>) return choice_over_loaded<A, Sum<A>>(p);
    return {};
  };
  switch (p.acc) {
    case DType::u8: return of(uint8_t{});
    case DType::i32: return of(int32_t{});
    case DType::f32: return of(float{});
    case DType::f64: return of(double{});
    default: return {};
  }
}

inline bool pairs_of_bytes(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  return p.inner == 1 && d.kernel == 1 && h.kernel == 2 && w.kernel == 2 && w.stride == 2 && w.dilation == 1 &&
         w.pad == 0 && w.n_out * 2 <= w.n_in && p.finish == Finish::divide;
}
// Sums of 3x3 bytes by way of shorts, where the same could be done with bytes.
inline FusedChoice triples_of_bytes(FusedChoice choice) {
  if (choice.run == &Fused<uint8_t, Sum<uint16_t>, 1, 3, 3, 1>::run) choice.run = ByteTriples::run;
  return choice;
}

// The fused kernel for a plan, or none: the engine then takes its general way.
inline FusedChoice fused_choice_of(const Plan& p) {
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding) return {};
  if (p.merge == Merge::scaled_sum) return {};
  const bool apart = p.inner == 1 && (p.x_stride[2] != 1 || p.y_stride[2] != 1);
  if (p.inner == 1 && p.code == Code::none && (p.lift != Lift::none || apart || p.adjoint)) return loaded_choice_of(p);
  if (p.adjoint || p.lift != Lift::none || p.out != p.in || (p.finish != Finish::none && p.finish != Finish::divide))
    return {};
  if (p.code != Code::none) return coded_choice_of(p);
  switch (p.in) {
    case DType::u8:
      if (p.merge != Merge::sum) return fused_choice_of<uint8_t, uint8_t>(p);
      if (pairs_of_bytes(p)) return {BytePairs::run, false, false};
      if (p.finish != Finish::divide) return {};
      return triples_of_bytes(fused_choice<uint8_t, Sum<uint16_t>, Sum<uint16_t>, Sum<uint16_t>>(p));
    case DType::i32:  // sums of so few of them are whole numbers of a double
      if (p.merge != Merge::sum) return fused_choice_of<int32_t, int32_t>(p);
      return p.finish == Finish::divide ? fused_choice<int32_t, Sum<double>, Sum<double>, Sum<double>>(p)
                                        : FusedChoice{};
    default:
      return with_float_types<FusedChoice>(p, [&](auto t, auto a) {
        return fused_choice_of<typename decltype(t)::type, typename decltype(a)::type>(p);
      });
  }
}

// Output rows of a tile by a fused kernel.
class FusedRows {
  static constexpr i64 kLoadedBytes = 16 << 10;  // loaded rows stay in the L1 cache until their last window
  static constexpr i64 kKeptBytes = 32 << 10, kBeside = 4 * ANYPOOL_VECTOR_BYTES;

  // Where the rows of the window's planes lie, in bytes: row 0 of the first plane, and how far apart they are. They begin
  // at column `first`.
  struct Field {
    const char* at;
    i64 plane, row, first, cols;
  };

  const Plan& p_;
  const Tile& t_;
  InputRows& input_;
  const FusedChoice choice_;
  const DType type_;  // of the rows' elements
  const i64 bytes_;
  const HasNaN has_nan_;
  const i64 unit_;  // elements of a column, where the kernel sees single ones
  const bool far_;
  AroundCaches around_[2];                     // pixels are made in two rows at once
  char *none_ = nullptr, *divisor_ = nullptr;  // a row that is absent; what each column divides by
  char* kept_ = nullptr;                       // columns of channels that the next window sees, too
  double rows_ = 0;                            // the divisor's other factor, for which divisor_ holds
  i64 first_ = -1;
  bool reciprocal_ = false;
  ByteDivision byte_division_;
  int32_t taps_[kFusedRows * 3];
  int32_t* first_column_ = nullptr;
  i64 columns_of_ = -1;  // the first output for which first_column_ holds
  char* codes_ = nullptr;
  char* loaded_ = nullptr;  // rows, as many of each plane
  i64 loaded_row_ = 0, loaded_rows_ = 0;
  Field field_{};

 public:
  FusedRows(const Plan& plan, const Tile& tile, InputRows& input, Arena& arena)
      : p_(plan),
        t_(tile),
        input_(input),
        choice_(fused_choice_of(plan)),
        type_(choice_.loaded ? plan.acc : plan.in),
        bytes_(size_of(type_)),
        has_nan_(choice_.numbers ? has_nan_of(type_) : nullptr),
        unit_(choice_.pixels ? 1 : plan.inner),
        far_(beyond_caches(plan)),
        around_{{goes_around(), unit_bytes(), arena}, {goes_around() && choice_.pixels, unit_bytes(), arena}} {
    if (!choice_.run) return;
    const i64 row = choice_.pixels ? p_.inner : p_.axis[2].n_in * unit_;
    if (choice_.pixels || may_miss(p_.axis[0]) || may_miss(p_.axis[1]))  // rows are read with what is beside them
      none_ = arena.take(row * bytes_ + 2 * kBeside) + kBeside;
    const i64 column = 2 * (p_.inner + 64) * size_of(p_.acc == DType::u8 ? DType::u16 : p_.acc);  // of two output rows
    if (choice_.pixels && column * (p_.axis[2].kernel - 1) <= kKeptBytes)
      kept_ = arena.take(column * (p_.axis[2].kernel - 1));
    if (choice_.loaded) {
      const Axis &h = p_.axis[1], &w = p_.axis[2];
      const i64 seen = lower((lower(p_.tile_w, w.n_out) - 1) * w.stride + (w.kernel - 1) * w.dilation + 1, w.n_in);
      loaded_row_ = round_up(seen * bytes_ + 64, 64);
      loaded_rows_ = higher(kLoadedBytes / (loaded_row_ * p_.axis[0].kernel), (h.kernel - 1) * h.dilation + 1);
      loaded_ = arena.take(p_.axis[0].kernel * loaded_rows_ * loaded_row_);
    } else if (p_.finish == Finish::divide) {
      divisor_ = arena.take(lower(p_.tile_w, p_.axis[2].n_out) * unit_ * 8 + 256);
    }
    if (p_.code != Code::none) {
      first_column_ = arena.take_array<int32_t>(lower(p_.tile_w, p_.axis[2].n_out) + 64);
      place_taps();
    }
    if (!arena.base || !none_) return;
    with_type(type_, [&](auto tag) {
      using T = typename decltype(tag)::type;
      T none{};
      if constexpr (kIsFloat<T> || kIsHalf<T>) {
        const float inf = __builtin_inff();
        narrow(none, p_.merge == Merge::sum ? -0.0f : p_.merge == Merge::max ? -inf : inf);
      } else if (p_.merge != Merge::sum) {
        none = p_.merge == Merge::max ? Limits<T>::bottom : Limits<T>::top;
      }
      const i64 beside = kBeside / i64(sizeof(T));
      fill(none_ - kBeside, row + 2 * beside, none);
    });
  }
  explicit operator bool() const { return choice_.run != nullptr; }
  bool loads() const { return choice_.loaded; }

  // Loads what output rows [oh, oh1) see of the tile, and returns the first of them that it has no room for.
  i64 load(i64 oh, i64 oh1) {
    if (input_.direct()) return oh1;
    const Axis& h = p_.axis[1];
    const i64 reach = (h.kernel - 1) * h.dilation + 1;
    const i64 end = lower(oh1, oh + (loaded_rows_ - reach) / h.stride + 1);
    const i64 start = window_of(h, oh).start, from = higher(0, start),
              to = lower(h.n_in, window_of(h, end - 1).start + reach);
    const Window wd = window_of(p_.axis[0], t_.od);
    for (i64 t = wd.lo; t < wd.hi; ++t)  // nothing is read while rows are merged: the next ones are asked for now
      input_.rows(wd.at(t), from, to, loaded_rows_, loaded_ + (t * loaded_rows_ + from - start) * loaded_row_,
                  loaded_row_);
    field_ = {loaded_ - start * loaded_row_, loaded_rows_ * loaded_row_, loaded_row_, t_.w_lo, t_.columns()};
    return end;
  }

  // Output rows [oh0, oh1), y_step bytes apart from y on; other(oh) makes one that has met a NaN.
  template <class F>
  void run(const Buffers& buffers, char* y, i64 y_step, i64 oh0, i64 oh1, F&& other) {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const Window wd = window_of(p_.axis[0], t_.od);
    FusedJob job;
    begin(buffers, wd, y_step, job);
    i64 looked = 0, clean_from = INT64_MIN;  // rows in which NaNs were looked for, and behind the last one found
    for (i64 oh = oh0; oh < oh1; oh += job.count) {
      const Window wh = window_of(h, oh);
      const i64 end = wh.lo < wh.hi ? wh.at(wh.hi - 1) + 1 : 0;
      const bool known = wh.step == 1 || h.stride == 1;  // that the kernel looks through every row sooner or later
      if (has_nan_) {
        const i64 own = !known ? end : lower(end, wh.at(wh.taps - (wh.step == 1 ? w.stride : 1)));
        for (i64 r = higher(higher(0, wh.start), looked); r < own; ++r)
          if (any_nan(wd, r)) clean_from = r + 1;
        looked = higher(looked, own);
      }
      job.count = 1;
      if (wh.start < clean_from) {
        other(oh);
        continue;
      }
      // The next rows with it, as long as they see no more new rows each than the kernel looks through.
      if (!has_nan_ || (h.stride <= w.stride && known)) job.count = alike(oh, oh1, wh);
      place_rows(oh, wd, wh, job);
      job.y = y + (oh - oh0) * job.y_step;
      job.y_behind = (oh1 - oh - job.count) * job.y_step;
      looked = higher(looked, end + (job.count - 1) * h.stride);
      if (!choice_.run(job)) continue;
      finish();  // before those rows are written again
      for (i64 r = 0; r < job.count; ++r) other(oh + r);
      clean_from = looked;
    }
  }

  // How many planes it takes at once: as many as stay in the L1 cache, and such that lie without gaps.
  i64 planes_at_once() const {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const i64 plane = h.n_in * w.n_in, last = p_.n_outer - 1;
    const bool seen = !has_nan_ || (h.stride <= w.stride && h.dilation == 1);  // that every row is looked through
    const bool whole =
        d.n_in == 1 && d.n_out == 1 && d.kernel == 1 && d.pad == 0 && p_.rows_block >= h.n_out && p_.tile_w >= w.n_out;
    if (!choice_.planes || !seen || !whole || last < 0 || plane == 0 || p_.x_stride[1] != w.n_in ||
        p_.x_outer[last] != plane)
      return 1;
    return higher(1, lower(p_.outer[last], kLoadedBytes / (plane * bytes_)));
  }
  // All rows of so many planes from the tile's on; false if it has met a NaN: then they are worth nothing.
  bool run_planes(const Buffers& buffers, i64 planes, char* y, i64 y_step) {
    const Axis& h = p_.axis[1];
    const Window wd = window_of(p_.axis[0], t_.od);
    FusedJob job;
    begin(buffers, wd, y_step, job);
    job.planes = planes, job.x_plane = p_.x_outer[p_.n_outer - 1] * bytes_;
    job.y_plane = p_.y_outer[p_.n_outer - 1] * bytes_;
    if (p_.code != Code::none) job.codes_plane = p_.code_outer[p_.n_outer - 1] * code_bytes();
    for (i64 oh = 0; oh < h.n_out; oh += job.count) {
      const Window wh = window_of(h, oh);
      job.count = alike(oh, h.n_out, wh);
      place_rows(oh, wd, wh, job);
      job.y = y + oh * job.y_step;
      job.y_behind = (h.n_out - oh - job.count) * job.y_step;
      if (!choice_.run(job)) continue;
      finish();
      return false;
    }
    return true;
  }
  // Nothing follows, or somebody writes the same rows again.
  void finish() {
    for (AroundCaches& rows : around_) rows.finish();
  }

 private:
  // Rows of stride 2 are few beside their inputs: collecting them costs what it spares.
  bool goes_around() const {
    return choice_.run && !choice_.loaded && (choice_.pixels || p_.axis[2].stride == 1) && p_.code == Code::none &&
           p_.tile_w >= p_.axis[2].n_out && in_one_piece(p_, p_.y_stride) && AroundCaches::gain(p_, &Axis::n_out);
  }
  i64 unit_bytes() const { return (choice_.pixels ? 1 : p_.axis[2].n_out) * p_.inner * bytes_; }  // written at once
  // What all jobs of a tile have in common.
  void begin(const Buffers& buffers, const Window& wd, i64 y_step, FusedJob& job) {
    const Axis& w = p_.axis[2];
    if (!choice_.loaded || input_.direct()) {
      const i64 plane = p_.x_stride[0] * bytes_;
      const char* x = static_cast<const char*>(buffers.x) + outer_offset(p_, p_.x_outer, t_.outer) * bytes_;
      field_ = {x + wd.start * plane, wd.step * plane, p_.x_stride[1] * bytes_, 0, w.n_in * unit_};
      // What lies between the rows of a view may be anything: a NaN, say.
      if (!buffers.rows_alone && field_.row == field_.cols * bytes_) {
        const Extent array = extent_of(p_);
        job.x_begin = static_cast<const char*>(buffers.x) + array.begin * bytes_;
        job.x_end = static_cast<const char*>(buffers.x) + array.end * bytes_;
      }
    }
    job.cols = field_.cols, job.start = (t_.ow0 * w.stride - w.pad) * unit_ - field_.first;
    job.n = t_.outputs() * unit_;
    job.y_step = y_step;
    job.in_order = far_ && !choice_.loaded && p_.axis[0].kernel * p_.axis[1].kernel > 1 && job.cols * bytes_ < kPage;
    if (job.in_order && p_.axis[0].n_in == 1) job.ahead = ahead();
    job.inner = p_.inner, job.pitch = p_.x_stride[2], job.y_pitch = p_.y_stride[2], job.stride = w.stride;
    job.far = far_;
    job.around = around_[0] ? around_ : nullptr;
    job.dilation = w.dilation, job.none = none_, job.kept = kept_;
    if (first_column_) place_codes(buffers, job);
  }
  // Where a page further in the order of reading lies: the rows of a view have gaps between them, and so have its planes.
  Ahead ahead() const {
    const i64 row = field_.row, plane = p_.axis[1].n_in * row;
    Ahead a;
    if (row > field_.cols * bytes_) a.by = ceil_div(kPage, row) * row;
    if (t_.outer + 1 == outer_size(p_)) return a;
    a.gap = (outer_offset(p_, p_.x_outer, t_.outer + 1) - outer_offset(p_, p_.x_outer, t_.outer)) * bytes_ - plane;
    if (a.gap != 0) a.end = field_.at + plane;
    return a;
  }
  // How many rows from oh on, whose window is wh, miss as little as it does: all the next ones, if it misses nothing.
  i64 alike(i64 oh, i64 oh1, const Window& wh) const {
    if (wh.lo > 0 || wh.hi < wh.taps) return 1;
    return lower(oh1 - oh, (p_.axis[1].n_in - wh.at(wh.taps - 1) - 1) / p_.axis[1].stride + 1);
  }
  // Where a job finds its input rows, the first of which are those of output row oh; and what it divides by.
  void place_rows(i64 oh, const Window& wd, const Window& wh, FusedJob& job) {
    const i64 row = field_.row, step = wh.step * row;
    int i = 0;
    for (i64 d = 0; d < wd.taps; ++d) {
      const bool plane = d >= wd.lo && d < wd.hi;
      const char* from = field_.at + d * field_.plane + wh.start * row;
      for (i64 t = 0; t < wh.taps; ++t, from += step, ++i) {
        const bool there = plane && t >= wh.lo && t < wh.hi;
        job.rows[i] = there ? from : none_;
        job.step[i] = there ? p_.axis[1].stride * row : 0;
      }
    }
    if (first_column_) place_codes_of(oh, wd, wh, job);
    job.by.divisor = divisor_ ? divisor_row(oh) : nullptr;  // which also says what it holds
    job.by.reciprocal = reciprocal_, job.by.bytes = byte_division_;
  }
  i64 code_bytes() const { return p_.code == Code::index ? 8 : 1; }
  i64 place(i64 d, i64 h, i64 w) const {  // of an element, as the winners are counted
    const bool index = p_.code == Code::index;
    return (d * (index ? p_.axis[1].n_in : p_.axis[1].kernel) + h) * (index ? p_.axis[2].n_in : p_.axis[2].kernel) + w;
  }
  void place_taps() {
    int i = 0;
    for (i64 d = 0; d < p_.axis[0].kernel; ++d)
      for (i64 h = 0; h < p_.axis[1].kernel; ++h)
        for (i64 w = 0; w < p_.axis[2].kernel; ++w) taps_[i++] = int32_t(place(d, h, w));
  }
  // For a tile, and then for the rows from oh on.
  void place_codes(const Buffers& buffers, FusedJob& job) {
    const i64 bytes = code_bytes();
    for (i64 o = 0; t_.ow0 != columns_of_ && o < t_.outputs() + 64; ++o)
      first_column_[o] = o < t_.outputs() ? int32_t(window_of(p_.axis[2], t_.ow0 + o).lo) : 0;
    columns_of_ = t_.ow0;
    job.tap = taps_, job.first_column = first_column_;
    codes_ =
        static_cast<char*>(buffers.code) +
        (outer_offset(p_, p_.code_outer, t_.outer) + t_.od * p_.code_stride[0] + t_.ow0 * p_.code_stride[2]) * bytes;
    job.codes_step = p_.code_stride[1] * bytes;
    job.index_step = p_.axis[1].stride * p_.axis[2].n_in;
  }
  void place_codes_of(i64 oh, const Window& d, const Window& h, FusedJob& job) {
    job.codes = codes_ + oh * job.codes_step;
    job.first_row = int32_t(place(d.lo, h.lo, 0));
    job.index = (d.start * p_.axis[1].n_in + h.start) * p_.axis[2].n_in + job.start;
  }

  // Row h of the window's planes.
  bool any_nan(const Window& d, i64 h) const {
    bool any = false;
    for (i64 t = d.lo; t < d.hi; ++t) any |= has_nan_(field_.at + t * field_.plane + h * field_.row, field_.cols);
    return any;
  }
  static bool may_miss(const Axis& a) {  // whether some window has a tap outside the data
    return a.pad > 0 || (a.n_out - 1) * a.stride - a.pad + (a.kernel - 1) * a.dilation >= a.n_in;
  }

  // Multiplying by the reciprocal is less work, and as exact for powers of two; for sums of bytes also for odd numbers,
  // whose quotients are never ties and at least 1 / (2 by) away from one.
  bool exact_reciprocal(double by) const {
    const i64 whole = i64(by);
    if (double(whole) != by || whole <= 0) return false;
    return (whole & (whole - 1)) == 0 || (p_.in == DType::u8 && whole % 2 == 1 && whole < 1024);
  }
  const char* divisor_row(i64 oh) {
    const bool constant = p_.divisor == Divisor::constant;
    const double rows = constant ? p_.divisor_value
                                 : double(divisor_of(p_.forward[0], t_.od, p_.divisor)) *
                                       double(divisor_of(p_.forward[1], oh, p_.divisor));
    // Where no column misses a tap, they are all alike, in every tile.
    const bool alike = constant || !may_miss(p_.forward[2]);
    const i64 first = alike ? 0 : t_.ow0;
    if (rows != rows_ || first != first_) {
      rows_ = rows, first_ = first;
      reciprocal_ = true;
      bool even = true;
      double last = 0;
      const auto put = [&](auto* out) {
        const i64 n = alike ? lower(p_.tile_w, p_.axis[2].n_out) : t_.outputs();
        for (i64 o = 0; o < n; ++o) {
          const double by = constant ? rows : rows * double(divisor_of(p_.forward[2], first + o, p_.divisor));
          reciprocal_ &= exact_reciprocal(by);
          even &= o == 0 || by == last;
          last = by;
          for (i64 u = 0; u < unit_; ++u) narrow(out[o * unit_ + u], by);
        }
        for (i64 o = 0; reciprocal_ && o < n * unit_; ++o) out[o] = 1 / out[o];
        for (i64 o = n * unit_; o < n * unit_ + 256 / i64(sizeof *out); ++o) out[o] = 1;  // lanes that are not stored
      };
      // Sums of ints are doubles here, though the engine has them as ints.
      p_.acc == DType::f64 || p_.in == DType::i32 ? put(reinterpret_cast<double*>(divisor_))
                                                  : put(reinterpret_cast<float*>(divisor_));
      const i64 taps = p_.axis[0].kernel * p_.axis[1].kernel * p_.axis[2].kernel;
      const bool whole = even && p_.in == DType::u8 && last >= 1 && last < 65536 && last == double(i64(last));
      byte_division_ = whole ? ByteDivision(i64(last), taps * 255) : ByteDivision{};
    }
    return divisor_;
  }
};

}  // namespace
}  // namespace anypool
