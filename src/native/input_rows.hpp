// The input, row by row: where it lies if kernels can read it there, else loaded, converted and lifted into scratch.
#pragma once
#include "arithmetic.hpp"
#include "doubles.hpp"
#include "new_rows.hpp"
#include "phases.hpp"
#include "transpose.hpp"
#include "tree.hpp"

namespace anypool {
namespace {

// cols x cb elements from one array to another, in as few pieces as their strides (in elements) allow.
struct Columns {
  char* data;
  i64 bytes, stride_w, stride_c;
};
inline void copy_columns(Convert copy, const Columns& to, const Columns& from, i64 cols, i64 cb, bool inner) {
  if (!inner) return copy(to.data, to.stride_w, from.data, from.stride_w, cols);
  if (to.stride_c == 1 && from.stride_c == 1 && to.stride_w == cb && from.stride_w == cb)
    return copy(to.data, 1, from.data, 1, cols * cb);
  for (i64 j = 0; j < cols; ++j)
    copy(to.data + j * to.stride_w * to.bytes, to.stride_c, from.data + j * from.stride_w * from.bytes, from.stride_c,
         cb);
}

// Whether all elements that a row of a tile has of an array with these strides lie one behind the other.
inline bool in_one_piece(const Plan& p, const i64* stride) {
  if (p.inner == 1) return stride[2] == 1;
  return p.tile_c >= p.inner && stride[3] == 1 && stride[2] == p.inner;
}

// Row (d, h) from column w on of an array that lies beside the input or output, as doubles.
inline const double* neighbour_row(const Plan& p, const Tile& t, const void* base, DType type, const i64* outer,
                                   const i64* stride, i64 d, i64 h, i64 w, i64 cols, double* into) {
  char* from =
      const_cast<char*>(static_cast<const char*>(base)) + tile_offset(p, t, outer, stride, d, h, w) * size_of(type);
  copy_columns(converter(type, DType::f64), {reinterpret_cast<char*>(into), 8, t.cb, 1},
               {from, size_of(type), stride[2], stride[3]}, cols, t.cb, p.inner > 1);
  return into;
}

class InputRows {
  static constexpr int kKept = 16;  // rows that may be alive at once: a leaf of the tree over d and one over h
  const Plan& p_;
  const Kernel& k_;
  const Buffers* buffers_ = nullptr;
  const Tile& t_;
  const i64 bytes_;
  const Convert load_;
  const bool direct_, lifts_at_once_;  // where the rows lie; powers, from there
  const bool powers_at_once_;          // quotients by powers, likewise
  const bool wide_as_sums_;            // single columns of 4 or 8 bytes, which need not be converted
  Row kept_[kKept];
  double *aux_, *divisor_w_;                 // divisor_w_: of each column, in an adjoint
  i64 divisor_from_ = -1, divisor_to_ = -1;  // the columns that it holds
  char* divisor_;                            // times that of the rows, in the type of the elements
  double divisor_rows_ = 0;
  const char* x_ = nullptr;
  Shape shape_{};
  int next_ = 0;

 public:
  InputRows(const Plan& plan, const Kernel& kernel, const Tile& tile, Arena& arena, i64 n)
      : p_(plan),
        k_(kernel),
        t_(tile),
        bytes_(size_of(plan.in)),
        load_(converter(plan.in, plan.acc)),
        direct_(plan.lift == Lift::none && plan.in == plan.acc &&
                (plan.inner == 1 ? plan.x_stride[2] == 1 || plan.axis[2].n_in == 1 : plan.x_stride[3] == 1)),
        lifts_at_once_(
            ((plan.lift >= Lift::absolute && plan.lift <= Lift::signed_power) || plan.lift == Lift::over_divisor) &&
            plan.in == plan.acc && plan.acc >= DType::f32 && in_one_piece(plan, plan.x_stride)),
        powers_at_once_(plan.lift == Lift::over_power && !kernel.b_bytes && plan.in == plan.aux &&
                        has_doubles(plan.in) && in_one_piece(plan, plan.x_stride) &&
                        in_one_piece(plan, plan.aux_stride)),
        wide_as_sums_(plan.in == plan.acc && plan.inner == 1 && bytes_ >= 4) {
    for (Row& r : kept_) r = direct_ ? Row{} : take_row(arena, k_, n);
    aux_ = p_.lift >= Lift::over_power ? arena.take_array<double>(n) : nullptr;
    const bool divides = p_.lift == Lift::over_divisor && p_.divisor != Divisor::constant;
    divisor_w_ = divides ? arena.take_array<double>(n) : nullptr;
    divisor_ = divides ? arena.take(n * 8) : nullptr;
  }

  bool direct() const { return direct_; }
  void place(const Buffers& buffers) {
    buffers_ = &buffers;
    x_ = static_cast<const char*>(buffers.x) + tile_offset(p_, t_, p_.x_outer, p_.x_stride, 0, 0, 0) * bytes_;
    shape_ = shape_of_tile();
    if (!divisor_w_ || (t_.w_lo == divisor_from_ && t_.w_hi == divisor_to_)) return;
    divisor_from_ = t_.w_lo, divisor_to_ = t_.w_hi;
    divisor_rows_ = 0;
    for (i64 j = t_.w_lo; j < t_.w_hi; ++j) divisor_w_[j - t_.w_lo] = double(divisor_of(p_.forward[2], j, p_.divisor));
  }

  // Rows as merges over d and h see them: one piece where they lie so, else column by column.
  Shape shape() const { return shape_; }
  Shape shape_of_tile() const {
    const bool whole = !direct_ || p_.inner == 1 || (t_.cb == p_.inner && p_.x_stride[2] == p_.inner);
    return whole ? Shape{1, t_.columns() * t_.cb} : Shape{t_.columns(), t_.cb};
  }

  // The tile's columns of row (d, h), lifted. `into` is where to keep a loaded row; else it lasts for a few more.
  void row(i64 d, i64 h, i64 add, Source& source, const Row* into = nullptr) {
    char* from = const_cast<char*>(place_of(d, h));
    if (direct_) return set(source, from, nullptr, add, p_.x_stride[2]);
    const Row& to = into ? *into : kept_[next_++ % kKept];
    if (lifts_at_once_) {
      const auto on = [&](auto zero) {
        using T = decltype(zero);
        lifted(reinterpret_cast<T*>(to.a), reinterpret_cast<const T*>(from), d, h, t_.columns() * t_.cb);
      };
      p_.acc == DType::f32 ? on(float{}) : on(double{});
      return set(source, to.a, nullptr, add, t_.cb);
    }
    if (powers_at_once_) {
      over_power(reinterpret_cast<double*>(to.a), from, d, h);
      return set(source, to.a, nullptr, add, t_.cb);
    }
    if (wide_as_sums_ && p_.x_stride[2] == 2)
      bytes_ == 4 ? take_every_second<uint32_t>(to.a, from, t_.columns())
                  : take_every_second<uint64_t>(to.a, from, t_.columns());
    else
      copy_columns(load_, {to.a, k_.a_bytes, t_.cb, 1}, {from, bytes_, p_.x_stride[2], p_.x_stride[3]}, t_.columns(),
                   t_.cb, p_.inner > 1);
    if (p_.lift != Lift::none) lift(to, d, h);
    set(source, to.a, k_.coded ? nullptr : to.b, add, t_.cb);
  }
  // Reads rows [begin, end) of plane d, which are about to be merged where they lie.
  void read(i64 d, i64 begin, i64 end) const {
    const i64 bytes = t_.columns() * bytes_;
    if (p_.inner != 1 || bytes >= kPage) return;
    for (i64 h = begin; h < end; ++h) read_in_order(place_of(d, h), bytes);
  }
  // Rows [begin, end) of plane d, `pitch` bytes apart. Those `ahead` rows further will be wanted next; they need not exist.
  void rows(i64 d, i64 begin, i64 end, i64 ahead, char* to, i64 pitch) {
    const i64 step = p_.x_stride[2] * bytes_;
    if (wide_as_sums_ && p_.x_stride[1] == 1) {  // rows that lie as columns
      const char* from = place_of(d, begin);
      for (i64 j = 0; j < t_.columns(); ++j) prefetch(from + ahead * bytes_ + j * step, (end - begin) * bytes_);
      transpose(bytes_, to, pitch / bytes_, from, p_.x_stride[2], t_.columns(), end - begin);
      for (i64 h = begin; h < end && p_.lift != Lift::none; ++h) lift({to + (h - begin) * pitch, nullptr}, d, h);
      return;
    }
    for (i64 h = begin; h < end; ++h) {
      Source source;
      const Row into{to + (h - begin) * pitch, nullptr};
      if (step > 0 && step <= 16) prefetch(place_of(d, h + ahead), t_.columns() * step);
      row(d, h, 0, source, &into);
    }
  }

 private:
  // Not a call: GCC finds that one has no effect, and leaves it out.
  static ANYPOOL_INLINE void prefetch(const char* from, i64 bytes) {
    for (i64 b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, 0, 2);
  }
  const char* place_of(i64 d, i64 h) const {
    return x_ + (d * p_.x_stride[0] + h * p_.x_stride[1] + t_.w_lo * p_.x_stride[2]) * bytes_;
  }
  void lift(Row row, i64 d, i64 h) {
    const i64 n = t_.columns() * t_.cb;
    if (k_.b_bytes && !k_.coded)
      return lift_scaled(reinterpret_cast<double*>(row.a), reinterpret_cast<double*>(row.b), d, h, n);
    if (p_.lift == Lift::over_power) return over_power(reinterpret_cast<double*>(row.a), d, h, n);
    const auto on = [&](auto* v) { lifted(v, v, d, h, n); };
    p_.acc == DType::f32 ? on(reinterpret_cast<float*>(row.a)) : on(reinterpret_cast<double*>(row.a));
  }

  void lift_scaled(double* v, double* exponent, i64 d, i64 h, i64 n) {
    if (p_.lift == Lift::exp) return scale_exps(v, exponent, n, p_.p);
    const double* y = results(d, h);
    for (i64 i = 0; i < n; ++i) {
      const double g = v[i], t = p_.lift == Lift::over_exp ? -p_.p * kLog2E * y[i] : (1 - p_.p) * log2(fabs(y[i]));
      if (g == 0 || (y[i] == 0 && p_.lift == Lift::over_power))
        v[i] = 0, exponent[i] = ScaledSum::kZeroExponent;
      else
        scale(v[i], exponent[i], g, t);
    }
  }

  const double* results(i64 d, i64 h) const {  // of the forward pass, beside row (d, h)
    return neighbour_row(p_, t_, buffers_->aux, p_.aux, p_.aux_outer, p_.aux_stride, d, h, t_.w_lo, t_.columns(), aux_);
  }
  void over_power(double* g, i64 d, i64 h, i64 n) const {  // g / |y|^(p - 1), 0 where y is 0; p is 1, 2, 3 or 4
    using V = Vec<double, kLanes<double>>;
    const double* const y = results(d, h);
    with_small_power(int(p_.p) - 1, [&](auto power) {
      each<kLanes<double>>(g, g, y, n, [](V a, V by) { return quotient<decltype(power)::value>(a, by); });
    });
  }

  // The same from where gradients and results lie.
  void over_power(double* v, const char* g, i64 d, i64 h) const {
    const i64 at = tile_offset(p_, t_, p_.aux_outer, p_.aux_stride, d, h, t_.w_lo);
    with_doubles(p_.in, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using V = typename AsDoubles<T>::V;
      with_small_power(int(p_.p) - 1, [&](auto power) {
        AsDoubles<T>::load(v, reinterpret_cast<const T*>(g), static_cast<const T*>(buffers_->aux) + at,
                           t_.columns() * t_.cb, [](V a, V by) { return quotient<decltype(power)::value>(a, by); });
      });
    });
  }
  template <int N, class V>
  static ANYPOOL_INLINE V quotient(V g, V y) {
    const auto zero = y == 0;
    return (zero ? V{} : g) / (zero ? splat<V>(1.0) : small_power<N>(y < 0 ? -y : y));
  }

  // n elements of row (d, h) at x, which may be v.
  template <class T>
  void lifted(T* v, const T* x, i64 d, i64 h, i64 n) {
    p_.lift == Lift::over_divisor ? over_divisor(v, x, d, h, n) : lift_powers(v, x, n, p_.lift, p_.p);
  }
  template <class T>
  void over_divisor(T* v, const T* x, i64 d, i64 h, i64 n) {
    using V = Vec<T, kLanes<T>>;
    const auto by_one = [&](i64 from, i64 to, double by) {
      const V all = splat<V>(T(by));
      each<kLanes<T>>(v + from, x + from, to - from, [&](V a) { return a / all; });
    };
    if (p_.divisor == Divisor::constant) return by_one(0, n, p_.divisor_value);
    const double rows =
        double(divisor_of(p_.forward[0], d, p_.divisor)) * double(divisor_of(p_.forward[1], h, p_.divisor));
    const i64 cols = n / t_.cb;
    T* const by = reinterpret_cast<T*>(divisor_);
    if (rows != divisor_rows_) {  // of most rows they are those of the row before
      divisor_rows_ = rows;
      for (i64 j = 0; j < cols; ++j) by[j] = T(rows * divisor_w_[j]);
    }
    if (t_.cb == 1)
      each<kLanes<T>>(v, x, by, n, [](V a, V b) { return a / b; });
    else
      for (i64 j = 0; j < cols; ++j) by_one(j * t_.cb, (j + 1) * t_.cb, double(by[j]));
  }
};

}  // namespace
}  // namespace anypool
