// The output, row by row: finished, converted, stored; and the winners' codes or indices beside it.
#pragma once
#include "around.hpp"
#include "input_rows.hpp"

namespace anypool {
namespace {

constexpr i64 kOffsetTable = 4096;  // codes whose place in the input is looked up instead of computed

inline i64 taps_of(const Plan& p) { return p.axis[0].kernel * p.axis[1].kernel * p.axis[2].kernel; }

class OutputRow {
  const Plan& p_;
  const Kernel& k_;
  const Tile& t_;
  const Convert store_;
  const i64 bytes_;
  const bool small_sums_;                         // of 8-bit integers, below 2^22
  const bool exact_sums_;                         // of at most 32-bit integers, below 2^50
  const bool merged_in_place_, powers_in_place_;  // whether rows are merged, or multiplied by powers, where they lie
  i64 divisor_from_ = -1, divisor_to_ = -1;       // the columns that divisor_w_ holds
  bool even_divisor_ = false;                     // the same for all columns of the tile
  Row row_;
  double *wide_, *divisor_w_;
  i64* offset_;
  AroundCaches around_;
  char* last_ = nullptr;  // the row that goes around the caches, which may be repeated
  const Buffers* buffers_ = nullptr;
  char* y_ = nullptr;

 public:
  // `alone`: nobody else writes rows.
  OutputRow(const Plan& plan, const Kernel& kernel, const Tile& tile, Arena& arena, i64 n, bool alone)
      : p_(plan),
        k_(kernel),
        t_(tile),
        store_(converter(plan.acc, plan.out)),
        bytes_(size_of(plan.out)),
        small_sums_(size_of(plan.in) == 1 && taps_of(plan) <= i64(1) << 14),
        exact_sums_(plan.in < DType::f16 && size_of(plan.in) <= 4 && taps_of(plan) <= i64(1) << 18),
        merged_in_place_(!kernel.b_bytes && plan.out == plan.acc &&
                         (plan.inner == 1 ? plan.y_stride[2] == 1 || plan.axis[2].n_out == 1 : plan.y_stride[3] == 1)),
        powers_in_place_(!kernel.b_bytes && plan.finish >= Finish::times_power && has_doubles(plan.out) &&
                         in_one_piece(plan, plan.y_stride) && in_one_piece(plan, plan.post_stride)),
        around_(alone && whole_rows() && AroundCaches::gain(plan, &Axis::n_out), n * bytes_, arena) {
    row_ = take_row(arena, k_, n);
    wide_ = arena.take_array<double>(n);
    divisor_w_ = arena.take_array<double>(n);
    const i64 taps = taps_of(p_);
    const bool table = p_.code == Code::index && taps <= kOffsetTable;
    offset_ = table ? arena.take_array<i64>(taps) : nullptr;
    for (i64 c = 0; table && arena.base && c < taps; ++c) offset_[c] = offset_of(c);
    if (around_) last_ = arena.take(n * bytes_);
  }

  void place(const Buffers& buffers) {
    buffers_ = &buffers;
    y_ = static_cast<char*>(buffers.y) + tile_offset(p_, t_, p_.y_outer, p_.y_stride, t_.od, 0, t_.ow0) * bytes_;
  }
  void place_divisors() {
    if (p_.finish != Finish::divide || p_.divisor == Divisor::constant) return;
    if (t_.ow0 == divisor_from_ && t_.ow1 == divisor_to_) return;  // as in most tiles: only the rows differ
    divisor_from_ = t_.ow0, divisor_to_ = t_.ow1;
    even_divisor_ = true;
    for (i64 o = t_.ow0; o < t_.ow1; ++o) {
      divisor_w_[o - t_.ow0] = double(divisor_of(p_.forward[2], o, p_.divisor));
      even_divisor_ &= divisor_w_[o - t_.ow0] == divisor_w_[0];
    }
  }

  bool merged_in_place() const { return merged_in_place_; }
  i64 row_step() const { return p_.y_stride[1] * bytes_; }
  // Whether rows lie as columns, as wide as they are merged.
  bool across() const {
    return p_.inner == 1 && p_.y_stride[1] == 1 && p_.y_stride[2] != 1 && p_.out == p_.acc && bytes_ >= 4 &&
           !k_.b_bytes && !p_.adjoint;
  }
  // Rows [oh0, oh1), which lie `pitch` bytes apart at `rows`, to where they belong.
  void finish_across(i64 oh0, i64 oh1, char* rows, i64 pitch) {
    for (i64 oh = oh0; oh < oh1 && p_.finish != Finish::none; ++oh)
      arithmetic(rows + (oh - oh0) * pitch, p_.acc, oh, 0, t_.outputs());
    transpose(bytes_, row(oh0), p_.y_stride[2], rows, pitch / bytes_, oh1 - oh0, t_.outputs());
  }

  // Output row oh, where it lies.
  char* row(i64 oh) const { return y_ + oh * p_.y_stride[1] * bytes_; }

  // Whether rows are contiguous, and then: the n rows behind row oh are like it.
  bool plain() const { return p_.inner == 1 && p_.y_stride[2] == 1; }
  void repeat(i64 oh, i64 n) {
    for (i64 next = oh + 1; next <= oh + n; ++next)
      around_ ? pass_on(next) : void(__builtin_memcpy(row(next), row(oh), size_t(t_.outputs() * bytes_)));
  }
  // Nothing follows.
  void end() { around_.finish(); }

  // Where the merged row may go: into the output at once, if it has the right type and no second component.
  Row target(i64 oh, i64& pitch) const {
    pitch = t_.cb;
    if (!merged_in_place_) return row_;
    if (p_.inner > 1) pitch = p_.y_stride[2];
    return {around_ ? last_ : row(oh), nullptr};
  }

  void finish(i64 oh) {
    if (!around_) return finish(oh, row(oh));
    finish(oh, last_);
    pass_on(oh);
  }

 private:
  // Whether a row that is merged is one piece of the output.
  bool whole_rows() const { return p_.tile_w >= p_.axis[2].n_out && in_one_piece(p_, p_.y_stride); }
  void pass_on(i64 oh) {
    const i64 bytes = t_.outputs() * t_.cb * bytes_;
    __builtin_memcpy(around_.room(row(oh)), last_, size_t(bytes));
    around_.wrote(bytes);
  }
  void finish(i64 oh, char* y) {
    if (merged_in_place_) {
      if (p_.finish == Finish::none && !p_.adjoint) return;
      const i64 pitch = p_.inner > 1 ? p_.y_stride[2] : 1;
      const bool whole = pitch == t_.cb;
      for (i64 o = 0; o < (whole ? 1 : t_.outputs()); ++o)
        arithmetic(y + o * pitch * bytes_, p_.acc, oh, o, whole ? t_.outputs() : 1);
      return;
    }
    char* v = row_.a;
    DType type = p_.acc;
    if (p_.acc < DType::f16 && p_.out >= DType::f16) {  // integers whose result is a float
      converter(p_.acc, DType::f64)(wide_, 1, v, 1, t_.outputs() * t_.cb);
      type = DType::f64, v = reinterpret_cast<char*>(wide_);
    }
    if (k_.b_bytes && !k_.coded)
      finish_scaled(reinterpret_cast<double*>(v), oh);
    else if (powers_in_place_)
      return times_power(y, reinterpret_cast<double*>(v), oh);
    else if (p_.finish >= Finish::times_power)
      times_power(reinterpret_cast<double*>(v), oh);
    if (p_.finish != Finish::none || p_.adjoint) arithmetic(v, type, oh, 0, t_.outputs());
    copy_columns(type == p_.acc ? store_ : converter(type, p_.out), {y, bytes_, p_.y_stride[2], p_.y_stride[3]},
                 {v, size_of(type), t_.cb, 1}, t_.outputs(), t_.cb, p_.inner > 1);
    if (k_.coded) store_codes(oh);
  }
  // Columns [first, first + cols) of the row, which lie at v without gaps.
  void arithmetic(char* v, DType type, i64 oh, i64 first, i64 cols) {
    switch (type) {
      case DType::f32: return on_floats(reinterpret_cast<float*>(v), oh, first, cols);
      case DType::f64: return on_floats(reinterpret_cast<double*>(v), oh, first, cols);
      case DType::i32: return divide(reinterpret_cast<int32_t*>(v), oh, first, cols);
      case DType::u64: return divide(reinterpret_cast<uint64_t*>(v), oh, first, cols);
      case DType::i64: return divide(reinterpret_cast<i64*>(v), oh, first, cols);
      default: return;
    }
  }
  template <class T>
  void on_floats(T* v, i64 oh, i64 first, i64 cols) {
    if (p_.finish == Finish::root || p_.finish == Finish::signed_root) finish_roots(v, cols * t_.cb, p_.p);
    if (p_.adjoint)
      for (i64 i = 0; i < cols * t_.cb; ++i) v[i] += T(0);  // an input that no window saw: 0.0, not -0.0
    divide(v, oh, first, cols);
  }
  template <class T>
  void divide(T* v, i64 oh, i64 first, i64 cols) const {
    if (p_.finish != Finish::divide) return;
    const bool constant = p_.divisor == Divisor::constant;
    double rows = p_.divisor_value;
    if (!constant)
      rows = double(divisor_of(p_.forward[0], t_.od, p_.divisor)) * double(divisor_of(p_.forward[1], oh, p_.divisor));
    if constexpr (kSame<T, int32_t>)
      if (small_sums_ && (constant || even_divisor_))
        return divide_small(v, cols * t_.cb, float(constant ? rows : rows * divisor_w_[0]));
    if constexpr (!kIsFloat<T> && sizeof(T) == 8)
      if (exact_sums_ && (constant || even_divisor_))
        return divide_exact(v, cols * t_.cb, constant ? rows : rows * divisor_w_[0]);
    if (constant || even_divisor_) return divide_all(v, cols * t_.cb, constant ? rows : rows * divisor_w_[0]);
    if (t_.cb == 1) return divide_each(v, cols, rows, divisor_w_ + first);
    for (i64 o = 0; o < cols; ++o) divide_all(v + o * t_.cb, t_.cb, rows * divisor_w_[first + o]);
  }

  void finish_scaled(double* v, i64 oh) {
    const i64 n = t_.outputs() * t_.cb;
    const double* exponent = reinterpret_cast<const double*>(row_.b);
    if (p_.finish == Finish::log) {
      using V = Vec<double, kLanes<double>>;
      return each<kLanes<double>>(v, v, exponent, n, [&](V a, V b) { return log_of<kLanes<double>>(a, b) / p_.p; });
    }
    const double* x = inputs(oh);
    for (i64 i = 0; i < n; ++i) {
      if (v[i] == 0) continue;
      if (p_.finish == Finish::times_exp) {
        v[i] *= exp2(exponent[i] + p_.p * kLog2E * x[i]);
      } else if (x[i] == 0 && !(p_.p == 1 && p_.finish == Finish::times_signed_power)) {
        v[i] *= 0;  // a NaN stays one
      } else {
        v[i] *= exp2(exponent[i] + (p_.p == 1 ? 0 : (p_.p - 1) * log2(fabs(x[i]))));
        if (p_.finish == Finish::times_power && x[i] < 0) v[i] = -v[i];
      }
    }
  }

  const double* inputs(i64 oh) const {  // of the forward pass, beside row oh of their gradient
    return neighbour_row(p_, t_, buffers_->post, p_.out, p_.post_outer, p_.post_stride, t_.od, oh, t_.ow0, t_.outputs(),
                         wide_);
  }
  void times_power(double* v, i64 oh) const {  // v |x|^(p - 1), with the sign of x unless x^p had it; p is 1, 2, 3 or 4
    using V = Vec<double, kLanes<double>>;
    const double* const x = inputs(oh);
    with_product<V>([&](auto product) { each<kLanes<double>>(v, v, x, t_.outputs() * t_.cb, product); });
  }

  // The same from and to where inputs and gradients lie.
  void times_power(char* y, const double* v, i64 oh) const {
    const i64 at = tile_offset(p_, t_, p_.post_outer, p_.post_stride, t_.od, oh, t_.ow0);
    with_doubles(p_.out, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using V = typename AsDoubles<T>::V;
      const V zero = splat<V>(p_.adjoint ? 0.0 : -0.0);
      with_product<V>([&](auto product) {
        AsDoubles<T>::put(reinterpret_cast<T*>(y), v, static_cast<const T*>(buffers_->post) + at, t_.outputs() * t_.cb,
                          [&](V g, V x) { return product(g, x) + zero; });
      });
    });
  }
  // f(how to multiply a gradient by the power of an input).
  template <class V, class F>
  void with_product(F&& f) const {
    with_small_power(int(p_.p) - 1, [&](auto power) {
      constexpr int kPower = decltype(power)::value;
      if (p_.finish == Finish::times_power)
        f([](V g, V x) { return g == 0 ? V{} : g * signed_power<kPower>(x); });
      else
        f([](V g, V x) { return g == 0 ? V{} : g * small_power<kPower>(x < 0 ? -x : x); });
    });
  }

  i64 offset_of(i64 code) const {  // from the window's first tap, in the pooled axes of the input
    const i64 kw = p_.axis[2].kernel, kh = p_.axis[1].kernel;
    const i64 tw = code % kw, th = code / kw % kh, td = code / kw / kh;
    return (td * p_.axis[0].dilation * p_.axis[1].n_in + th * p_.axis[1].dilation) * p_.axis[2].n_in +
           tw * p_.axis[2].dilation;
  }

  void store_codes(i64 oh) {
    const i64 cols = t_.outputs();
    const i64 at = tile_offset(p_, t_, p_.code_outer, p_.code_stride, t_.od, oh, t_.ow0);
    const DType lane = k_.b_bytes == 4 ? DType::i32 : DType::i64, to = type_of(p_.code);
    char* out = static_cast<char*>(buffers_->code) + at * size_of(to);
    if (p_.code != Code::index)
      return copy_columns(converter(lane, to), {out, size_of(to), p_.code_stride[2], p_.code_stride[3]},
                          {row_.b, k_.b_bytes, t_.cb, 1}, cols, t_.cb, p_.inner > 1);
    const i64 row =
        (window_of(p_.axis[0], t_.od).start * p_.axis[1].n_in + window_of(p_.axis[1], oh).start) * p_.axis[2].n_in;
    for (i64 o = 0, i = 0; o < cols; ++o) {
      const i64 base = row + window_of(p_.axis[2], t_.ow0 + o).start;
      for (i64 c = 0; c < t_.cb; ++c, ++i) {
        const i64 code =
            lane == DType::i32 ? reinterpret_cast<const int32_t*>(row_.b)[i] : reinterpret_cast<const i64*>(row_.b)[i];
        reinterpret_cast<i64*>(out)[o * p_.code_stride[2] + c * p_.code_stride[3]] =
            base + (offset_ ? offset_[code] : offset_of(code));
      }
    }
  }
};

}  // namespace
}  // namespace anypool
