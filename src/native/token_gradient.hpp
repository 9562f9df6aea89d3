// Gradients of token pooling: every row of x gathers from the outputs that saw it and is written once.
#pragma once
#include "arithmetic.hpp"
#include "around.hpp"
#include "token_rows.hpp"

namespace anypool {
namespace {

// Copies a row from the cache, or around it. Rows are long here: that they begin and end within a line costs little.
template <class T>
class RowWriter {
  T* to_;
  i64 n_;
  bool around_;

 public:
  RowWriter(void* to, i64 n, bool around) : to_(static_cast<T*>(to)), n_(n), around_(around) {}
  void write(i64 row, const T* line) const {
    char* to = reinterpret_cast<char*>(to_ + row * n_);
    const char* from = reinterpret_cast<const char*>(line);
    const i64 bytes = n_ * i64(sizeof(T)), done = around_ ? stream(to, from, bytes) : 0;
    __builtin_memcpy(to + done, from + done, size_t(bytes - done));
  }
  void done() const {
    if (around_) streamed();
  }
};

template <class T>
class Gradient {
  using A = typename SumOf<T>::type;
  const GradientPlan& p_;
  Arena arena_;
  double *sum_, *value_sum_;
  T *line_, *zeros_, *gathered_, *gathered_values_;
  bool uniform_ = true, reads_ = false, won_;
  RowWriter<T> writer_, value_writer_;

 public:
  Gradient(const GradientPlan& p, char* scratch)
      : p_(p),
        arena_{reinterpret_cast<uintptr_t>(scratch)},
        writer_(p.grad, p.dim, p.around_cache),
        value_writer_(p.grad_values, p.value_dim, p.around_cache) {
    const i64 width = higher(p.dim, p.value_dim);
    won_ = p.n_terms == 1 && p.term[0].give == Give::select;
    sum_ = arena_.take_array<double>(width);
    value_sum_ = arena_.take_array<double>(width);
    line_ = arena_.take_array<T>(width);
    zeros_ = arena_.take_array<T>(width);
    gathered_ = arena_.take_array<T>(width);
    gathered_values_ = arena_.take_array<T>(width);
    for (int t = 0; t < p.n_terms; ++t) {
      uniform_ &= p.term[t].give == Give::uniform;
      reads_ |= p.term[t].give >= Give::deviation || p.term[t].give == Give::largest;
    }
  }
  i64 scratch_bytes() const { return arena_.used; }

  void run(i64 begin, i64 end) {
    __builtin_memset(static_cast<void*>(zeros_), 0, size_t(higher(p_.dim, p_.value_dim)) * sizeof(T));
    if (p_.list_bounds)
      for (i64 row = begin; row < end; ++row) listed(row);
    else
      walk(begin, end);
    writer_.done();
    value_writer_.done();
  }

 private:
  void listed(i64 row) {
    const i64 block = row / kBlockRows;
    bool seen = false;
    for (i64 i = p_.list_bounds[block]; i < p_.list_bounds[block + 1]; ++i) {
      const i64 r = p_.list[i];
      if (row < p_.flat[r] || row >= p_.flat[r] + p_.count[r]) continue;
      if (!seen) clear();
      seen = true;
      add(r, row);
    }
    write(row, seen);
  }
  void walk(i64 row, i64 end) {
    i64 r = 0, above = p_.n_runs;  // the first run that ends behind `row`
    while (r < above) {
      const i64 middle = (r + above) / 2;
      if (p_.flat[middle] + p_.count[middle] <= row)
        r = middle + 1;
      else
        above = middle;
    }
    i64 made = -1;  // whose gradient is in line_
    for (; row < end; ++row) {
      while (r < p_.n_runs && p_.flat[r] + p_.count[r] <= row) ++r;
      const bool seen = r < p_.n_runs && p_.flat[r] <= row;
      if (seen && won_) {
        take(r, p_.ordinal[r] + row - p_.flat[r]);
        writer_.write(row, line_);
      } else if (!seen || !uniform_ || made != p_.output[r]) {
        if (seen) clear(), add(r, row);
        if (seen && uniform_) made = p_.output[r];
        write(row, seen);
      } else {
        writer_.write(row, line_);
      }
    }
  }

  // Of a single max or min, and one output a row: nothing is added up.
  void take(i64 r, i64 k) {
    const i64 o = p_.output[r];
    const A* a = static_cast<const A*>(p_.term[0].a) + o * p_.term[0].a_row;
    const int32_t *winner = p_.term[0].winners + o * p_.dim, place = int32_t(k);
    for (i64 c = 0; c < p_.dim; ++c) narrow(line_[c], winner[c] == place ? a[c] : A(0));
  }
  void clear() {
    for (i64 c = 0; c < p_.dim; ++c) sum_[c] = -0.0;  // adds nothing, not even a sign
    if (p_.grad_values)
      for (i64 c = 0; c < p_.value_dim; ++c) value_sum_[c] = -0.0;
  }
  void write(i64 row, bool seen) {
    if (!seen) {
      writer_.write(row, zeros_);
      if (p_.grad_values) value_writer_.write(row, zeros_);
      return;
    }
    if (p_.grad_values) {
      for (i64 c = 0; c < p_.value_dim; ++c) narrow(line_[c], A(value_sum_[c]));
      value_writer_.write(row, line_);
    }
    for (i64 c = 0; c < p_.dim; ++c) narrow(line_[c], A(sum_[c]));
    writer_.write(row, line_);
  }
  const T* row_of(const void* x, i64 offset, i64 col, i64 n, T* gathered) const {
    const T* row = static_cast<const T*>(x) + offset;
    if (col == 1) return row;
    for (i64 c = 0; c < n; ++c) gathered[c] = row[c * col];
    return gathered;
  }

  void add(i64 r, i64 row) {
    const i64 o = p_.output[r], in_run = row - p_.flat[r], k = p_.ordinal[r] + in_run;
    const T* x = reads_ ? row_of(p_.x, p_.offset[r] + in_run * p_.row, p_.col, p_.dim, gathered_) : nullptr;
    for (int i = 0; i < p_.n_terms; ++i) add_term(p_.term[i], o, k, row, r, in_run, x);
  }
  template <class F>
  ANYPOOL_INLINE void each(F&& f) {
    for (i64 c = 0; c < p_.dim; ++c) sum_[c] += f(c);
  }
  void add_term(const GradientTerm& t, i64 o, i64 k, i64 row, i64 r, i64 in_run, const T* x) {
    const A* a = static_cast<const A*>(t.a) + o * t.a_row;
    const A* b = static_cast<const A*>(t.b) + o * t.b_row;
    const double by = t.by ? t.by[o] : 1.0, p = t.p;
    switch (t.give) {
      case Give::uniform: return each([=](i64 c) { return double(a[c]) / by; });
      case Give::positions: {
        const double place = double((p_.skipped ? p_.skipped[o] : 0) + k + 1);
        return each([=](i64 c) { return double(a[c]) * place / by; });
      }
      case Give::weighted: {
        const double w = p_.weights[row];
        return each([=](i64 c) { return double(a[c]) * w / by; });
      }
      case Give::select: {
        const int32_t *winner = t.winners + o * p_.dim, place = int32_t(k);  // as wide as what it is compared with
        return each([=](i64 c) { return winner[c] == place ? double(a[c]) : 0.0; });
      }
      case Give::largest: {
        const int32_t *winner = t.winners + o * p_.dim, place = int32_t(k);
        return each([=](i64 c) { return winner[c] == place ? double(a[c]) * sign(x[c]) : 0.0; });
      }
      case Give::first:
      case Give::last: {
        const bool mine = k == (t.give == Give::first ? 0 : p_.tokens[o] - 1);
        return each([=](i64 c) { return mine ? double(a[c]) : 0.0; });
      }
      case Give::deviation: return each([=](i64 c) { return double(a[c]) * (wide(x[c]) - double(b[c])); });
      case Give::weighted_deviation: {
        const double w = p_.weights[row];
        return each([=](i64 c) { return double(a[c]) * (wide(x[c]) - double(b[c])) * w; });
      }
      case Give::power:
        if (p == 1) return each([=](i64 c) { return double(a[c]) * sign(x[c]); });
        if (p == 2) return each([=](i64 c) { return b[c] == 0 ? 0.0 : double(a[c]) * (wide(x[c]) / double(b[c])); });
        return each([=](i64 c) {
          const double ratio = fabs(wide(x[c])) / double(b[c]);
          return b[c] == 0 ? 0.0 : double(a[c]) * pow(ratio, p - 1) * sign(x[c]);
        });
      case Give::clamped:
        return each([=](i64 c) {
          const double v = wide(x[c]);
          const double ratio = v / double(b[c]);
          return v <= t.eps ? 0.0 : double(a[c]) * (p == 3 ? ratio * ratio : pow(ratio, p - 1)) / by;
        });
      case Give::exponentials: return exponentials(a, b, p, x);
      case Give::attention: return attention(o, row, r, in_run, x);
    }
  }
  static ANYPOOL_INLINE double wide(T x) { return double(widen(x)); }
  static ANYPOOL_INLINE double sign(T x) {
    const double v = wide(x);
    return v > 0 ? 1.0 : v < 0 ? -1.0 : v;  // NaN stays NaN
  }
  void exponentials(const A* a, const A* y, double r, const T* x) {
    over_row<double>(x, p_.dim, [&](i64 c, auto v, auto k) {
      constexpr int L = decltype(k)::n;
      const auto top = load_as<A, double, L>(y + c) * r;
      const auto g = load_as<A, double, L>(a + c);
      const auto scaled = v * r;
      // Rounded, y may lie a little below the largest x: exp_of serves that as well. Nothing comes of -inf - -inf.
      const auto e = exp_of<L>(scaled - top);
      put(sum_ + c, at(sum_ + c, k) + (scaled == top && scaled - top != 0 ? Vec<double, L>{} : g * e));
    });
  }
  void attention(i64 o, i64 row, i64 r, i64 in_run, const T* x) {
    const bool separate = p_.grad_values != nullptr;
    const T* v = separate ? row_of(p_.values, p_.value_offset[r] + in_run * p_.value_row, p_.value_col, p_.value_dim,
                                   gathered_values_)
                          : x;
    (void)row;
    double* value_sum = separate ? value_sum_ : sum_;
    for (i64 h = 0; h < p_.heads; ++h) {
      const i64 place = o * p_.heads + h;
      const A* query = static_cast<const A*>(p_.query) + h * p_.dim;
      const A* g = static_cast<const A*>(p_.grad_y) + place * p_.value_dim;
      const double score = dot<A>(x, query, p_.dim);
      const double weight = exp_below<1>(score, p_.known[2 * place]);
      const double ds = weight * (double(dot<A>(v, g, p_.value_dim)) - p_.known[2 * place + 1]);
      for (i64 c = 0; c < p_.value_dim; ++c) value_sum[c] += weight * double(g[c]);
      for (i64 c = 0; c < p_.dim; ++c) sum_[c] += ds * double(query[c]);
    }
  }
};

}  // namespace
}  // namespace anypool
