// The backward pass of max and min: every input gathers, from the windows that saw it, the gradients of those it won.
// Each gradient element is written once, in a fixed order; nothing is scattered into the output.
#pragma once
#include "around.hpp"
#include "elements.hpp"
#include "phases.hpp"
#include "scratch.hpp"
#include "select_rows.hpp"

namespace anypool {
namespace {

// A: what gradients add up in; I: an integer as wide, for the codes. In this pass the axes of the plan are the forward
// ones: their n_out belongs to grad_y (x here) and the codes, their n_in to grad_x (y here).
template <class A, class I>
class SelectBackward {
  static constexpr i64 kKeptBytes = 64 << 10;
  static constexpr int kMostRows = 27, kMostCodes = 4096;
  static constexpr DType kAcc = sizeof(A) == 4 ? DType::f32 : DType::f64;
  static constexpr DType kLane = sizeof(I) == 4 ? DType::i32 : DType::i64;
  const Plan& p_;
  const Buffers buf_;
  Arena arena_;
  bool by_taps_;  // see place()
  i64 cb_max_, places_, n_out_;
  A *sum_, *grad_, *line_;
  I* code_;
  i64 kept_ = 1, kept_h_ = 1, row_ = 0;  // output rows in scratch, those of one d, elements of a row
  i64* tag_;                             // which they are: od * n_out + oh
  struct Seen {                          // a row of outputs that saw an input row, with the code of its first tap there
    const A* grad;
    const I* code;
    I base;
  };
  const SelectRowsRun narrow_;
  char* narrow_scratch_ = nullptr;
  AroundCaches around_;           // for narrow_, which is slower than memory at stride 1
  i64* place_of_code_ = nullptr;  // windows that do not meet: where the taps of a plane lie in grad_x
  i64 c0_ = 0, cb_ = 0, outer_ = 0;

 public:
  SelectBackward(const Plan& plan, const Buffers& buffers, char* scratch)
      : p_(plan),
        buf_(buffers),
        arena_{uintptr_t(scratch)},
        narrow_(select_rows_of(plan)),
        around_(narrow_.run && plan.axis[2].stride > 1 && AroundCaches::gain(plan, &Axis::n_in),
                plan.axis[2].n_in * size_of(plan.out), arena_) {
    const Axis& w = p_.axis[2];
    cb_max_ = lower(p_.tile_c, p_.inner);
    n_out_ = w.n_out;
    const i64 left = higher(w.pad, 0);
    by_taps_ = sliding() && w.kernel <= 4 && higher(higher(left, w.stride), reach()) <= 4 * w.n_in + 64;
    places_ = by_taps_ ? phases() * (ceil_div(higher(w.n_in + left, reach()), phases()) + 1) : w.n_in;
    sum_ = arena_.take_array<A>(places_ * cb_max_);
    line_ = arena_.take_array<A>(w.n_in * cb_max_);
    // Input rows that follow one another are seen by the same output rows.
    const Axis &d = p_.axis[0], &h = p_.axis[1];
    row_ = round_up(n_out_ * cb_max_, 16);
    kept_h_ = seen_by(h);
    kept_ = lower(seen_by(d) * kept_h_, higher(1, kKeptBytes / higher(1, row_ * i64(sizeof(A) + sizeof(I)))));
    grad_ = arena_.take_array<A>(kept_ * row_);
    code_ = arena_.take_array<I>(kept_ * row_);
    tag_ = arena_.take_array<i64>(kept_);
    if (narrow_.run && seen_by(d) * kept_h_ <= kMostRows) {
      narrow_scratch_ = arena_.take(narrow_.scratch_bytes(p_));
      if (arena_.base) narrow_.prepare(p_, narrow_scratch_);
      return;
    }
    const i64 taps = d.kernel * h.kernel * w.kernel;
    if (p_.inner != 1 || p_.in != kAcc || p_.out != kAcc || taps > kMostCodes || !apart(d) || !apart(h) || !apart(w))
      return;
    place_of_code_ = arena_.take_array<i64>(h.kernel * w.kernel);
    for (i64 th = 0; arena_.base && th < h.kernel; ++th)
      for (i64 tw = 0; tw < w.kernel; ++tw)
        place_of_code_[th * w.kernel + tw] = th * h.dilation * p_.y_stride[1] + tw * w.dilation * p_.y_stride[2];
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
      for (i64 i = 0; i < kept_; ++i) tag_[i] = -1;
      const i64 last = lower((block + 1) * p_.rows_block, p_.axis[1].n_in);
      if (narrow_scratch_)
        narrow_rows(id, block * p_.rows_block, last);
      else if (place_of_code_)
        scatter(id, block * p_.rows_block, last);
      else
        for (i64 ih = block * p_.rows_block; ih < last; ++ih) input_row(id, ih);
    }
    around_.finish();
  }

 private:
  // Columns are summed where they are; by taps, at place (j + pad) % stride, (j + pad) / stride: there, one tap of all
  // windows is contiguous. Not where a stride, a gap or the padding is so wide that most places would be of no column.
  bool sliding() const { return p_.axis[2].kind == AxisKind::sliding; }
  i64 phases() const { return by_taps_ ? p_.axis[2].stride : 1; }
  i64 reach() const {  // of all windows of a row
    const Axis& w = p_.axis[2];
    return (w.n_out - 1) * w.stride + (w.kernel - 1) * w.dilation + 1;
  }
  i64 place(i64 j) const {
    const i64 q = by_taps_ ? j + p_.axis[2].pad : j, s = phases();
    return s == 1 ? q : q % s * (places_ / s) + q / s;
  }

  // How many outputs that follow one another an input may be seen by.
  static i64 seen_by(const Axis& a) {
    return a.kind == AxisKind::sliding ? (a.kernel - 1) * a.dilation / a.stride + 1 : a.kernel;
  }
  // The outputs o that may have seen input j, as a range; covers() then tells by which tap.
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

  // Windows that do not meet: each element has one winner at most to hear of, so that gradients are just put there.
  static bool apart(const Axis& a) {
    return a.kind == AxisKind::sliding && (a.n_out == 1 || a.stride > (a.kernel - 1) * a.dilation);
  }
  void scatter(i64 id, i64 begin, i64 end) {
    const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
    A* y = static_cast<A*>(buf_.y) + offset(p_.y_outer, p_.y_stride, id, 0);
    const i64 row = p_.y_stride[1], column = p_.y_stride[2];
    const bool whole = column == 1 && row == w.n_in;
    if (whole) fill(reinterpret_cast<char*>(y + begin * row), (end - begin) * row, A(0));
    for (i64 ih = begin; ih < end && !whole; ++ih) {
      if (column == 1)
        fill(reinterpret_cast<char*>(y + ih * row), w.n_in, A(0));
      else
        for (i64 j = 0; j < w.n_in; ++j) y[ih * row + j * column] = A(0);
    }
    i64 od0, od1, oh0, oh1, unused;
    candidates(d, id, od0, od1);
    if (od0 > od1) return;
    const i64 td = tap_of(d, od0, id);
    if (td < 0) return;
    candidates(h, begin, oh0, unused);
    candidates(h, end - 1, unused, oh1);
    const A* grad = static_cast<const A*>(buf_.x) + offset(p_.x_outer, p_.x_stride, od0, 0);
    const i64 code = offset(p_.code_outer, p_.code_stride, od0, 0), first = td * h.kernel * w.kernel;
    for (i64 oh = oh0; oh <= oh1; ++oh) {
      const Window wh = window_of(h, oh);
      const bool inside = wh.start >= begin && wh.at(wh.taps - 1) < end;
      const auto put = [&](auto zero) {
        using C = decltype(zero);
        put_row(grad + oh * p_.x_stride[1], static_cast<const C*>(buf_.code) + code + oh * p_.code_stride[1], first,
                y + wh.start * row - w.pad * column, [&](i64 c) {
                  const i64 ih = inside ? begin : wh.at(c / w.kernel);
                  return ih >= begin && ih < end;  // else it is another task's
                });
      };
      switch (p_.code) {
        case Code::u8: put(uint8_t{}); break;
        case Code::u16: put(uint16_t{}); break;
        case Code::i32: put(int32_t{}); break;
        default: put(i64{}); break;
      }
    }
  }
  template <class C, class F>
  ANYPOOL_INLINE void put_row(const A* grad, const C* code, i64 first, A* y, F&& ours) const {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    const i64 taps = h.kernel * w.kernel, step = w.stride * p_.y_stride[2];
    for (i64 o = 0; o < n_out_; ++o, y += step) {
      const i64 c = i64(code[o * p_.code_stride[2]]) - first;
      if (c < 0 || c >= taps) continue;  // won on another d
      if (ours(c)) y[place_of_code_[c]] = grad[o * p_.x_stride[2]] + A(0);
    }
  }

  // Input rows one after the other: the outputs that saw them follow without a division.
  void narrow_rows(i64 id, i64 begin, i64 end) {
    const Axis &d = p_.axis[0], &h = p_.axis[1];
    const i64 bytes = size_of(p_.in), taps = p_.axis[2].kernel, reach = (h.kernel - 1) * h.dilation;
    const char* grad = static_cast<const char*>(buf_.x) + offset(p_.x_outer, p_.x_stride, 0, 0) * bytes;
    const uint8_t* code = static_cast<const uint8_t*>(buf_.code) + offset(p_.code_outer, p_.code_stride, 0, 0);
    char* y = static_cast<char*>(buf_.y) + offset(p_.y_outer, p_.y_stride, id, 0) * bytes;
    i64 od0, od1, oh0, oh1;
    candidates(d, id, od0, od1);
    candidates(h, begin, oh0, oh1);
    for (i64 ih = begin; ih < end; ++ih) {
      while (oh0 < h.n_out && oh0 * h.stride - h.pad + reach < ih) ++oh0;
      while (oh1 + 1 < h.n_out && (oh1 + 1) * h.stride - h.pad <= ih) ++oh1;
      SeenRow seen[kMostRows];
      int n = 0;
      for (i64 od = od0; od <= od1; ++od) {
        const i64 td = tap_of(d, od, id);
        for (i64 oh = oh0; td >= 0 && oh <= oh1; ++oh) {
          i64 th = ih - (oh * h.stride - h.pad);
          if (h.dilation > 1) {
            if (th % h.dilation) continue;
            th /= h.dilation;
          }
          seen[n++] = {grad + (od * p_.x_stride[0] + oh * p_.x_stride[1]) * bytes,
                       code + od * p_.code_stride[0] + oh * p_.code_stride[1], (td * h.kernel + th) * taps};
        }
      }
      narrow_.run(p_, narrow_scratch_, seen, n, around_.room(y + ih * p_.y_stride[1] * bytes));
      around_.wrote(p_.axis[2].n_in * bytes);
    }
  }
  void input_row(i64 id, i64 ih) {
    const Axis &d = p_.axis[0], &h = p_.axis[1];
    fill(reinterpret_cast<char*>(sum_), places_ * cb_, A(0));
    i64 od0, od1, oh0, oh1;
    candidates(d, id, od0, od1);
    candidates(h, ih, oh0, oh1);
    for (i64 od = od0; od <= od1; ++od) {
      const i64 td = tap_of(d, od, id);
      if (td < 0) continue;
      for (i64 oh = oh0; oh <= oh1; ++oh) {
        const i64 th = tap_of(h, oh, ih);
        if (th < 0) continue;
        Seen seen;
        output_row(od, oh, (td * h.kernel + th) * p_.axis[2].kernel, seen);
        add_row(seen);
      }
    }
    write_row(id, ih);
  }

  void output_row(i64 od, i64 oh, i64 base, Seen& row) {  // field by field: see Source
    const i64 which = od * p_.axis[1].n_out + oh, slot = (od * kept_h_ + oh % kept_h_) % kept_;
    A* grad = grad_ + slot * row_;
    I* code = code_ + slot * row_;
    if (tag_[slot] != which) {
      tag_[slot] = which;
      load_grad(od, oh, grad);
      load_codes(od, oh, code);
    }
    row.grad = grad;
    row.code = code;
    row.base = I(base);
  }

  void add_row(const Seen& row) {
    const Axis& w = p_.axis[2];
    if (by_taps_) {
      for (i64 t = w.kernel - 1; t >= 0; --t) {  // last tap first: each place then adds its windows in ascending order
        const i64 q = t * w.dilation;
        add_where(sum_ + (q % w.stride * (places_ / w.stride) + q / w.stride) * cb_, row, I(row.base + t),
                  n_out_ * cb_);
      }
      return;
    }
    for (i64 o = 0; o < n_out_; ++o) {  // wide or irregular windows: each output knows its winner's place in this row
      const i64 start = sliding() ? o * w.stride - w.pad : w.first[o];
      for (i64 c = 0; c < cb_; ++c) {
        const i64 t = i64(row.code[o * cb_ + c]) - row.base, j = start + t * w.dilation;
        if (t >= 0 && t < w.kernel && j >= 0 && j < w.n_in)  // a window of padding alone has a winner there
          sum_[j * cb_ + c] += row.grad[o * cb_ + c];
      }
    }
  }
  static void add_where(A* sum, const Seen& row, I code, i64 n) {
    const A* grad = row.grad;
    const I* codes = row.code;
#pragma GCC ivdep
    for (i64 i = 0; i < n; ++i) sum[i] += codes[i] == code ? grad[i] : A(0);
  }

  void load_grad(i64 od, i64 oh, A* into) {
    const i64 at = offset(p_.x_outer, p_.x_stride, od, oh);
    load_columns(converter(p_.in, kAcc), into, sizeof(A), static_cast<const char*>(buf_.x) + at * size_of(p_.in),
                 size_of(p_.in), p_.x_stride);
  }
  void load_codes(i64 od, i64 oh, I* into) {
    const i64 at = offset(p_.code_outer, p_.code_stride, od, oh);
    const DType type = p_.code == Code::u8    ? DType::u8
                       : p_.code == Code::u16 ? DType::u16
                       : p_.code == Code::i32 ? DType::i32
                                              : DType::i64;
    load_columns(converter(type, kLane), into, sizeof(I), static_cast<const char*>(buf_.code) + at * size_of(type),
                 size_of(type), p_.code_stride);
  }
  void load_columns(Convert copy, void* into, i64 bytes, const char* in, i64 in_bytes, const i64* stride) {
    if (p_.inner == 1) return copy(into, 1, in, stride[2], n_out_);
    for (i64 o = 0; o < n_out_; ++o)
      copy(static_cast<char*>(into) + o * cb_ * bytes, 1, in + o * stride[2] * in_bytes, stride[3], cb_);
  }
  i64 offset(const i64* outer, const i64* stride, i64 d, i64 h) const {
    i64 at = d * stride[0] + h * stride[1] + c0_ * stride[3], rest = outer_;
    for (int a = p_.n_outer - 1; a >= 0; --a) {
      at += rest % p_.outer[a] * outer[a];
      rest /= p_.outer[a];
    }
    return at;
  }

  void write_row(i64 id, i64 ih) {
    const i64 n = p_.axis[2].n_in, at = offset(p_.y_outer, p_.y_stride, id, ih);
    const A* line = line_;
    if (phases() == 1) {
      line = sum_ + place(0) * cb_;
    } else if (cb_ == 1) {
      join_phases(sizeof(A), reinterpret_cast<char*>(line_), reinterpret_cast<const char*>(sum_), places_ / phases(),
                  p_.axis[2].pad, n, phases());
    } else {
      for (i64 j = 0; j < n; ++j) {
        const A* from = sum_ + place(j) * cb_;
        for (i64 c = 0; c < cb_; ++c) line_[j * cb_ + c] = from[c];
      }
    }
    const Convert copy = converter(kAcc, p_.out);
    const i64 bytes = size_of(p_.out);
    char* y = static_cast<char*>(buf_.y) + at * bytes;
    if (p_.inner == 1) return copy(y, p_.y_stride[2], line, 1, n);
    for (i64 j = 0; j < n; ++j) copy(y + j * p_.y_stride[2] * bytes, p_.y_stride[3], line + j * cb_, 1, cb_);
  }
};

}  // namespace
}  // namespace anypool
