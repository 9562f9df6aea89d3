// The backward pass of max and min. Over narrow windows every input gathers, from the outputs that saw it, the gradients
// of those it won (`select_rows.hpp`); else the gradients of a block of rows are put, output after output, where their
// winners are, while the block is in the cache. Each element is written to memory once, and adds up what it won in the
// order of the outputs: both ways give the same bits.
#pragma once
#include "around.hpp"
#include "input_rows.hpp"
#include "select_rows.hpp"

namespace anypool {
namespace {

// A: what gradients add up in. In this pass the axes of the plan are the forward ones: their n_out belongs to grad_y (x
// here) and the codes, their n_in to grad_x (y here).
template <class A>
class SelectBackward {
  static constexpr i64 kBlockBytes = 64 << 10, kMostBlockBytes = 1 << 20;
  static constexpr i64 kLoaded = 4096;  // elements of outputs that are loaded at once, if they must be
  static constexpr i64 kTable = 4096;   // taps whose place is looked up instead of worked out
  static constexpr i64 kNowhere = INT64_MIN / 4;
  static constexpr DType kAcc = sizeof(A) == 4 ? DType::f32 : DType::f64;
  // Rows of outputs, from one on: how far apart rows and columns lie, in elements.
  template <class E>
  struct Rows {
    const E* at;
    i64 row, column;
  };
  const Plan& p_;
  const Buffers buf_;
  Arena arena_;
  const SelectRowsRun narrow_;
  const i64 block_;  // rows of inputs that are added up at once
  AroundCaches around_;
  const i64 taps_;            // of a plane of a window
  bool in_place_ = false;     // whether sums are added up in grad_x itself
  A* sums_ = nullptr;         // else those of a block
  i64 row_ = 0, column_ = 0;  // how far apart those of a block lie, in elements
  A* grad_ = nullptr;         // rows of outputs, if they must be converted or gathered
  i64* code_ = nullptr;
  i64 loaded_ = 1;        // how many
  i64* start_ = nullptr;  // where the window of each column of outputs begins, in a row of a block
  i64* place_ = nullptr;  // of each tap of a plane, from there; of codes of a byte, of each code in each depth
  i64 c0_ = 0, cb_ = 0, outer_ = 0;

 public:
  SelectBackward(const Plan& plan, const Buffers& buffers, char* scratch)
      : p_(plan),
        buf_(buffers),
        arena_{uintptr_t(scratch)},
        narrow_(select_rows_of(plan)),
        block_(rows_at_once()),
        around_(goes_around(), (narrow_ ? 1 : block_) * plan.axis[2].n_in * plan.inner * size_of(plan.out), arena_),
        taps_(plan.axis[1].kernel * plan.axis[2].kernel) {
    if (narrow_) return;
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const i64 cb = lower(p_.tile_c, p_.inner), row = w.n_out * cb;
    loaded_ = higher(1, lower(h.n_out, kLoaded / higher(1, row)));  // there may be no outputs at all
    const auto channels = [&](const i64* stride) { return p_.inner == 1 || stride[3] == 1; };
    const bool forwards = p_.y_stride[2] >= cb && p_.y_stride[1] >= w.n_in * p_.y_stride[2];
    const bool halves = p_.in == p_.out && channels(p_.x_stride) && apart();  // nothing is added to anything
    row_ = w.n_in * cb, column_ = cb;
    in_place_ = forwards && !around_ && channels(p_.y_stride) && (p_.out == kAcc || halves);
    if (in_place_)
      row_ = p_.y_stride[1], column_ = p_.y_stride[2];
    else
      sums_ = arena_.take_array<A>(block_ * row_);
    if ((!in_place_ && p_.in != kAcc) || !channels(p_.x_stride)) grad_ = arena_.take_array<A>(loaded_ * row);
    if (!bytes() || !channels(p_.code_stride)) code_ = arena_.take_array<i64>(loaded_ * row);
    start_ = arena_.take_array<i64>(w.n_out);
    const i64 places = bytes() ? 256 * d.kernel : taps_ <= kTable ? taps_ : 0;
    if (places) place_ = arena_.take_array<i64>(places);
    if (!arena_.base) return;
    for (i64 o = 0; o < w.n_out; ++o) {
      const Window window = window_of(w, o);
      start_[o] = window.lo < window.hi ? window.start * column_ : kNowhere;
    }
    for (i64 i = 0; i < places; ++i) {
      const i64 t = bytes() ? i % 256 - i / 256 * taps_ : i;
      place_[i] = t >= 0 && t < taps_ ? place(t) : kNowhere;
    }
  }
  i64 scratch_bytes() const { return arena_.used; }

  // A task is (outer, inner block, input d, block of input rows).
  void run(i64 begin, i64 end) {
    const i64 blocks = ceil_div(p_.axis[1].n_in, p_.rows_block), chunks = ceil_div(p_.inner, p_.tile_c);
    for (i64 task = begin; task < end; ++task) {
      i64 rest = task;
      const i64 block = rest % blocks;
      rest /= blocks;
      const i64 id = rest % p_.axis[0].n_in;
      rest /= p_.axis[0].n_in;
      c0_ = rest % chunks * p_.tile_c;
      cb_ = lower(p_.tile_c, p_.inner - c0_);
      outer_ = rest / chunks;
      const i64 first = block * p_.rows_block, last = lower(first + p_.rows_block, p_.axis[1].n_in);
      if (narrow_)
        narrow_rows(id, first, last);
      else
        for (i64 ih = first; ih < last; ih += block_) {
          const i64 to = lower(ih + block_, last);
          if (!in_place_ || p_.out == kAcc)
            put_block<A>(id, ih, to);
          else
            p_.out == DType::bf16 ? put_block<bf16>(id, ih, to) : put_block<f16>(id, ih, to);
        }
    }
    around_.finish();
  }

 private:
  // Maxima of rows, not of pixels, at stride 1 are slower than memory, whichever way they take to it.
  bool goes_around() const {
    const bool slow = narrow_ && p_.inner == 1 && p_.axis[2].stride == 1;
    return in_one_piece(p_, p_.y_stride) && !slow && AroundCaches::gain(p_, &Axis::n_in);
  }
  // Whether no input is seen by two outputs.
  bool apart() const {
    for (const Axis& a : p_.axis)
      for (i64 o = 1; o < a.n_out; ++o)
        if (a.kind == AxisKind::sliding ? a.stride <= (a.kernel - 1) * a.dilation
                                        : a.first[o] <= a.first[o - 1] + (a.count[o - 1] - 1) * a.dilation)
          return false;
    return true;
  }
  // Rows of a block: few windows should reach from one into the next.
  i64 rows_at_once() const {
    const Axis& h = p_.axis[1];
    const i64 bytes = p_.axis[2].n_in * lower(p_.tile_c, p_.inner) * i64(sizeof(A));
    const i64 reach = h.kind == AxisKind::sliding ? (h.kernel - 1) * h.dilation + 1 : h.kernel;
    const i64 rows = higher(kBlockBytes / bytes, 2 * lower(reach, kMostBlockBytes / bytes / 2));
    return lower(p_.rows_block, higher(1, rows));
  }

  // The outputs o that may have seen input j, as a range; tap_of() then tells by which tap.
  static void candidates(const Axis& a, i64 j, i64& first, i64& last) {
    if (a.kind == AxisKind::sliding) {
      first = higher(0, ceil_div(j + a.pad - (a.kernel - 1) * a.dilation, a.stride));
      last = lower(a.n_out - 1, floor_div(j + a.pad, a.stride));
      return;
    }
    first = 0, last = a.n_out - 1;  // starts and ends ascend
    while (first <= last && a.first[first] + (a.count[first] - 1) * a.dilation < j) ++first;
    while (last >= first && a.first[last] > j) --last;
  }
  static i64 tap_of(const Axis& a, i64 o, i64 j) {  // -1: not seen
    const Window w = window_of(a, o);
    const i64 d = j - w.start;
    if (w.step == 1) return d >= 0 && d < w.hi ? d : -1;  // spares two divisions
    return d >= 0 && d % w.step == 0 && d / w.step < w.hi ? d / w.step : -1;
  }
  i64 offset(const i64* outer, const i64* stride, i64 d, i64 h) const {
    return outer_offset(p_, outer, outer_) + d * stride[0] + h * stride[1] + c0_ * stride[3];
  }

  // Input rows one after the other: the outputs that saw them follow without a division.
  void narrow_rows(i64 id, i64 begin, i64 end) {
    const Axis &d = p_.axis[0], &h = p_.axis[1];
    const i64 bytes = size_of(p_.in), taps = p_.axis[2].kernel, reach = (h.kernel - 1) * h.dilation,
              apart = outputs_apart(h), y_row = p_.y_stride[1] * bytes, written = p_.axis[2].n_in * cb_ * bytes;
    const char* grad = static_cast<const char*>(buf_.x) + offset(p_.x_outer, p_.x_stride, 0, 0) * bytes;
    const uint8_t* code = static_cast<const uint8_t*>(buf_.code) + offset(p_.code_outer, p_.code_stride, 0, 0);
    char* y = static_cast<char*>(buf_.y) + offset(p_.y_outer, p_.y_stride, id, begin) * bytes;
    SeenRows seen;
    seen.grad_step = apart * p_.x_stride[1] * bytes, seen.code_step = apart * p_.code_stride[1];
    seen.base_step = -(apart * h.stride / h.dilation) * taps;
    i64 od0, od1, oh0, oh1;
    candidates(d, id, od0, od1);
    candidates(h, begin, oh0, oh1);
    for (i64 od = od0; od <= od1; ++od)
      if (const i64 td = tap_of(d, od, id); td >= 0)
        seen.depth[seen.depths++] = {grad + od * p_.x_stride[0] * bytes, code + od * p_.code_stride[0],
                                     td * h.kernel * taps};
    for (i64 ih = begin; ih < end; ++ih, y += y_row) {
      while (oh0 < h.n_out && oh0 * h.stride - h.pad + reach < ih) ++oh0;
      while (oh1 + 1 < h.n_out && (oh1 + 1) * h.stride - h.pad <= ih) ++oh1;
      i64 oh = oh0, th = ih + h.pad - oh * h.stride;
      if (h.dilation > 1) {
        for (; oh <= oh1 && th % h.dilation; ++oh) th -= h.stride;
        th /= h.dilation;
      }
      seen.rows = oh > oh1 ? 0 : apart == 1 ? int(oh1 - oh + 1) : int((oh1 - oh) / apart + 1);
      seen.grad = oh * p_.x_stride[1] * bytes, seen.code = oh * p_.code_stride[1], seen.base = th * taps;
      narrow_(p_, seen, around_.room(y), cb_);
      around_.wrote(written);
    }
  }

  // Codes of a byte are looked up as they are.
  bool bytes() const { return p_.code == Code::u8; }
  // Of a tap of a plane, from its window's first one, in a block.
  i64 place(i64 t) const {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    return t / w.kernel * h.dilation * row_ + t % w.kernel * w.dilation * column_;
  }

  // Rows [begin, end) of depth id, added up as E, from all outputs that may have seen them.
  template <class E>
  void put_block(i64 id, i64 begin, i64 end) {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    const i64 at = offset(p_.y_outer, p_.y_stride, id, begin);
    E* const block = in_place_ ? static_cast<E*>(buf_.y) + at : reinterpret_cast<E*>(sums_);
    clear(block, end - begin);
    const i64 limit = (end - begin - 1) * row_ + w.n_in * column_;
    i64 od0, od1, oh0, oh1, unused;
    candidates(d, id, od0, od1);
    candidates(h, begin, oh0, unused);
    candidates(h, end - 1, unused, oh1);
    for (i64 od = od0; od <= od1; ++od) {
      const i64 td = tap_of(d, od, id);
      for (i64 oh = oh0; td >= 0 && oh <= oh1; oh += loaded_) {
        const i64 n = lower(loaded_, oh1 + 1 - oh);
        const auto grad = rows_of<E>(buf_.x, p_.in, p_.x_outer, p_.x_stride, od, oh, n, reinterpret_cast<E*>(grad_));
        const auto put_rows = [&](const auto& codes, auto&& place_of) {
          for (i64 i = 0; i < n; ++i) {
            const Window window = window_of(h, oh + i);
            if (window.lo == window.hi) continue;
            const i64 start = (window.start - begin) * row_;
            put(grad.at + i * grad.row, grad.column, codes.at + i * codes.row, codes.column, start, block, limit,
                place_of);
          }
        };
        if (bytes() && !code_) {
          const i64* const places = place_ + td * 256;
          put_rows(rows_of<uint8_t>(buf_.code, DType::u8, p_.code_outer, p_.code_stride, od, oh, n, nullptr),
                   [places](uint8_t code) { return places[code]; });
          continue;
        }
        const i64 first = td * taps_, taps = taps_;
        const i64* const places = bytes() ? place_ + td * 256 + first : place_;
        put_rows(rows_of<i64>(buf_.code, type_of(p_.code), p_.code_outer, p_.code_stride, od, oh, n, code_),
                 [=](i64 code) {
                   const i64 t = code - first;
                   return t < 0 || t >= taps ? kNowhere : places ? places[t] : place(t);
                 });
      }
    }
    if (!in_place_) write(at, end - begin);
  }
  // n rows of outputs from (od, oh) on: where they lie or, if there is room for them at `into`, there.
  template <class E>
  Rows<E> rows_of(const void* base, DType type, const i64* outer, const i64* stride, i64 od, i64 oh, i64 n,
                  E* into) const {
    const i64 columns = p_.axis[2].n_out, at = offset(outer, stride, od, oh), bytes = size_of(type);
    if (!into) return {static_cast<const E*>(base) + at, stride[1], stride[2]};
    const Convert copy = converter(type, kSame<E, i64> ? DType::i64 : kAcc);
    const char* const from = static_cast<const char*>(base) + at * bytes;
    const i64 row = columns * cb_;
    if (stride[1] == row && stride[2] == cb_ && (p_.inner == 1 || stride[3] == 1)) {
      copy(into, 1, from, 1, n * row);
    } else {
      for (i64 i = 0; i < n; ++i)
        copy_columns(copy, {reinterpret_cast<char*>(into + i * row), i64(sizeof(E)), cb_, 1},
                     {const_cast<char*>(from) + i * stride[1] * bytes, bytes, stride[2], stride[3]}, columns, cb_,
                     p_.inner > 1);
    }
    return {into, row, cb_};
  }
  // Of a row of outputs, whose windows begin in the row of a block at `start`. What lies outside is another block's; or
  // the window is all padding, and has a winner there.
  template <class E, class C, class F>
  ANYPOOL_INLINE void put(const E* grad, i64 grad_step, const C* code, i64 code_step, i64 start, E* block, i64 limit,
                          F&& place_of) const {
    const i64 n = p_.axis[2].n_out, cb = cb_;
    const i64* const starts = start_;
    const auto one = [&](i64 o, i64 c) {
      const i64 at = start + starts[o] + place_of(code[o * code_step + c]);
      if (uint64_t(at) < uint64_t(limit)) narrow(block[at + c], widen(block[at + c]) + widen(grad[o * grad_step + c]));
    };
    if (cb == 1)
      for (i64 o = 0; o < n; ++o) one(o, 0);
    else
      for (i64 o = 0; o < n; ++o)
        for (i64 c = 0; c < cb; ++c) one(o, c);
  }
  template <class E>
  void clear(E* block, i64 rows) const {
    const i64 n = p_.axis[2].n_in, row = n * cb_;
    const bool whole = column_ == cb_ || n == 1;
    if (whole && (row_ == row || rows == 1)) return void(__builtin_memset(block, 0, size_t(rows * row) * sizeof(E)));
    for (i64 r = 0; r < rows; ++r)
      for (i64 j = 0; j < (whole ? 1 : n); ++j)
        __builtin_memset(block + r * row_ + j * column_, 0, size_t(whole ? row : cb_) * sizeof(E));
  }
  // What has been added up, to where it belongs.
  void write(i64 at, i64 rows) {
    const i64 n = p_.axis[2].n_in, bytes = size_of(p_.out);
    const Convert copy = converter(kAcc, p_.out);
    char* const y = static_cast<char*>(buf_.y) + at * bytes;
    const bool piece = p_.y_stride[1] == row_ && p_.y_stride[2] == column_ && (p_.inner == 1 || p_.y_stride[3] == 1);
    const i64 each = piece ? rows : 1;
    for (i64 r = 0; r < rows; r += each) {
      char* const to = around_.room(y + r * p_.y_stride[1] * bytes);
      copy_columns(copy, {to, bytes, p_.y_stride[2], p_.y_stride[3]},
                   {reinterpret_cast<char*>(sums_ + r * row_), i64(sizeof(A)), column_, 1}, each * n, cb_,
                   p_.inner > 1);
      around_.wrote(each * n * cb_ * bytes);
    }
  }
};

}  // namespace
}  // namespace anypool
